"""Small models for the inference engine and worker, in a folder or in an artifact store."""

import json
from functools import cache
from pathlib import Path

import torch
from transformers import BloomForCausalLM

from services.common.artifacts import ArtifactStore
from services.inference.config import EngineConfig
from services.inference.engine import Engine, load_engine
from services.inference.loaded_version import AssignedVersion
from services.inference.messages import Event, Generate, Score, Scored, Token
from services.inference.sampling import SamplingParams

VOCAB = 211
TOLERANCE = 1e-4  # two logits closer than this may change places with the shape of the batch


def engine_of(folder: Path, *, num_token_ids: int = VOCAB, **config: object) -> Engine:
    """A fp32 engine in plain torch with a cache of a megabyte, unless `config` says otherwise."""
    settings = {"dtype": "float32", "cpu_operators": False, "threads": 1, "max_kv_bytes": 1 << 20} | config
    engine, _ = load_engine(folder, EngineConfig(**settings), num_token_ids=num_token_ids)
    return engine


def greedy(max_tokens: int = 64, **sampling: object) -> SamplingParams:
    return SamplingParams(seed=0, temperature=0.0, max_tokens=max_tokens, **sampling)


def run_all(engine: Engine, requests: list[Generate | Score]) -> dict[int, list[Event]]:
    """Submit all at once; step until nothing is left; events by request."""
    events: dict[int, list[Event]] = {request.request_id: [] for request in requests}
    for request in requests:
        assert engine.handle(request) == []
    while engine.has_work:
        for event in engine.step():
            events[event.request_id].append(event)
    assert engine.stats.num_free_blocks == engine.stats.num_blocks
    return events


def generate(engine: Engine, prompts: list[list[int]], sampling: SamplingParams) -> list[list[int]]:
    """Drawn ids of each prompt, all in one batch."""
    events = run_all(engine, [Generate(number, prompt, sampling) for number, prompt in enumerate(prompts)])
    return [[event.id for event in events[number] if isinstance(event, Token)] for number in range(len(prompts))]


def score(engine: Engine, items: list[tuple[list[int], list[int]]]) -> list[list[float]]:
    events = run_all(engine, [Score(number, context, target) for number, (context, target) in enumerate(items)])
    return [scored.logprobs for (scored,) in events.values() if isinstance(scored, Scored)]


@cache
def oracle(folder: Path) -> BloomForCausalLM:
    return BloomForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def assert_greedy(folder: Path, prompt: list[int], output: list[int]) -> None:
    """Each id is the likeliest after what stands before it, as transformers sees it, or as good as that."""
    logits = oracle(folder)(torch.tensor([prompt + output])).logits[0, len(prompt) - 1 : -1]
    best = logits.max(dim=-1).values
    drawn = logits.gather(1, torch.tensor(output)[:, None]).squeeze(1)
    worst, position = (best - drawn).max(dim=0)
    assert worst <= TOLERANCE, f"id {position} of {output} is {worst:.2e} below the likeliest"


def store_version(store: ArtifactStore, name: str, folder: Path, *, num_token_ids: int = VOCAB) -> AssignedVersion:
    """Put a model folder and a tokenizer of so many ids into the store."""
    tokenizer = {"model": {"vocab": {str(i): i for i in range(4, num_token_ids)}}, "added_tokens": [{"id": 0}]}
    return AssignedVersion(
        name,
        tuple((path.name, store.write_file(path)) for path in sorted(folder.iterdir())),
        store.write_bytes(json.dumps(tokenizer).encode()),
    )
