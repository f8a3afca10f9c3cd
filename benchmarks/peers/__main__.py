"""`python -m benchmarks.peers install [--work FOLDER]`."""

import argparse
import subprocess
import sys
from pathlib import Path

from benchmarks.contestants import WORK
from benchmarks.peers.install import install


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description="What we are compared with.")
    commands = parser.add_subparsers(dest="command", required=True)
    installing = commands.add_parser("install", help="environments and model files; keeps what is there")
    installing.add_argument("--work", type=Path, default=WORK, help="folder with 15 GB of room (%(default)s)")
    return parser


def main() -> int:
    args = parser().parse_args()
    try:
        install(args.work.resolve())
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
