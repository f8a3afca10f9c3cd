"""What the same bits in any batch cost: `python -m benchmarks.batch_invariance`.

Milliseconds of a decode step at each batch, with `batch_invariant` and without it; and whether a sequence's logits are
bitwise the same alone and among 31 neighbours. The operators of bloom.cpu have no other mode: there is one column.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks import shapes
from benchmarks.contestants import WORK
from benchmarks.figures import Figure, table
from benchmarks.machine import cpu_name
from benchmarks.ours import BLOCK_SIZE, open_engine
from benchmarks.protocol import Task
from benchmarks.random_model import random_model
from bloom.config import BloomConfig
from services.inference.cpu_executor import CpuExecutor
from services.inference.executor import Executor
from services.inference.step_batch import StepBatch

NEIGHBOURS = 31
DECODES = 16  # tokens that the check goes on for after the prompt
Ids = NDArray[np.int64]
Step = Mapping[int, tuple[Ids, int]]  # sequence -> its new ids, and how many of its tokens are in the cache


def logits_alone_and_among_neighbours(
    executor: Executor, *, vocab: int, prompt_tokens: int, num_neighbours: int = NEIGHBOURS
) -> tuple[Tensor, Tensor]:
    """(prompt_tokens + DECODES, vocab) of one sequence: its prompt whole, then in pieces beside others' of all lengths.

    The cache has room for that of every sequence, rounded up to blocks; the second time this one lies in other blocks.
    """
    length = prompt_tokens + DECODES
    ids = [np.random.default_rng(seed).integers(vocab, size=length) for seed in range(num_neighbours + 1)]

    def pieces(sequence: int, *sizes: int) -> list[tuple[Ids, int]]:
        """Of a prompt, one a step, and then the decodes."""
        all_sizes = [*sizes, *[1] * DECODES]
        ends = np.cumsum(all_sizes).tolist()
        return [(ids[sequence][end - size : end], end - size) for end, size in zip(ends, all_sizes, strict=True)]

    cut, last = prompt_tokens // 3, num_neighbours
    alone: list[Step] = [{0: piece} for piece in pieces(last, prompt_tokens)]
    among: list[dict[int, tuple[Ids, int]]] = [{last: x} for x in pieces(last, cut, 1, prompt_tokens - cut - 1)]
    for other in range(num_neighbours):
        begin = 1 + (prompt_tokens - 3) * other // num_neighbours
        for step, piece in zip(among, pieces(other, begin, 1 + other % 2, 1), strict=True):
            step[other] = piece
    return _logits_of(executor, 0, alone, length), _logits_of(executor, last, among, length)


def _logits_of(executor: Executor, sequence: int, steps: Sequence[Step], length: int) -> Tensor:
    rows = []
    for step in steps:
        batch, order = packed(step, length)
        hidden = executor.forward(batch)
        starts, ends = batch.query_starts[:-1], batch.query_starts[1:]
        place = order.index(sequence)
        own = range(starts[place], ends[place])
        logits = executor.logits(hidden[[*own, *np.delete(ends - 1, place)]])  # of the others, too: the head batches
        rows.append(torch.as_tensor(logits[: len(own)]).clone())
    return torch.cat(rows)


def packed(step: Step, length: int) -> tuple[StepBatch, list[int]]:
    """The batch, and its sequences in their order there. Each may have `length` tokens in all."""
    order = sorted(step, key=lambda sequence: len(step[sequence][0]) > 1)  # single tokens are first
    new = [step[sequence][0] for sequence in order]
    width = -(-length // BLOCK_SIZE)
    batch = StepBatch(
        input_ids=np.concatenate(new),
        query_starts=np.cumsum([0, *map(len, new)], dtype=np.int32),
        context_lens=np.array([step[sequence][1] + len(step[sequence][0]) for sequence in order], dtype=np.int32),
        block_tables=np.array([range(n * width, (n + 1) * width) for n in order], dtype=np.int32),
        num_needed=np.array([*map(len, new)], dtype=np.int32),
        copies=np.zeros((0, 2), dtype=np.int32),
    )
    return batch, order


def decode_ms(executor: Executor, *, batch: int, prompt_tokens: int, num_steps: int) -> Figure:
    """Of steps in which every sequence has a context of prompt_tokens, as the check left it, and one new token."""
    one_token = {n: (np.array([n], dtype=np.int64), prompt_tokens - 1) for n in range(batch)}
    step, _ = packed(one_token, prompt_tokens + DECODES)
    times = []
    for _ in range(num_steps + 2):
        start = time.perf_counter()
        float(executor.logits(executor.forward(step)).sum())  # waits for a GPU
        times.append(1e3 * (time.perf_counter() - start))
    return Figure.of(times[2:])


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.batch_invariance", description="What the same bits in any batch cost."
    )
    parser.add_argument("--weights", default="bfloat16", choices=tuple(shapes.WEIGHT_BYTES))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32], help="of at most 32 (%(default)s)")
    parser.add_argument("--steps", type=int, default=30, help="timed at each batch (%(default)s)")
    parser.add_argument("--prompt", type=int, default=128, help="tokens (%(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--preset", default="560m")
    parser.add_argument("--work", type=Path, default=WORK, help="models (%(default)s)")
    return parser


def run(args: argparse.Namespace) -> bool:
    """Print the table; whether the bits were the same in batch-invariant mode."""
    config = BloomConfig.preset(args.preset)
    stored = "float32" if args.weights == "float32" else "bfloat16"
    task = Task(
        model=str(random_model(args.work / "models" / f"{args.preset}-{stored}", config, weights=stored)),
        weights=args.weights,
        threads=args.threads,
        prompt_tokens=args.prompt,
        new_tokens=DECODES,
        batches=(NEIGHBOURS + 1,),
        prefill_tokens=args.prompt,
    )
    columns: dict[str, list[str]] = {}
    with _executor(task, batch_invariant=True) as executor:
        columns["batch-invariant, ms"], same = _measure(executor, config, args)
        has_one_mode = isinstance(executor, CpuExecutor)
    if not has_one_mode:
        with _executor(task, batch_invariant=False) as executor:
            columns["not, ms"], _ = _measure(executor, config, args)
    device = cpu_name() if has_one_mode else torch.cuda.get_device_name()
    print(f"bloom-{args.preset}, {args.weights}, {device}: a decode step, {args.prompt} tokens of context\n")
    lines = list(zip(map(str, args.batches), *columns.values(), strict=True))
    print(table(["batch", *columns], lines))
    if has_one_mode:
        print("\nbloom.cpu: every step is batch-invariant; there is nothing to switch off, so it costs nothing.")
    print(f"\nLogits alone and among {NEIGHBOURS} neighbours are {'bitwise the same' if same else 'NOT the same'}.")
    return same


def _measure(executor: Executor, config: BloomConfig, args: argparse.Namespace) -> tuple[list[str], bool]:
    """Step times by batch, and whether the bits are the same."""
    alone, among = logits_alone_and_among_neighbours(executor, vocab=config.vocab_size, prompt_tokens=args.prompt)
    times = [
        str(decode_ms(executor, batch=batch, prompt_tokens=args.prompt, num_steps=args.steps)) for batch in args.batches
    ]
    return times, torch.equal(alone, among)


@contextmanager
def _executor(task: Task, *, batch_invariant: bool) -> Iterator[Executor]:
    engine, _ = open_engine(task, batch_invariant=batch_invariant)
    with closing(engine), torch.inference_mode():
        yield engine._executor


def main() -> int:
    args = parser().parse_args()
    try:
        if max(args.batches) > NEIGHBOURS + 1:
            raise ValueError(f"--batches {max(args.batches)} is above {NEIGHBOURS + 1}; use smaller ones")
        return 0 if run(args) else 1
    except (OSError, RuntimeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
