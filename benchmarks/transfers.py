"""Up to a registry and down again beside a plain copy: `python -m benchmarks.transfers [--mb 1024] [--rounds 3]`.

Per round, in turns and with bytes that no round had before: a copy of a file that is hashed as it is copied and synced
at its end; the SDK's upload of it to a registry in a process of its own; its download to another file. All from the
page cache to the same disk. The upload hashes the file before it sends it, because what is there is not sent.
"""

import argparse
import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from anthesis import Client
from anthesis.artifacts import digest_file

from benchmarks.contestants import WORK
from benchmarks.figures import Figure, table
from benchmarks.machine import cpu_name
from benchmarks.registry_process import running_registry

GOAL = 0.7  # of the copy
COPY, UP, DOWN = "plain copy", "upload", "download"


def copy(source: Path, target: Path) -> None:
    """What any way of storing a file verified and for good has to do."""
    sha256 = hashlib.sha256()
    with source.open("rb") as reading, target.open("wb") as writing:
        while chunk := reading.read(1 << 20):
            sha256.update(chunk)
            writing.write(chunk)
        writing.flush()
        os.fsync(writing.fileno())


def fill(path: Path, megabytes: int) -> None:
    """Bytes that nothing compresses and no earlier file had."""
    with path.open("wb") as file:
        for _ in range(megabytes):
            file.write(os.urandom(1_000_000))


def seconds(work: Callable[[], object]) -> float:
    os.sync()  # what others wrote before is not ours to wait for
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(client: Client, folder: Path, megabytes: int) -> dict[str, float]:
    """Seconds of each, once."""
    source, copied, received = (folder / name for name in ("source", "copied", "received"))
    fill(source, megabytes)
    digest = digest_file(source)
    took = {
        COPY: seconds(lambda: copy(source, copied)),
        UP: seconds(lambda: client.artifacts.upload(source)),
        DOWN: seconds(lambda: client.artifacts.download(digest, received)),
    }
    if digest_file(received) != digest:
        raise RuntimeError(f"{received} is not what was sent")
    copied.unlink()
    received.unlink()
    return took


def report(rounds: list[dict[str, float]], megabytes: int) -> tuple[str, float]:
    """The table, and the lesser of upload's and download's share of the copy's speed."""
    speeds = {name: [megabytes / took[name] for took in rounds] for name in (COPY, UP, DOWN)}
    shares = {name: Figure.of([took[COPY] / took[name] for took in rounds]) for name in (UP, DOWN)}
    lines = [[name, str(Figure.of(values)), str(shares.get(name, "1"))] for name, values in speeds.items()]
    return table(["", "MB/s", "of the copy"], lines), min(share.median for share in shares.values())


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transfers", description=__doc__.split("\n")[0])
    parser.add_argument("--mb", type=int, default=1024, help="of the file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=WORK)
    return parser


def main() -> int:
    arguments = parser().parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="an-", dir=arguments.work))
    rounds = []
    try:
        with running_registry(folder / "data") as settings, Client(settings) as client:
            for _ in range(arguments.rounds):
                rounds.append(measure(client, folder, arguments.mb))
                print(", ".join(f"{name} {took:.2f} s" for name, took in rounds[-1].items()), file=sys.stderr)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    shown, share = report(rounds, arguments.mb)
    print(f"{cpu_name()}; {arguments.mb} MB, {arguments.rounds} rounds\n\n{shown}")
    reached = share >= GOAL
    print(f"\ngoal: at least {GOAL} of the plain copy's speed: {share:.2f}, ", end="")
    print("reached" if reached else "MISSED")
    return 0 if reached else 2


if __name__ == "__main__":
    sys.exit(main())
