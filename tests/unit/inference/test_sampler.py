import pytest
import torch
from torch import Tensor
from transformers.generation.logits_process import (
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from services.inference import sampler
from services.inference.sampling import SamplingParams
from services.inference.sequence import Generation

V = 1300  # more than two groups of 512


def logits_of(num_rows: int, *, seed: int = 0, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(num_rows, V, generator=torch.Generator().manual_seed(seed))


def sequence(prompt: tuple[int, ...] = (5, 6, 7), **sampling: object) -> Generation:
    return Generation(0, list(prompt), SamplingParams(**({"seed": 1} | sampling)), 1 << 30)


def draw(logits: Tensor, seqs: list[Generation], num_token_ids: int = V) -> list[int]:
    return [drawn.id for drawn in sampler.sample(logits, seqs, num_token_ids)]


def test_temperature_zero_takes_the_likeliest_token():
    logits = logits_of(4)
    assert draw(logits, [sequence(temperature=0.0)] * 4) == logits.argmax(dim=-1).tolist()


def test_a_tiny_temperature_is_greedy_and_not_nan():
    logits = logits_of(4)
    assert draw(logits, [sequence(temperature=1e-30)] * 4) == logits.argmax(dim=-1).tolist()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_ids_beyond_the_tokenizer_are_never_drawn(temperature: float):
    logits = logits_of(64)
    logits[:, 1000:] += 50  # the likeliest by far
    seqs = [sequence(temperature=temperature, seed=seed) for seed in range(64)]
    assert max(draw(logits, seqs, num_token_ids=1000)) < 1000


def hf_kept(row: Tensor, params: SamplingParams) -> set[int]:
    """Ids that transformers leaves a chance."""
    scores = row[None] / params.temperature
    if params.top_k:
        scores = TopKLogitsWarper(params.top_k)(None, scores)
    if params.top_p < 1:
        scores = TopPLogitsWarper(params.top_p)(None, scores)
    return set(scores[0].isfinite().nonzero().flatten().tolist())


@pytest.mark.parametrize(
    "settings",
    [
        {"top_k": 5},
        {"top_p": 0.5},
        {"top_p": 0.97, "temperature": 0.7},
        {"top_k": 9, "top_p": 0.8},
        {"top_p": 0.999, "temperature": 30.0},  # nearly flat: more than the first candidates hold
    ],
)
def test_filters_keep_exactly_the_tokens_that_transformers_keeps(settings: dict[str, float]):
    logits = logits_of(3)
    params = SamplingParams(seed=0, **settings)
    for row, weights in zip(logits, sampler._weights(logits, [params] * 3), strict=True):
        assert set(weights.nonzero().flatten().tolist()) == hf_kept(row, params)


def test_tokens_are_drawn_as_often_as_their_probability_says():
    row = logits_of(1, scale=1.5)[0]
    probabilities = row.double().softmax(dim=-1)
    num = 20_000
    counts = torch.zeros(V, dtype=torch.float64)
    for start in range(0, num, 2000):
        seqs = [sequence(seed=seed) for seed in range(start, start + 2000)]
        ids = torch.tensor(draw(row.expand(2000, -1), seqs))
        counts += torch.bincount(ids, minlength=V)
    chi_squared = ((counts - num * probabilities) ** 2 / (num * probabilities)).sum().item()
    assert abs(chi_squared - V) < 5 * (2 * V) ** 0.5  # mean and five standard deviations


def test_cumulative_inversion_equals_the_plain_one():
    weights = logits_of(1)[0].exp()
    uniforms = torch.rand(500, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    cumulative = weights.double().cumsum(0)
    expected = torch.searchsorted(cumulative, uniforms * cumulative[-1], right=True)
    drawn = torch.tensor(sampler._invert(weights.expand(500, -1), uniforms.tolist()))
    assert (drawn != expected).float().mean() < 0.01  # fp32 sums of groups move a few borders by a hair
    assert (drawn - expected).abs().max() <= 1


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_ends_of_the_distribution_give_tokens_with_weight(share: float):
    weights = torch.zeros(1, V)
    weights[0, 700:703] = 1.0
    assert sampler._invert(weights, [share])[0] == (700 if share == 0 else 702)


def test_the_same_seed_gives_the_same_ids_whatever_the_neighbours():
    logits = logits_of(16)
    settings = [{}, {"top_k": 3}, {"top_p": 0.8}, {"temperature": 0.0}, {"repetition_penalty": 1.7}] * 3 + [{}]
    seqs = [sequence(seed=seed, **setting) for seed, setting in enumerate(settings)]
    together = draw(logits, seqs)
    alone = [draw(logits[row : row + 1], [seq])[0] for row, seq in enumerate(seqs)]
    assert together == alone
    assert draw(logits.flip(0), seqs[::-1]) == together[::-1]


def test_seeds_and_positions_give_different_numbers():
    numbers = {sampler.uniform(seed, position) for seed in (0, 1, 2**64 - 1) for position in range(1000)}
    assert len(numbers) == 3000
    assert all(0 <= number < 1 for number in numbers)
    assert abs(sum(numbers) / 3000 - 0.5) < 0.03


def test_repetition_penalty_is_that_of_transformers():
    logits = logits_of(2)
    prompt = (3, 9, 3, 11, 500)
    seq = sequence(prompt, temperature=0.0, repetition_penalty=1.8)
    seq.append(42)
    expected = RepetitionPenaltyLogitsProcessor(1.8)(torch.tensor([[*prompt, 42]]), logits[:1].clone())
    row = logits[0].clone()
    sampler._penalize(row, seq)
    torch.testing.assert_close(row, expected[0])


def test_a_penalized_row_leaves_its_neighbours_and_the_reported_log_probabilities_alone():
    logits = logits_of(2)
    top = int(logits[0].argmax())
    penalized = sequence((top,), temperature=0.0, repetition_penalty=100.0, logprobs=1)
    plain = sequence(temperature=0.0)
    drawn = sampler.sample(logits, [penalized, plain], V)
    assert drawn[0].id != top
    assert drawn[0].top_logprobs[0][0] == top
    assert drawn[1].id == int(logits[1].argmax())


def test_log_probabilities_are_the_models_own_over_the_whole_head():
    logits = logits_of(3)
    seqs = [
        sequence(temperature=0.7, top_k=2, logprobs=3),
        sequence(),
        sequence(temperature=0.0, logprobs=0),
    ]
    drawn = sampler.sample(logits, seqs, num_token_ids=1000)
    expected = logits.log_softmax(dim=-1)
    assert drawn[0].logprob == pytest.approx(expected[0, drawn[0].id].item())
    values, ids = expected[0].topk(3)
    assert drawn[0].top_logprobs == [(i, pytest.approx(v)) for i, v in zip(ids.tolist(), values.tolist(), strict=True)]
    assert drawn[1].logprob is None
    assert drawn[2].logprob == pytest.approx(expected[2, drawn[2].id].item())
    assert drawn[2].top_logprobs == []
