"""Requests of random lengths, when they arrive, and what their streams look like in time."""

import asyncio
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from benchmarks.protocol import PROMPT_IDS
from benchmarks.worker import WorkerProcess

POLL_S = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Lengths:
    """Uniform between least and greatest, both included; in tokens."""

    prompt: tuple[int, int] = (16, 1024)
    output: tuple[int, int] = (16, 256)

    @property
    def mean_output(self) -> float:
        return sum(self.output) / 2


@dataclass(frozen=True, slots=True)
class Request:
    prompt_ids: list[int]
    max_tokens: int


@dataclass(slots=True)
class Stream:
    """When the tokens of one request came, in seconds from its sending."""

    arrivals: list[float] = field(default_factory=list)

    @property
    def first_s(self) -> float:
        return self.arrivals[0]

    @property
    def gaps_s(self) -> list[float]:
        """Between one token and the next; 0 for two of one message."""
        return [later - earlier for earlier, later in zip(self.arrivals, self.arrivals[1:], strict=False)]


def requests(lengths: Lengths, *, vocab: int, seed: int) -> Iterator[Request]:
    """No end; the same for one seed."""
    draw = random.Random(seed)
    top = min(PROMPT_IDS[1], vocab)
    while True:
        length, count = draw.randint(*lengths.prompt), draw.randint(*lengths.output)
        yield Request([draw.randrange(PROMPT_IDS[0], top) for _ in range(length)], count)


def arrival_times(rate: float, duration_s: float, *, seed: int) -> list[float]:
    """A Poisson process of `rate` requests/s over `duration_s`, in seconds from its start."""
    draw, now, times = random.Random(seed), 0.0, []
    while (now := now + draw.expovariate(rate)) < duration_s:
        times.append(now)
    return times


def percentile(values: Sequence[float], percent: float) -> float:
    """The least of `values` that `percent` of them do not exceed (nearest rank)."""
    if not values:
        raise ValueError("no values have no percentile; measure longer")
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


async def stream(worker: WorkerProcess, request: Request, stream: Stream | None = None) -> Stream:
    """Send it and read it to its end."""
    stream = Stream() if stream is None else stream
    start = time.perf_counter()
    async for message in worker.generate(request.prompt_ids, request.max_tokens):
        now = time.perf_counter() - start
        stream.arrivals += [now] * len(message.tokens)
    return stream


async def open_loop(worker: WorkerProcess, given: Iterator[Request], times: Sequence[float]) -> list[Stream]:
    """Send one at each time, however many are still under way; all streams once the last has ended."""
    start = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        tasks = []
        for at in times:
            await asyncio.sleep(max(0.0, at - (time.perf_counter() - start)))
            tasks.append(group.create_task(stream(worker, next(given))))
    return [task.result() for task in tasks]


async def capacity(worker: WorkerProcess, given: Iterator[Request], *, streams: int, duration_s: float) -> float:
    """Output tokens/s with so many requests always under way, once all of the first have begun to answer."""
    running = [Stream() for _ in range(streams)]

    async def client(number: int) -> None:
        while True:
            await stream(worker, next(given), running[number])

    clients = [asyncio.create_task(client(number)) for number in range(streams)]
    try:
        while not all(one.arrivals for one in running):  # noqa: ASYNC110 - all prompts come at once
            await asyncio.sleep(POLL_S)
        before, start = sum(len(one.arrivals) for one in running), time.perf_counter()
        done, _ = await asyncio.wait(clients, timeout=duration_s, return_when=asyncio.FIRST_EXCEPTION)
        for client_task in done:
            client_task.result()
        return (sum(len(one.arrivals) for one in running) - before) / (time.perf_counter() - start)
    finally:
        for task in clients:
            task.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
