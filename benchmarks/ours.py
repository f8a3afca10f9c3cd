"""Our engine in this process, driven as the engine process drives it."""

from pathlib import Path
from typing import Any

from benchmarks.protocol import Loaded, Prompts, Task, contend

CONTEXT_SLACK = 16  # tokens of each sequence's cache beyond what the task needs


def settings(task: Task, kv_block_bytes: int) -> dict[str, Any]:
    """EngineConfig's fields. The cache holds the largest batch and no more, so that it counts as memory in full.

    Prefix caching is off, here as for the peers: the prompts of two runs are the same.
    """
    longest = max(task.prompt_tokens + task.new_tokens, task.prefill_tokens + 1) + CONTEXT_SLACK
    largest = max(task.batches, default=1) * (task.prompt_tokens + task.new_tokens + CONTEXT_SLACK)
    num_blocks = -(-max(longest, largest) // 16) + 1
    values: dict[str, Any] = {
        "threads": task.threads,
        "max_sequence_tokens": longest,
        "max_kv_bytes": num_blocks * kv_block_bytes,
        "prefix_caching": False,
    }
    if task.weights.startswith("int8"):
        values["weights"] = task.weights
    else:
        values["dtype"] = task.weights
    return values


def load(task: Task) -> Loaded:
    """`task.weights`: bfloat16, float32, int8 or int8_dynamic."""
    from benchmarks import shapes
    from bloom.weights import load_config
    from services.inference.config import EngineConfig
    from services.inference.engine import load_engine

    model = Path(task.model)
    config = load_config(model)
    kv_bytes = 4 if task.weights == "float32" else 2
    block_bytes = shapes.kv_block_bytes(config, block_size=16, kv_bytes=kv_bytes)
    engine_config = EngineConfig(**settings(task, block_bytes))
    engine, ready = load_engine(model, engine_config, num_token_ids=config.vocab_size)
    return Loaded(
        generate=Driver(engine).generate,
        version=f"anthesis, {ready.device}, {ready.dtype}",
        weight_bytes=shapes.weight_bytes(config, task.weights),
        cache_bytes=ready.num_blocks * ready.block_size * block_bytes // 16,
        facts={"executor": executor_name(engine)},
    )


def executor_name(engine: Any) -> str:
    return type(engine._executor).__name__


class Driver:
    """Submits prompts and steps until all have ended; every step's events are encoded, as for the worker."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._next_id = 0
        self.num_steps = 0

    def generate(self, given: Prompts, count: int) -> list[list[int]]:
        from services.inference.messages import StepDone, Token, encode

        engine = self._engine
        first_id = self._next_id
        self.submit(given, count)
        outputs: list[list[int]] = [[] for _ in given]
        while engine.has_work:
            events = engine.step()
            self.num_steps += 1
            encode(StepDone(events, engine.stats))
            for event in events:
                if isinstance(event, Token):
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


if __name__ == "__main__":
    contend(load)
