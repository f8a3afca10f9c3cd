"""Jobs submitted at a rate, watched, and read, while a file is uploaded: `python -m benchmarks.submissions`.

For each database: a registry in a process of its own; jobs at `--rate` a second for `--seconds`, each by an idempotency
key; `--watchers` streams, each on a job until it ends; reads of a job and of a model, one after another; an upload of
`--mb`. At the end every job is counted, cancelled, and every watcher has to have seen that.
"""

import argparse
import asyncio
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from anthesis import AsyncClient, PretrainSpec, Settings, TrainOptions
from anthesis.v1.job_pb2 import JOB_STATE_CANCELLED
from anthesis.v1.registry_pb2 import DATASET_FORMAT_TEXT

from benchmarks.contestants import WORK
from benchmarks.figures import short, table
from benchmarks.goals import Goal
from benchmarks.machine import cpu_name
from benchmarks.registry_process import DATABASES, running_registry

RATE_GOAL, READ_GOAL_MS = 50.0, 50.0
MODEL = {"model_type": "bloom", "vocab_size": 0, "hidden_size": 48, "n_layer": 2, "n_head": 6}


@dataclass(kw_only=True)
class Result:
    accepted: int
    lost: int  # accepted, and not there at the end, or not seen to its end by its watcher
    rate: float  # accepted, per second
    submit_ms: list[float] = field(default_factory=list)
    read_ms: list[float] = field(default_factory=list)
    upload_mb_s: float = 0.0


async def timed(call: Callable[[], Awaitable[object]], into: list[float]) -> object:
    """What `call` returns; appends its milliseconds."""
    start = time.perf_counter()
    answer = await call()
    into.append(1e3 * (time.perf_counter() - start))
    return answer


async def measure(settings: Settings, arguments: argparse.Namespace, folder: Path) -> Result:
    async with AsyncClient(settings) as client:
        rows = (folder / "rows.jsonl", folder / "upload")
        rows[0].write_text("".join(json.dumps({"text": f"row {number}"}) + "\n" for number in range(100)))
        tokenizer = (await client.artifacts.upload_bytes(tokenizer_json())).digest
        await client.datasets.upload("texts", rows[0], DATASET_FORMAT_TEXT)
        with rows[1].open("wb") as file:
            for _ in range(arguments.mb):
                file.write(os.urandom(1_000_000))
        result = Result(accepted=0, lost=0, rate=0.0)
        jobs: list[str] = []
        watchers: list[asyncio.Task[int]] = []

        async def submit(number: int) -> None:
            spec = PretrainSpec(
                output_model="benchmark",
                tokenizer_digest=tokenizer,
                datasets=["texts"],
                config=json.dumps(MODEL),
                options=TrainOptions(steps=10),
            )
            job = await timed(lambda: client.jobs.create(spec, idempotency_key=f"job-{number}"), result.submit_ms)
            jobs.append(job.id)  # type: ignore[attr-defined]
            if len(watchers) < arguments.watchers:
                watchers.append(asyncio.create_task(last_state(client, jobs[-1])))

        async def read() -> None:
            while True:
                if jobs:
                    await timed(lambda: client.jobs.get(jobs[-1]), result.read_ms)
                await timed(lambda: client.models.get("bigscience/bloom-560m"), result.read_ms)

        async def upload() -> None:
            start = time.perf_counter()
            await client.artifacts.upload(rows[1])
            result.upload_mb_s = arguments.mb / (time.perf_counter() - start)

        uploading = asyncio.create_task(upload())
        reading = asyncio.create_task(read())
        start = time.perf_counter()
        submitting = []
        for number in range(round(arguments.rate * arguments.seconds)):
            await asyncio.sleep(max(0.0, start + number / arguments.rate - time.perf_counter()))
            submitting.append(asyncio.create_task(submit(number)))
        await asyncio.gather(*submitting)
        result.accepted, result.rate = len(jobs), len(jobs) / (time.perf_counter() - start)
        await uploading
        reading.cancel()
        listed = {job.id for job in await client.jobs.list()}
        for job_id in jobs:
            await client.jobs.cancel(job_id)
        seen = await asyncio.gather(*watchers)
        result.lost = len(set(jobs) - listed) + sum(state != JOB_STATE_CANCELLED for state in seen)
        return result


async def last_state(client: AsyncClient, job_id: str) -> int:
    """Follow a job to its end; 0 where an event is missing or comes twice."""
    state, expected = 0, 1
    async for event in client.jobs.watch(job_id):
        if event.sequence != expected:
            return 0
        expected += 1
        state = event.state or state
    return state


def tokenizer_json(num_ids: int = 280) -> bytes:
    """Enough of a tokenizer for a registry, which does not tokenize."""
    vocabulary = {f"token{number}": number for number in range(num_ids)}
    return json.dumps({"added_tokens": [], "model": {"type": "BPE", "vocab": vocabulary, "merges": []}}).encode()


def p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[98]


def goals_of(database: str, result: Result, rate: float) -> list[Goal]:
    slow = p99(result.read_ms)
    return [
        Goal(text=f"{database}: submissions a second", value=result.rate, bound=0.98 * rate, unit=""),
        Goal(text=f"{database}: jobs lost", value=result.lost, bound=0, unit="", at_most=True),
        Goal(text=f"{database}: p99 of a read", value=slow, bound=READ_GOAL_MS, unit=" ms", at_most=True),
    ]


def report(results: dict[str, Result]) -> str:
    header = [
        "database",
        "jobs",
        "a second",
        "lost",
        "submit, ms: median, p99",
        "read, ms: median, p99",
        "upload, MB/s",
    ]
    return table(header, [_line(database, result) for database, result in results.items()])


def _line(database: str, result: Result) -> list[str]:
    submits, reads = (f"{short(statistics.median(ms))}, {short(p99(ms))}" for ms in (result.submit_ms, result.read_ms))
    return [
        database,
        str(result.accepted),
        short(result.rate),
        str(result.lost),
        submits,
        reads,
        short(result.upload_mb_s),
    ]


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.submissions", description=__doc__.split("\n")[0])
    parser.add_argument("--databases", nargs="+", choices=DATABASES, default=list(DATABASES))
    parser.add_argument("--rate", type=float, default=RATE_GOAL, help="jobs a second")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--watchers", type=int, default=100)
    parser.add_argument("--mb", type=int, default=2000, help="of the upload")
    parser.add_argument("--work", type=Path, default=WORK)
    return parser


def main() -> int:
    arguments = parser().parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    results = {}
    for database in arguments.databases:
        folder = Path(tempfile.mkdtemp(prefix="an-", dir=arguments.work))
        try:
            with running_registry(folder / "data", database) as settings:
                results[database] = asyncio.run(measure(settings, arguments, folder))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    goals = [goal for database, result in results.items() for goal in goals_of(database, result, arguments.rate)]
    print(
        f"{cpu_name()}; {arguments.rate:g} jobs a second, {arguments.watchers} watchers, {arguments.mb} MB going up\n"
    )
    print(report(results), end="\n\n")
    lines = [[goal.text, f"{goal.value:.3g}{goal.unit}", f"{goal.bound:g}{goal.unit}"] for goal in goals]
    print(table(["goal", "measured", "bound"], lines))
    return 0 if all(goal.reached for goal in goals) else 2


if __name__ == "__main__":
    sys.exit(main())
