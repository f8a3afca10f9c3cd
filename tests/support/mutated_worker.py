"""A Celery worker whose ranks have a mistake of mutated_training: `python -m tests.support.mutated_worker MISTAKE …`.

What follows are celery's arguments.
"""

import sys
from pathlib import Path

from celery.__main__ import main

from bloom.layout import Layout
from services.trainer import attempt
from services.trainer.launch import deepspeed_command
from tests.support.training import mutated

if __name__ == "__main__":
    mistake = sys.argv.pop(1)

    def command(folder: Path, layout: Layout) -> list[str]:
        return mutated(deepspeed_command(folder, layout), mistake)

    attempt.deepspeed_command = command  # type: ignore[attr-defined]
    main()
