"""The commands: `python -m services.trainer.megatron import|export` (docs/training.md)."""

import argparse
import json
import sys
from pathlib import Path

from bloom.config import PRESETS, BloomConfig
from bloom.layout import Layout
from services.trainer.megatron.to_ours import to_ours
from services.trainer.megatron.to_theirs import to_theirs


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m services.trainer.megatron", description="BigScience's checkpoints."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    reading = commands.add_parser("import", help="theirs to a folder for `anthesis models import --with-state`")
    reading.add_argument("--config", required=True, help=f"{', '.join(PRESETS)}, or a config.json")
    writing = commands.add_parser("export", help="a checkpoint of ours to theirs")
    writing.add_argument("--layout", default="1x1x1", help="TPxPPxDP of the run that shall read it")
    for command in (reading, writing):
        command.add_argument("source", type=Path)
        command.add_argument("target", type=Path, help="new folder")
    args = parser.parse_args()
    try:
        if args.command == "import":
            step = to_ours(args.source, args.target, _config(args.config))
        else:
            step = to_theirs(args.source, args.target, Layout.parse(args.layout))
    except (ValueError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    print(f"{args.target}: written, step {step}")
    return 0


def _config(text: str) -> BloomConfig:
    return PRESETS[text] if text in PRESETS else BloomConfig.from_hf(json.loads(Path(text).read_text()))


if __name__ == "__main__":
    sys.exit(main())
