"""Compiles the operators ahead of time: `python -m bloom.cpu [LEVEL ...]`, as images and set-up scripts do."""

import argparse

from .compile import LEVELS, library, supported_levels


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bloom.cpu", description="Compile the CPU operators ahead of time.")
    parser.add_argument("levels", nargs="*", help=f"of {', '.join(LEVELS)}; default: the best for this processor")
    levels = parser.parse_args().levels or supported_levels()[:1]
    for level in levels:
        if level not in LEVELS:
            parser.error(f"no level {level!r}; choose of {', '.join(LEVELS)}")
        print(library(level))


if __name__ == "__main__":
    main()
