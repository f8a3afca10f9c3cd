"""`python -m services.trainer.cleaning [CONFIG.yaml] [--SETTING VALUE ...]`: clean a folder of text.

Every setting of CleaningConfig is a flag; flags override the file.
"""

import argparse
import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from datatrove.io import get_datafolder

from services.trainer.cleaning.config import CleaningConfig
from services.trainer.cleaning.errors import ConfigError
from services.trainer.cleaning.stages import run

RUN_FILE = "config.json"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m services.trainer.cleaning", description=__doc__)
    parser.add_argument("config", nargs="?", type=Path, help="YAML file with settings")
    for setting in fields(CleaningConfig):
        parser.add_argument(f"--{setting.name.replace('_', '-')}", type=_value, default=argparse.SUPPRESS)
    flags = vars(parser.parse_args(arguments))
    try:
        config = CleaningConfig.read(flags.pop("config"), flags).resolved()
        _claim(config)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    run(config)
    print(f"{config.output}/report.md" if config.executor != "slurm" else "submitted; the last job writes report.md")
    return 0


def _value(text: str) -> Any:
    """A flag's value is written as in the file: `--pii "[EMAIL, KEY]"`, `--foreign-lines false`."""
    return yaml.safe_load(text)


def _claim(config: CleaningConfig) -> None:
    """Completed tasks are not run again, so an output folder belongs to one configuration. Raises ConfigError."""
    folder, ours = get_datafolder(config.output), json.dumps(config.as_dict(), sort_keys=True, indent=1)
    if folder.exists(RUN_FILE):
        with folder.open(RUN_FILE, "rt") as file:
            if file.read() != ours:
                raise ConfigError(
                    f"output={config.output} holds a run with other settings; name another folder, or delete this one"
                )
    with folder.open(RUN_FILE, "wt") as file:
        file.write(ours)


if __name__ == "__main__":
    sys.exit(main())
