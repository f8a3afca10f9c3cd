"""How every contestant is measured: the same prompts, the same clock, rows of JSON on standard output.

Standard library only: peers run it in environments of their own. A contestant is a process of its own,
`python -m <module> <task as JSON>`, whose `main` is `contend(load)`.
"""

import json
import os
import random
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

Prompts = list[list[int]]
Generate = Callable[[Prompts, int], list[list[int]]]  # (prompts, n) -> n new ids of each: greedy, </s> ignored
ROW = "ROW "  # before each row on standard output, where libraries write as well
PROMPT_IDS = (10, 250_000)  # ids are drawn from here
WARM_UP = (8, 4)  # tokens of a prompt, new tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What one contestant does once."""

    model: str  # a folder or file in the contestant's own format
    weights: str  # as the contestant calls the format, for example bfloat16
    threads: int = 2
    prompt_tokens: int = 128
    new_tokens: int = 64
    batches: tuple[int, ...] = (1, 8, 32)
    prefill_tokens: int = 512

    @classmethod
    def from_json(cls, text: str) -> "Task":
        values = json.loads(text)
        return cls(**values | {"batches": tuple(values["batches"])})

    def to_json(self) -> str:
        return json.dumps(asdict(self))


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """A model that is ready, and what is to be said of it."""

    generate: Generate
    version: str
    weight_bytes: int = 0  # 0: not known
    cache_bytes: int = 0
    imports_bytes: int = 0  # resident before the model came
    facts: Mapping[str, Any] = field(default_factory=dict)


def contend(load: Callable[[Task], Loaded]) -> None:
    """Load, generate the first token, then measure what `sys.argv[1]` asks for; both times are from process start."""
    task = Task.from_json(sys.argv[1])
    loaded = load(task)
    load_s = since_process_start_s()
    loaded.generate(prompts(1, task.prompt_tokens), 1)
    first_token_s = since_process_start_s()
    emit("start", load_s=load_s, first_token_s=first_token_s, version=loaded.version, **loaded.facts)
    measure_prefill(loaded.generate, task)
    for batch in task.batches:
        measure_decode(loaded.generate, task, batch)
    emit(
        "memory",
        resident_bytes=status_bytes("VmRSS"),
        peak_bytes=status_bytes("VmHWM"),
        weight_bytes=loaded.weight_bytes,
        cache_bytes=loaded.cache_bytes,
        imports_bytes=loaded.imports_bytes,
    )


def measure_prefill(generate: Generate, task: Task) -> None:
    """Time to the first token of one long prompt, the second time it is seen."""
    batch = prompts(1, task.prefill_tokens)
    generate(batch, 1)
    seconds, _ = timed(generate, batch, 1)
    emit("prefill", tokens=task.prefill_tokens, seconds=seconds, tokens_per_s=task.prefill_tokens / seconds)


def measure_decode(generate: Generate, task: Task, batch: int) -> None:
    """Two runs side by side, one of a single new token: their difference is the decoding alone."""
    generate(prompts(batch, WARM_UP[0]), WARM_UP[1])
    given = prompts(batch, task.prompt_tokens)
    first_s, _ = timed(generate, given, 1)
    whole_s, outputs = timed(generate, given, task.new_tokens)
    seconds = whole_s - first_s
    tokens = batch * (task.new_tokens - 1)
    emit(
        "decode",
        batch=batch,
        tokens_per_s=tokens / seconds,
        step_ms=1e3 * seconds / (task.new_tokens - 1),
        first_token_s=first_s,
        first_ids=outputs[0][:4],
    )


def timed(generate: Generate, given: Prompts, count: int) -> tuple[float, list[list[int]]]:
    """Seconds, and the new ids; raises RuntimeError when there are not `count` of each prompt."""
    start = time.perf_counter()
    outputs = generate(given, count)
    seconds = time.perf_counter() - start
    if [len(ids) for ids in outputs] != [count] * len(given):
        raise RuntimeError(f"asked {len(given)} prompts for {count} ids each, got {[len(ids) for ids in outputs]}")
    return seconds, outputs


def prompts(batch: int, length: int, *, seed: int = 0) -> Prompts:
    """The same for every contestant."""
    draw = random.Random(seed)
    return [[draw.randrange(*PROMPT_IDS) for _ in range(length)] for _ in range(batch)]


def emit(kind: str, **values: Any) -> None:
    """Write one row. Floats keep six digits."""
    rounded = {key: float(f"{value:.6g}") if isinstance(value, float) else value for key, value in values.items()}
    print(ROW + json.dumps({"kind": kind} | rounded), flush=True)


def since_process_start_s() -> float:
    """Since the kernel started this process, to 10 ms."""
    with open("/proc/self/stat") as file:
        started_ticks = int(file.read().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started_ticks / os.sysconf("SC_CLK_TCK")


def status_bytes(name: str, pid: int | str = "self") -> int:
    """VmRSS, VmHWM, RssAnon ... of a process."""
    with open(f"/proc/{pid}/status") as file:
        for line in file:
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/{pid}/status has no {name}; is this Linux?")
