"""How far a tokenizing run is: a bar on a terminal, a line for each shard elsewhere."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from services.trainer.corpus.run import Done


@contextlib.contextmanager
def shown(console: Console) -> Iterator[Callable[[Done], None]]:
    """What a run calls with how far it is, while the body runs."""
    if not console.is_terminal:
        yield _Lines(console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), TextColumn("{task.fields[tokens]}"), console=console) as bar:
        task = bar.add_task("tokenizing", total=None, tokens="")

        def show(done: Done) -> None:
            description = f"shard {done.shard + 1} of {done.num_shards}"
            tokens = f"{done.num_tokens:,} tokens"
            bar.update(task, description=description, completed=done.read_bytes, total=done.of_bytes, tokens=tokens)

        yield show


class _Lines:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._shard = -1
        self._start = time.monotonic()

    def __call__(self, done: Done) -> None:
        if done.shard == self._shard:
            return
        self._shard = done.shard
        where = f"shard {done.shard + 1} of {done.num_shards}, {done.read_bytes:,} of {done.of_bytes:,} bytes"
        self._console.print(f"{time.monotonic() - self._start:.0f} s: {where}, {done.num_tokens:,} tokens")
