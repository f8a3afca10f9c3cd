"""A worker process under all that callers do wrong: `python -m benchmarks.soak [--minutes 30]`. Exit code 0: it held.

Clients complete calls, cancel them, drop their connection, send nonsense and give up by deadline, at random; sometimes
the engine process is killed. After each phase all is let end and the worker is looked at: every block free, neither
memory nor file descriptors nor asyncio tasks more than before.
"""

import argparse
import asyncio
import os
import random
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.contestants import WORK
from benchmarks.figures import table
from benchmarks.misbehaviour import ACTIONS, Outcome, perform
from benchmarks.protocol import status_bytes
from benchmarks.random_model import random_model
from benchmarks.worker import WorkerProcess, running_worker
from bloom.config import BloomConfig

SHAPE = BloomConfig(vocab_size=2048, hidden_size=128, n_layer=3, n_head=4, seq_length=512)
KV_BYTES = 2 << 20  # 85 blocks: some sequences are preempted
PHASES = 10
WARM_UP_PHASES = 2  # caches and pools fill
CLIENTS = 24
FREE_TIMEOUT_S = 10.0
SETTLE_S = 1.5  # for connections to close
KILL_PHASES = range(1, 5)  # later ones keep one engine, whose memory is watched
RESIDENT_GROWTH, RESIDENT_SLACK = 1.05, 8 << 20
FILES_SLACK, TASKS_SLACK = 4, 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """The worker at rest."""

    at_s: float
    calls: int
    free_blocks: int
    num_blocks: int
    worker_bytes: int
    engine_bytes: int
    engine_pids: tuple[int, ...]
    num_files: int
    num_tasks: int


@dataclass(kw_only=True, slots=True)
class Soak:
    """What happened."""

    outcomes: Counter[Outcome] = field(default_factory=Counter)
    looks: list[Look] = field(default_factory=list)
    kills: int = 0

    @property
    def num_calls(self) -> int:
        return sum(self.outcomes.values())


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description="Does the worker leak?")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=CLIENTS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=WORK, help="model and log (%(default)s)")
    return parser


async def soak(args: argparse.Namespace) -> Soak:
    work = args.work.resolve()
    model = random_model(work / "models" / "soak", SHAPE, weights="float32")
    engine = {"dtype": "float32", "threads": 1, "max_kv_bytes": KV_BYTES, "max_sequence_tokens": 512, "max_waiting": 12}
    result, start = Soak(), time.monotonic()
    async with running_worker(model, engine, log=work / "soak.log") as worker:
        for phase in range(PHASES):
            end = time.monotonic() + 60 * args.minutes / PHASES
            seed = args.seed + 1000 * phase
            await _phase(worker, result, end, seed=seed, num_clients=args.clients, kill=phase in KILL_PHASES)
            look = await look_at(worker, time.monotonic() - start, result.num_calls)
            result.looks.append(look)
            print(look, flush=True)
    return result


async def _phase(worker: WorkerProcess, result: Soak, end: float, *, seed: int, num_clients: int, kill: bool) -> None:
    """Clients until `end`; at half time the engine is killed."""

    async def client(number: int) -> None:
        draw = random.Random(seed + number)
        while time.monotonic() < end:
            action = draw.choices(list(ACTIONS), [ACTIONS[one] for one in ACTIONS])[0]
            outcome = await perform(worker, action, draw, SHAPE.vocab_size)
            result.outcomes[outcome] += 1

    async with asyncio.TaskGroup() as group:
        for number in range(num_clients):
            group.create_task(client(number))
        if kill:
            await asyncio.sleep((end - time.monotonic()) / 2)
            for pid in worker.engine_pids():
                os.kill(pid, signal.SIGKILL)
                result.kills += 1


async def look_at(worker: WorkerProcess, at_s: float, calls: int) -> Look:
    """After all calls have ended."""
    free_blocks, num_blocks = await worker.wait_until_free(FREE_TIMEOUT_S)
    await asyncio.sleep(SETTLE_S)
    engines = worker.engine_pids()
    return Look(
        at_s=at_s,
        calls=calls,
        free_blocks=free_blocks,
        num_blocks=num_blocks,
        worker_bytes=worker.resident_bytes(),
        engine_bytes=sum(status_bytes("VmRSS", pid) for pid in engines),
        engine_pids=tuple(engines),
        num_files=worker.num_files(),
        num_tasks=await worker.num_tasks(),
    )


def violations(result: Soak) -> list[str]:
    """What did not hold; nothing when all did."""
    found = [
        f"{count} calls to {one.action} ended as {one.status}"
        for one, count in result.outcomes.items()
        if not one.is_allowed
    ]
    for look in result.looks:
        if look.free_blocks != look.num_blocks:
            found.append(f"{look.num_blocks - look.free_blocks} blocks were not free after {look.at_s:.0f} s")
        if len(look.engine_pids) != 1:
            found.append(f"{len(look.engine_pids)} engine processes after {look.at_s:.0f} s, expected 1")
    settled = result.looks[WARM_UP_PHASES]
    last = result.looks[-1]
    same_engine = [look for look in result.looks if look.engine_pids == last.engine_pids]
    if _has_grown(settled.worker_bytes, last.worker_bytes):
        found.append(f"the worker grew from {_mib(settled.worker_bytes)} to {_mib(last.worker_bytes)} MiB")
    if _has_grown(same_engine[0].engine_bytes, last.engine_bytes):
        found.append(f"the engine grew from {_mib(same_engine[0].engine_bytes)} to {_mib(last.engine_bytes)} MiB")
    if last.num_files > settled.num_files + FILES_SLACK:
        found.append(f"open files went from {settled.num_files} to {last.num_files}")
    if last.num_tasks > settled.num_tasks + TASKS_SLACK:
        found.append(f"asyncio tasks went from {settled.num_tasks} to {last.num_tasks}")
    if not result.kills:
        found.append("no engine was killed; soak longer")
    return found


def _has_grown(before: int, after: int) -> bool:
    return after > before * RESIDENT_GROWTH + RESIDENT_SLACK


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f}"


def outcome_table(result: Soak) -> str:
    lines = sorted([one.action, one.status, str(count)] for one, count in result.outcomes.items())
    return table(["action", "ended as", "calls"], lines)


def look_table(result: Soak) -> str:
    lines = [
        [
            f"{look.at_s:.0f}",
            str(look.calls),
            f"{look.free_blocks}/{look.num_blocks}",
            _mib(look.worker_bytes),
            _mib(look.engine_bytes),
            str(look.num_files),
            str(look.num_tasks),
        ]
        for look in result.looks
    ]
    return table(["s", "calls", "free blocks", "worker MiB", "engine MiB", "files", "tasks"], lines)


def main() -> int:
    args = parser().parse_args()
    result = asyncio.run(soak(args))
    print(outcome_table(result))
    print()
    print(look_table(result))
    found = violations(result)
    print(f"\n{result.num_calls} calls, {result.kills} engines killed.", *found, sep="\n")
    print("It did NOT hold." if found else "It held.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
