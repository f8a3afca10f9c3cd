"""Compiles the operators ahead of time: `python -m bloom.cpu [--all | LEVEL ...]`, as images and set-up scripts do."""

import argparse
import platform
import sys

from .compile import LEVELS, CannotBuild, library, supported_levels


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bloom.cpu", description="Compile the CPU operators ahead of time.")
    parser.add_argument("levels", nargs="*", help=f"of {', '.join(LEVELS)}; default: the best for this processor")
    parser.add_argument("--all", action="store_true", help="for an image, which does not know where it will run")
    arguments = parser.parse_args()
    levels = arguments.levels or supported_levels()[:1]
    if arguments.all:
        levels = list(LEVELS) if platform.machine() == "x86_64" else ["generic"]
    failed = []
    for level in levels:
        if level not in LEVELS:
            parser.error(f"no level {level!r}; choose of {', '.join(LEVELS)}")
        try:
            print(library(level))
        except CannotBuild as error:
            print(error, file=sys.stderr)
            failed.append(level)
    if failed:
        sys.exit(f"not compiled: {', '.join(failed)}")


if __name__ == "__main__":
    main()
