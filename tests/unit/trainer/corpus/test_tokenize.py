"""Text to shards: what the tokenizer gives, by any number of workers, through any interruption."""

import contextlib
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from tokenizers import Tokenizer

from services.common.settings import ROOT
from services.trainer.corpus.indexed import bin_path, read_header, read_lengths
from services.trainer.corpus.manifest import load_manifest
from services.trainer.corpus.run import Options, _alone, tokenize
from services.trainer.corpus.shards import find_shards
from services.trainer.corpus.texts import Reading
from services.trainer.failure import JobFailure
from tests.support.corpora import texts, write_jsonl
from tests.support.tokenizers import write_small_tokenizer

EOS = 2


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """Files of about 100 kB, some rows of which are blank."""
    folder = tmp_path_factory.mktemp("inputs")
    write_small_tokenizer(folder)
    (folder / "text").mkdir()
    for number in range(8):
        write_jsonl(folder / "text" / f"{number}.jsonl", [*texts(300, seed=number), "", "the last"])
    return folder


def options(folder: Path, output: Path, **changes) -> Options:
    fields = {
        "tokenizer": folder / "tokenizer.json",
        "inputs": (folder / "text",),
        "output": output,
        "workers": 1,
        "reading": Reading(),
        "shard_bytes": 150_000,
        **changes,
    }
    return Options(**fields)


def documents(output: Path) -> list[list[int]]:
    found = []
    for shard in find_shards(output):
        tokens = np.fromfile(bin_path(shard), read_header(shard).dtype)
        found += [part.tolist() for part in np.split(tokens, np.cumsum(read_lengths(shard))[:-1])]
    return found


def files(output: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes() for path in output.parent.iterdir() if path.suffix in (".bin", ".idx", ".json")
    }


@pytest.fixture(scope="module")
def undisturbed(inputs, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    tokenize(options(inputs, output))
    return output


def test_shards_hold_what_the_tokenizer_gives_and_an_end_for_each_document(inputs, undisturbed):
    tokenizer = Tokenizer.from_file(str(inputs / "tokenizer.json"))
    rows = [json.loads(line)["text"] for path in sorted((inputs / "text").iterdir()) for line in path.open()]
    expected = [[*tokenizer.encode(row).ids, EOS] for row in rows if row]
    assert documents(undisturbed) == expected
    manifest = load_manifest(undisturbed.with_name("out.json"))
    assert len(manifest.shards) == len(find_shards(undisturbed)) > 3
    assert manifest.total("num_documents") == len(expected)
    assert manifest.total("num_tokens") == sum(map(len, expected))
    assert manifest.total("text_bytes") == sum(len(row.encode()) for row in rows)
    assert manifest.total("num_empty") == 8


def test_more_workers_write_the_same_bytes(inputs, undisturbed, tmp_path):
    tokenize(options(inputs, tmp_path / "out", workers=3))
    assert files(tmp_path / "out") == files(undisturbed)


def test_documents_need_no_end(inputs, undisturbed, tmp_path):
    tokenize(options(inputs, tmp_path / "out", end=None))
    assert documents(tmp_path / "out") == [document[:-1] for document in documents(undisturbed)]


def test_text_that_spells_a_special_token_is_text(inputs, tmp_path):
    write_jsonl(tmp_path / "a.jsonl", ["a</s>b"])
    tokenize(options(inputs, tmp_path / "out", inputs=(tmp_path / "a.jsonl",)))
    assert documents(tmp_path / "out")[0].count(EOS) == 1


def command(inputs: Path, output: Path, *more: str) -> list[str]:
    start = [sys.executable, "-m", "services.trainer.corpus.tokenize", "--tokenizer", str(inputs / "tokenizer.json")]
    return [*start, "--output", str(output), "--workers", "2", *more]


def run(inputs: Path, output: Path, *more: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command(inputs, output, *more), cwd=ROOT, capture_output=True, text=True, check=False)


# The command's work in small pieces, so that there is much to interrupt in little text.
IN_SMALL_PIECES = """
import sys
from pathlib import Path
from services.trainer.corpus import cutting, run, texts

texts.PIECE_BYTES = cutting.PIECE_BYTES = 20_000
tokenizer, inputs, output, workers = sys.argv[1:]
options = run.Options(
    tokenizer=Path(tokenizer), inputs=(Path(inputs),), output=Path(output), workers=int(workers),
    reading=texts.Reading(), shard_bytes=90_000,
)
run.tokenize(options)
"""


def start_in_small_pieces(inputs: Path, output: Path) -> "subprocess.Popen[bytes]":
    arguments = [str(inputs / "tokenizer.json"), str(inputs / "text"), str(output), "2"]
    return subprocess.Popen([sys.executable, "-c", IN_SMALL_PIECES, *arguments], cwd=ROOT, stderr=subprocess.PIPE)


def written(output: Path) -> int:
    """Bytes of shards, finished or not."""
    size = 0
    for path in output.parent.glob("out-*"):
        with contextlib.suppress(FileNotFoundError):  # renamed meanwhile
            size += path.stat().st_size
    return size


def stop_when(process: "subprocess.Popen[bytes]", moment: int, output: Path, *, whom: str) -> bytes:
    """SIGKILL the run or one of its workers when so many bytes are written; what it printed, once all have ended."""
    while process.poll() is None and written(output) < moment:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.001)
    children = psutil.Process(process.pid).children() if process.poll() is None else []
    if whom == "run":
        process.kill()
    else:
        next(child for child in children if "spawn_main" in " ".join(child.cmdline())).kill()
    printed = process.communicate(timeout=60)[1]
    assert psutil.wait_procs(children, timeout=30)[1] == []
    return printed


def test_a_run_killed_at_random_moments_ends_with_the_bytes_of_one_that_was_not(inputs, tmp_path):
    once, output = tmp_path / "once" / "out", tmp_path / "killed" / "out"
    assert start_in_small_pieces(inputs, once).wait() == 0
    log = []
    for moment in sorted(random.Random(7).sample(range(written(once) * 2 // 3), 4)):  # in bytes on disk
        stop_when(start_in_small_pieces(inputs, output), moment, output, whom="run")
        finished = [path.with_suffix("") for path in output.parent.glob("*.idx")]
        for shard in finished:  # whatever has its name is whole
            read_lengths(shard)
        log.append((moment, len(finished), len(list(output.parent.glob("*.part")))))
    print("killed at (bytes, shards finished, files begun):", log)
    assert any(0 < done < len(find_shards(once)) for _, done, _ in log), "all kills were too early or too late"
    assert start_in_small_pieces(inputs, output).wait() == 0
    assert files(output) == files(once)


def test_a_killed_worker_ends_the_run_with_a_reason_and_what_was_done_is_kept(inputs, tmp_path):
    output = tmp_path / "out"
    printed = stop_when(start_in_small_pieces(inputs, output), 200_000, output, whom="worker")
    assert b"a worker was killed, likely for want of memory; use fewer --workers; the same command goes on" in printed
    assert not list(tmp_path.glob("*.part"))
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.bin")}
    assert kept
    assert start_in_small_pieces(inputs, output).wait() == 0
    assert kept.items() <= {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.bin")}.items()


def test_a_second_run_has_nothing_to_do_and_a_run_of_other_text_is_refused(inputs, undisturbed, tmp_path):
    shutil.copytree(undisturbed.parent, tmp_path / "copy")
    output = tmp_path / "copy" / "out"
    before = {path: path.stat().st_mtime_ns for path in output.parent.glob("*.bin")}
    assert tokenize(options(inputs, output)).total("num_empty") == 8
    assert {path: path.stat().st_mtime_ns for path in output.parent.glob("*.bin")} == before
    with pytest.raises(JobFailure, match="records a run with another value of: end; choose another --output"):
        tokenize(options(inputs, output, end=None))
    other = write_small_tokenizer(tmp_path, 400)
    with pytest.raises(JobFailure, match="records a run with tokenizer sha256:"):
        tokenize(options(inputs, output, tokenizer=other))
    output.with_name("out.json").write_text("{")
    with pytest.raises(JobFailure, match="is no record of a tokenizing run"):
        tokenize(options(inputs, output))


@pytest.fixture
def with_bad_rows(tmp_path) -> Path:
    """Two files; rows 700 of the first and 2 of the second are no JSON."""
    rows = [json.dumps({"text": text}) for text in texts(900, seed=3)]
    rows[699] = '{"text": '
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    (tmp_path / "b.jsonl").write_text('{"text": "good"}\nbad\n{"text": "good"}\n')
    return tmp_path


def test_a_bad_row_is_refused_by_file_and_row_and_left_out_if_asked(inputs, with_bad_rows):
    arguments = [str(with_bad_rows / name) for name in ("a.jsonl", "b.jsonl")]
    output = with_bad_rows / "out"
    refused = run(inputs, output, *arguments)
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1].startswith(f"{with_bad_rows}/a.jsonl, row 700: is no JSON")
    assert "mend it, or leave such rows out with --skip-bad-rows" in refused.stderr
    assert not list(with_bad_rows.glob("out*.idx")) + list(with_bad_rows.glob("*.part"))
    skipped = run(inputs, output, "--skip-bad-rows", *arguments)
    assert skipped.returncode == 0, skipped.stderr
    assert "901 documents" in skipped.stdout
    assert "left out, bad: 2, as" in skipped.stdout
    assert f"{with_bad_rows}/b.jsonl, row 2: is no JSON" in skipped.stdout


def test_rows_are_numbered_through_a_resumed_run(inputs, with_bad_rows, monkeypatch):
    monkeypatch.setattr("services.trainer.corpus.texts.PIECE_BYTES", 20_000)
    chosen = options(
        inputs, with_bad_rows / "out", inputs=(with_bad_rows / "a.jsonl",), shard_bytes=20_000, skip_bad_rows=False
    )
    for _ in range(2):  # the second begins behind the shards that the first has finished
        with pytest.raises(JobFailure, match=r"a.jsonl, row 700: is no JSON"):
            tokenize(chosen)
    assert load_manifest(with_bad_rows / "out.json").shards[-1].last_row > 300


def test_shards_are_not_written_among_the_texts(inputs):
    with pytest.raises(JobFailure, match=r"lies among the inputs in .*/text; choose another"):
        tokenize(options(inputs, inputs / "text" / "out"))


def test_two_runs_do_not_write_the_same_shards(inputs, tmp_path):
    with _alone(tmp_path / "out"), pytest.raises(JobFailure, match=r"another run writes .*/out now; wait"):
        tokenize(options(inputs, tmp_path / "out"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"end": "<none>"}, "has no token '<none>' to end documents; name the token with --eos"),
        ({"tokenizer": Path("gone.json")}, "gone.json is not there; --tokenizer takes a tokenizer.json"),
        ({"tokenizer": ROOT / "pyproject.toml"}, "is no tokenizer.json"),
        ({"inputs": (Path("gone.jsonl"),)}, "gone.jsonl is no file or folder"),
    ],
)
def test_what_cannot_work_is_refused_before_a_worker_starts(inputs, tmp_path, changes, message):
    with pytest.raises(JobFailure, match=message):
        tokenize(options(inputs, tmp_path / "out", **changes))
