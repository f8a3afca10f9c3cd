"""A model shared by ranks, here threads, and by stages one after another, equals transformers."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import pytest
import torch
from torch import Tensor
from transformers import BloomForCausalLM

from bloom.attention import DenseCausalAttention
from bloom.config import BloomConfig
from bloom.model import BloomModel
from bloom.parallel import Shard
from bloom.parallelize import Stage, cut_to_shard
from tests.support.bloom_models import bloom_logits, hf_logits, make_hf_model, random_ids

VOCAB, LENGTH, TOLERANCE = 211, 40, 1e-4
IDS = random_ids(LENGTH, VOCAB)


@cache
def oracle(n_head: int) -> BloomForCausalLM:
    return make_hf_model(n_head=n_head, hidden=48 if n_head != 7 else 56, n_layer=3, vocab=VOCAB)


@cache
def whole(n_head: int) -> BloomModel:
    hf = oracle(n_head)
    config = hf.config
    model = BloomModel(BloomConfig(vocab_size=VOCAB, hidden_size=config.hidden_size, n_layer=3, n_head=n_head))
    state = {name.removeprefix("transformer."): tensor for name, tensor in hf.state_dict().items()}
    model.load_state_dict({name: tensor for name, tensor in state.items() if name != "lm_head.weight"})
    return model.eval()


class Ranks:
    """Threads that add up tensors, each waiting for the others."""

    def __init__(self, count: int) -> None:
        self._barrier = threading.Barrier(count, timeout=60)
        self._lock = threading.Lock()
        self._sum: Tensor | None = None

    def all_reduce(self, x: Tensor) -> None:
        with self._lock:
            self._sum = x.clone() if self._sum is None else self._sum + x
        self._barrier.wait()
        x.copy_(self._sum)
        if self._barrier.wait() == 0:
            self._sum = None
        self._barrier.wait()


def stage_of(n_head: int, shard: Shard, ranks: Ranks | None, fused: bool) -> Stage:
    model = cut_to_shard(copy.deepcopy(whole(n_head)), shard)
    return Stage(model, shard, ranks.all_reduce if ranks else None, fused=fused)


@torch.no_grad()
def logits(stages: list[list[Stage]]) -> Tensor:
    """Of IDS, by the ranks of one stage after another: (T, V)."""

    def run(stage: Stage, x: Tensor) -> Tensor:
        with torch.no_grad():
            slopes = stage.shard.slopes(stage.model.config)
            return stage.forward(x, DenseCausalAttention(slopes, 1, LENGTH))

    received = [IDS] * len(stages[0])
    for ranks in stages:
        with ThreadPoolExecutor(len(ranks)) as pool:
            received = list(pool.map(run, ranks, received))
    last = stages[-1]
    return torch.cat([stage.logits(hidden) for stage, hidden in zip(last, received, strict=True)], dim=1)


def error(stages: list[list[Stage]], n_head: int) -> float:
    return (logits(stages)[:, :VOCAB] - hf_logits(oracle(n_head), IDS)).abs().max().item()


def split(n_head: int, tp_size: int, pp_size: int, *, fused: bool = False) -> list[list[Stage]]:
    stages = []
    for pp_rank in range(pp_size):
        ranks = Ranks(tp_size) if tp_size > 1 else None
        shards = [
            Shard.of(whole(n_head).config, tp_rank=r, tp_size=tp_size, pp_rank=pp_rank, pp_size=pp_size)
            for r in range(tp_size)
        ]
        stages.append([stage_of(n_head, shard, ranks, fused) for shard in shards])
    return stages


@pytest.mark.parametrize(
    ("n_head", "tp_size", "pp_size"),
    [(12, 1, 1), (12, 2, 1), (12, 3, 1), (12, 4, 1), (12, 12, 1), (7, 7, 1), (12, 1, 2), (12, 1, 3), (12, 2, 2)],
)
def test_logits_equal_transformers(n_head: int, tp_size: int, pp_size: int):
    assert error(split(n_head, tp_size, pp_size), n_head) < TOLERANCE


@pytest.mark.parametrize(("tp_size", "pp_size"), [(1, 1), (1, 3), (3, 2)])
def test_logits_equal_transformers_where_norms_and_gelu_are_fused(tp_size: int, pp_size: int):
    assert error(split(12, tp_size, pp_size, fused=True), 12) < TOLERANCE


def test_the_vocabularys_padding_gives_zeros_and_every_rank_has_as_many_rows():
    out = logits(split(12, 4, 1))
    assert out.shape == (LENGTH, 4 * 64)
    assert not out[:, VOCAB:].any()
    assert out[:, :VOCAB].any(dim=0).all()


MUTATIONS = {
    "slopes of the first rank on every rank": lambda stage: object.__setattr__(stage.shard, "tp_rank", 0),
    "a bias on every rank": lambda stage: setattr(
        stage.model.h["1"].mlp.dense_4h_to_h,
        "bias",
        torch.nn.Parameter(whole(12).h[1].mlp.dense_4h_to_h.bias.detach().clone()),
    ),
    "no sum after attention": lambda stage: stage.model.h["2"].self_attention.dense._forward_hooks.clear(),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_planted_error_on_the_second_rank_is_noticed(mutation: str):
    stages = split(12, 2, 1)
    if mutation == "no sum after attention":  # on both: one rank alone would wait for the other
        MUTATIONS[mutation](stages[0][0])
    MUTATIONS[mutation](stages[0][1])
    assert error(stages, 12) > 100 * TOLERANCE


@pytest.mark.parametrize(("tp_size", "pp_size"), [(1, 1), (3, 1), (4, 2), (6, 3)])
def test_shards_together_are_the_model_and_biases_of_sums_are_counted_once(tp_size: int, pp_size: int):
    model = whole(12)
    held: dict[str, int] = {}
    for stage in (stage for ranks in split(12, tp_size, pp_size) for stage in ranks):
        for name, part in stage.model.named_parameters():
            held[name] = held.get(name, 0) + part.count_nonzero().item()
    for name, parameter in model.named_parameters():
        copies = tp_size if "layernorm" in name or name.startswith("ln_f") else 1
        if name == "word_embeddings.weight" and pp_size > 1:
            copies = 2  # looked up by the first stage, the head of the last
        assert held.pop(name) == copies * parameter.count_nonzero().item(), name
    assert not held


def test_a_model_without_weights_is_cut_to_the_shapes_of_one_with_weights():
    config = whole(12).config
    shard = Shard.of(config, tp_rank=3, tp_size=4, pp_rank=1, pp_size=2)
    meta = cut_to_shard(BloomModel(config, device="meta"), shard)
    real = cut_to_shard(copy.deepcopy(whole(12)), shard)
    assert {name: p.shape for name, p in meta.named_parameters()} == {n: p.shape for n, p in real.named_parameters()}
    assert all(parameter.is_meta for parameter in meta.parameters())


def test_one_rank_is_the_whole_model():
    (stages,) = split(12, 1, 1)
    torch.testing.assert_close(logits([stages]), bloom_logits(whole(12), IDS))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"tp_size": 5}, "tp=5 does not divide 12 heads; choose 1, 2, 3, 4, 6 or 12"),
        ({"pp_size": 4}, "pp=4 stages cannot share 3 layers; choose 1 to 3"),
    ],
)
def test_a_split_that_the_model_does_not_allow_is_refused(sizes: dict[str, int], message: str):
    with pytest.raises(ValueError, match=message):
        Shard.of(whole(12).config, **sizes)
