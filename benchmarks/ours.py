"""Our engine in this process, driven as the engine process drives it."""

from pathlib import Path
from typing import Any

from benchmarks import shapes
from benchmarks.protocol import Loaded, Prompts, Task, contend, status_bytes
from bloom.checkpoint import load_config
from bloom.config import BloomConfig

BLOCK_SIZE = 16
MAX_BATCHED_TOKENS = 4096  # as in vLLM's recipe: all prompts of a batch in one step
CONTEXT_SLACK = 16  # tokens of each sequence's cache beyond what the task needs


def settings(task: Task) -> dict[str, Any]:
    """EngineConfig's fields. The cache holds the largest batch and no more, so that it counts as memory in full.

    Prefix caching is off, here as for the peers: the prompts of two runs are the same.
    """
    longest = max(task.prompt_tokens + task.new_tokens, task.prefill_tokens + 1) + CONTEXT_SLACK
    largest = max(task.batches, default=1) * (task.prompt_tokens + task.new_tokens + CONTEXT_SLACK)
    num_blocks = -(-max(longest, largest) // BLOCK_SIZE) + 1
    values: dict[str, Any] = {
        "threads": task.threads,
        "block_size": BLOCK_SIZE,
        "max_sequence_tokens": longest,
        "max_batched_tokens": MAX_BATCHED_TOKENS,
        "max_kv_bytes": num_blocks * block_bytes(load_config(task.model), task.weights),
        "prefix_caching": False,
    }
    if task.weights.startswith("int8"):
        values["weights"] = task.weights
    else:
        values["dtype"] = task.weights
    return values


def block_bytes(config: BloomConfig, weights: str) -> int:
    return shapes.kv_block_bytes(config, block_size=BLOCK_SIZE, kv_bytes=4 if weights == "float32" else 2)


def open_engine(task: Task, **changes: Any) -> tuple[Any, Any]:
    """The engine and what it says of itself. `task.weights`: bfloat16, float32, int8 or int8_dynamic."""
    from services.inference.config import EngineConfig
    from services.inference.engine import load_engine

    rows = load_config(task.model).vocab_size
    return load_engine(Path(task.model), EngineConfig(**settings(task) | changes), num_token_ids=rows)


def load(task: Task) -> Loaded:
    import services.inference.engine  # noqa: F401 - what it takes is no part of the model

    imports_bytes = status_bytes("VmRSS")
    engine, ready = open_engine(task)
    config = load_config(task.model)
    return Loaded(
        generate=Driver(engine).generate,
        version=f"anthesis, {ready.device}, {ready.dtype}",
        weight_bytes=shapes.weight_bytes(config, task.weights),
        imports_bytes=imports_bytes,
        cache_bytes=ready.num_blocks * block_bytes(config, task.weights),
        facts={"executor": type(engine._executor).__name__},
    )


class Driver:
    """Submits prompts and steps until all have ended; every step's events are encoded, as for the worker."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._next_id = 0

    def generate(self, given: Prompts, count: int) -> list[list[int]]:
        first_id = self._next_id
        self.submit(given, count)
        outputs: list[list[int]] = [[] for _ in given]
        while self._engine.has_work:
            for event in self.step():
                outputs[event.request_id - first_id].append(event.id)
        return outputs

    def submit(self, given: Prompts, count: int) -> None:
        """Raises RuntimeError when the engine refuses one."""
        from services.inference.messages import Generate
        from services.inference.sampling import SamplingParams

        sampling = SamplingParams(seed=0, temperature=0.0, max_tokens=count)
        for prompt in given:
            message = Generate(request_id=self._next_id, prompt_ids=prompt, sampling=sampling)
            self._next_id += 1
            if refused := self._engine.handle(message):
                raise RuntimeError(f"the engine refused a prompt of {len(prompt)} ids: {refused}")

    def step(self) -> list[Any]:
        """One step's events: tokens."""
        from services.inference.messages import StepDone, encode

        events: list[Any] = self._engine.step()
        encode(StepDone(events, self._engine.stats))
        return events


if __name__ == "__main__":
    contend(load)
