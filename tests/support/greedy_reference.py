"""What an engine's greedy ids are held against: transformers' own `generate` in fp32, one prompt at a time.

Ids may differ only from a token on whose two highest logits are closer than `TOLERANCE`; what follows such a token is
not compared.
"""

import random
from dataclasses import dataclass
from pathlib import Path

import torch

from services.inference.engine import Engine
from services.inference.messages import Generate, Token
from tests.support.bloom_models import make_hf_model, random_ids
from tests.support.inference_models import TOLERANCE, greedy, oracle

VOCAB = 1500
NUM_NEW = 24
BLOCK_BYTES = 2 * 2 * 16 * 48 * 4  # keys and values, 2 layers, 16 tokens, hidden size 48, fp32


@dataclass(frozen=True)
class Reference:
    folder: Path
    prompts: list[list[int]]
    ids: list[list[int]]
    gaps: list[list[float]]  # between the two highest logits, where each id was chosen

    def check(self, number: int, ids: list[int]) -> bool:
        """Whether all ids were compared; raises AssertionError where one is wrong."""
        assert len(ids) == NUM_NEW
        for position, (ours, theirs) in enumerate(zip(ids, self.ids[number], strict=True)):
            if ours != theirs:
                gap = self.gaps[number][position]
                assert gap < TOLERANCE, f"prompt {number}, token {position}: {ours}, not {theirs}; gap {gap:.1e}"
                return False
        return True

    def check_all(self, outputs: dict[int, list[int]]) -> None:
        assert sum(not self.check(number, ids) for number, ids in outputs.items()) <= 2


def prompts_of_all_kinds() -> list[list[int]]:
    """Short and long; every other one begins like others, up to and across the borders of blocks."""
    rng = random.Random(0)
    shared = random_ids(70, VOCAB, seed=1000).tolist()
    prompts = []
    for number in range(200):
        own = random_ids(rng.choice([1, 2, 5, 15, 16, 17, 31, 40]), VOCAB, seed=number).tolist()
        prompts.append((shared[: rng.choice([16, 20, 32, 47, 64, 70])] if number % 2 else []) + own)
    return prompts


@torch.no_grad()
def write_model(folder: Path, *, n_head: int) -> None:
    """Sharp attention and no favourite ids: greedy generation, too, goes on depending on all that came before."""
    model = make_hf_model(n_head=n_head, vocab=VOCAB, seed=2)
    for name, parameter in model.named_parameters():
        if "query_key_value.weight" in name:
            parameter.mul_(4)
        elif name.endswith("ln_f.bias"):
            parameter.mul_(0.1)
    model.save_pretrained(folder)


def make_reference(folder: Path, *, n_head: int = 6) -> Reference:
    """Write a model with two layers of n_head heads into `folder`, and have it continue the prompts."""
    write_model(folder, n_head=n_head)
    prompts = prompts_of_all_kinds()
    all_ids, all_gaps = [], []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        out = oracle(folder).generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NUM_NEW,
            do_sample=False,
            eos_token_id=None,
            output_logits=True,
            return_dict_in_generate=True,
        )
        all_ids.append(out.sequences[0, len(prompt) :].tolist())
        best = torch.cat(out.logits).topk(2, dim=-1).values
        all_gaps.append((best[:, 0] - best[:, 1]).tolist())
    return Reference(folder, prompts, all_ids, all_gaps)


def run(engine: Engine, requests: list[Generate]) -> dict[tuple[int, int], list[int]]:
    """Ids of each (request, choice), all sent as soon as the queue has room."""
    ids: dict[tuple[int, int], list[int]] = {}
    waiting = requests[::-1]
    while waiting or engine.has_work:
        while waiting and engine.stats.num_waiting < 100:
            assert engine.handle(waiting.pop()) == []
        for event in engine.step():
            assert isinstance(event, Token)
            ids.setdefault((event.request_id, event.choice), []).append(event.id)
    assert engine.stats.num_free_blocks == engine.stats.num_blocks
    return ids


def first_choices(engine: Engine, reference: Reference, count: int = 200) -> dict[int, list[int]]:
    requests = [Generate(number, reference.prompts[number], greedy(NUM_NEW)) for number in range(count)]
    return {number: ids for (number, _), ids in run(engine, requests).items()}
