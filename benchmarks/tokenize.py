"""Text to shards beside the tokenizers library alone: `python -m benchmarks.tokenize [--mb 256] [--rounds 3]`.

Per round, each in a process of its own and on the same rows: `encode_batch` and `encode_batch_fast` of texts in memory,
by all cores, timed around the calls alone; then the whole command, from JSONL on disk to shards on disk, its start
included. MB/s is of wall time; MB per CPU second is what remains comparable while others compute here.

The text is what this machine has: translated messages (gettext catalogs) and Python sources in equal parts. The
tokenizer is of BLOOM's kind, with 32,768 ids, trained on a part of it; --tokenizer names another.
"""

import argparse
import gettext
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from benchmarks.contestants import WORK
from benchmarks.figures import short, table
from benchmarks.machine import cpu_name
from bloom import bpe
from services.common.settings import ROOT

GOAL = 0.9  # of encode_batch
BATCH = 1000  # texts handed to the library at once, as datasets.map does
VOCAB_SIZE = 32_768
TRAINING_BYTES = 8 << 20
MESSAGES = 30  # of a catalog in a row
LIBRARY = ("encode_batch", "encode_batch_fast")
OURS = "text to shards"


def messages() -> Iterator[str]:
    """Rows of translated messages, in the scripts of many languages."""
    for path in sorted(Path("/usr/share/locale").rglob("*.mo")):
        try:
            with path.open("rb") as file:
                catalog = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]
        except (OSError, ValueError, LookupError):  # there are damaged ones
            continue
        found = [text for key, text in catalog.items() if key and isinstance(text, str)]
        for start in range(0, len(found), MESSAGES):
            yield "\n".join(found[start : start + MESSAGES])


def sources() -> Iterator[str]:
    """Python files."""
    for path in sorted(Path(sysconfig.get_path("purelib")).rglob("*.py")):
        text = path.read_text(encoding="utf-8", errors="ignore")
        if text:
            yield text


def gather(path: Path, num_bytes: int) -> None:
    """Write rows of about `num_bytes` of text, shuffled; all there is, again and again, if that is less."""
    kinds = [list(messages()), list(sources())]
    rows = []
    for kind in filter(None, kinds):
        random.Random(0).shuffle(kind)
        size = 0
        for text in chain.from_iterable(kind for _ in range(1000)):
            if size >= num_bytes / len(list(filter(None, kinds))):
                break
            rows.append(text)
            size += len(text.encode())
    random.Random(0).shuffle(rows)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": row}, ensure_ascii=False) + "\n" for row in rows)


def make_tokenizer(rows: Path, path: Path) -> None:
    texts, size = [], 0
    with rows.open(encoding="utf-8") as file:
        for line in file:
            texts.append(json.loads(line)["text"])
            size += len(texts[-1])
            if size > TRAINING_BYTES:
                break
    bpe.train(texts, vocab_size=VOCAB_SIZE).save(str(path))


def library(rows: Path, tokenizer: Path, method: str) -> tuple[float, float]:
    """Seconds of wall and of CPU time that the library takes for all rows."""
    from tokenizers import Tokenizer

    with rows.open(encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    encode = getattr(Tokenizer.from_file(str(tokenizer)), method)
    encode(texts[:BATCH])
    start, cpu_start = time.perf_counter(), time.process_time()
    for first in range(0, len(texts), BATCH):
        encode(texts[first : first + BATCH], add_special_tokens=False)
    return time.perf_counter() - start, time.process_time() - cpu_start


def measure(name: str, rows: Path, tokenizer: Path, threads: int, output: Path) -> tuple[float, float]:
    """Seconds of wall and of CPU time that one contestant takes, in a process of its own."""
    shutil.rmtree(output, ignore_errors=True)
    env = os.environ | {"RAYON_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "true"}
    shared = ["--tokenizer", str(tokenizer)]
    if name == OURS:
        where = ["--output", str(output / "shards"), "--workers", str(threads), str(rows)]
        command = [sys.executable, "-m", "services.trainer.corpus.tokenize", *shared, *where]
    else:
        command = [sys.executable, "-m", "benchmarks.tokenize", "--library", name, *shared, "--text", str(rows)]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True, check=True)
    wall_s, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if name != OURS:
        wall_s, cpu_s = json.loads(done.stdout)
    return wall_s, cpu_s


def report(figures: dict[str, list[tuple[float, float]]], megabytes: float) -> str:
    """Medians of MB/s and MB per CPU second, and each as a share of encode_batch's."""
    rates = {
        name: tuple(statistics.median(megabytes / run[i] for run in runs) for i in (0, 1))
        for name, runs in figures.items()
    }
    base = rates[LIBRARY[0]]
    header = ["", "MB/s", "of encode_batch", "MB per CPU s", "of encode_batch"]
    lines = [
        [name, short(wall), f"{wall / base[0]:.2f}", short(cpu), f"{cpu / base[1]:.2f}"]
        for name, (wall, cpu) in rates.items()
    ]
    return table(header, lines)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tokenize", description=__doc__.split("\n")[0])
    parser.add_argument("--mb", type=int, default=256, help="of text that is gathered")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--text", type=Path, help="JSONL rows, instead of what this machine has")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json, instead of one trained on the text")
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--library", choices=LIBRARY, help=argparse.SUPPRESS)  # the process of that contestant
    return parser


def main() -> int:
    arguments = parser().parse_args()
    if arguments.library:
        print(json.dumps(library(arguments.text, arguments.tokenizer, arguments.library)))
        return 0
    folder = arguments.work / "tokenize"
    folder.mkdir(parents=True, exist_ok=True)
    rows = arguments.text or folder / f"{arguments.mb}mb.jsonl"
    if not rows.exists():
        gather(rows, arguments.mb * 1_000_000)
    tokenizer = arguments.tokenizer or folder / f"{arguments.mb}mb-tokenizer.json"
    if not tokenizer.exists():
        make_tokenizer(rows, tokenizer)
    figures: dict[str, list[tuple[float, float]]] = {name: [] for name in (*LIBRARY, OURS)}
    for _ in range(arguments.rounds):
        for name in figures:
            figures[name].append(measure(name, rows, tokenizer, arguments.threads, folder / "output"))
            print(f"{name}: {figures[name][-1][0]:.1f} s, {figures[name][-1][1]:.1f} CPU s", file=sys.stderr)
    with rows.open(encoding="utf-8") as file:
        megabytes = sum(len(json.loads(line)["text"].encode()) for line in file) / 1e6
    print(f"{cpu_name()}; {megabytes:.0f} MB of text, {arguments.rounds} rounds, {arguments.threads} threads\n")
    print(report(figures, megabytes))
    ours, theirs = (statistics.median(run[0] for run in figures[name]) for name in (OURS, LIBRARY[0]))
    reached = theirs / ours >= GOAL
    print(
        f"\ngoal: at least {GOAL:.0%} of encode_batch's MB/s: {theirs / ours:.0%}, {'reached' if reached else 'MISSED'}"
    )
    return 0 if reached else 2


if __name__ == "__main__":
    sys.exit(main())
