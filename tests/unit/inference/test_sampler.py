import pytest
import torch
from torch import Tensor

from services.inference import sampler
from services.inference.sampling import SamplingParams
from services.inference.sequence import Generation

V = 1300


def logits_of(num_rows: int, *, seed: int = 0, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(num_rows, V, generator=torch.Generator().manual_seed(seed))


def sequence(prompt: tuple[int, ...] = (5, 6, 7), *, choice: int = 0, **sampling: object) -> Generation:
    seq = Generation(0, list(prompt), SamplingParams(**({"seed": 1} | sampling)), 1 << 30)
    seq.choice = choice
    return seq


def draw(logits: Tensor, seqs: list[Generation], num_token_ids: int = V) -> list[int]:
    return [drawn.id for drawn in sampler.sample(logits, seqs, num_token_ids)]


def test_temperature_zero_takes_the_likeliest_token():
    logits = logits_of(4)
    assert draw(logits, [sequence(temperature=0.0)] * 4) == logits.argmax(dim=-1).tolist()


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.0},
        {},
        {"top_k": 3},
        {"top_p": 0.9},
        {"min_p": 0.1},
        {"typical_p": 0.9},
        {"logit_bias": {4: 100.0}, "temperature": 5.0},
        {"bad_words": tuple((i,) for i in range(100))},
    ],
    ids=" ".join,
)
def test_ids_beyond_the_tokenizer_are_never_drawn_nor_reported(settings: dict):
    logits = logits_of(64)
    logits[:, 1000:] += 50  # the likeliest by far
    seqs = [sequence(seed=seed, logprobs=3, **settings) for seed in range(64)]
    for drawn in sampler.sample(logits, seqs, num_token_ids=1000):
        assert drawn.id < 1000
        assert all(token_id < 1000 for token_id, _ in drawn.top_logprobs)


MIXED = [
    {},
    {"top_k": 3},
    {"top_p": 0.8},
    {"temperature": 0.0},
    {"repetition_penalty": 1.7},
    {"min_p": 0.05, "presence_penalty": 1.0},
    {"typical_p": 0.7, "frequency_penalty": 1.0, "n": 2, "best_of": 3},
    {"bad_words": ((7, 5), (3,)), "logit_bias": {9: 4.0}, "logprobs": 2},
]


def test_the_same_seed_gives_the_same_ids_whatever_the_neighbours():
    logits = logits_of(16)
    seqs = [sequence(seed=seed, choice=seed % 3, **setting) for seed, setting in enumerate(MIXED * 2)]
    together = draw(logits, seqs)
    alone = [draw(logits[row : row + 1].clone(), [seq])[0] for row, seq in enumerate(seqs)]
    assert together == alone
    assert draw(logits.flip(0), seqs[::-1]) == together[::-1]


def test_sampling_leaves_the_logits_as_they_were():
    logits = logits_of(16)
    before = logits.clone()
    sampler.sample(logits, [sequence(**setting) for setting in MIXED * 2], V)
    assert torch.equal(logits, before)


def test_seeds_and_positions_give_different_numbers():
    numbers = {sampler.uniform(seed, position) for seed in (0, 1, 2**64 - 1) for position in range(1000)}
    assert len(numbers) == 3000
    assert all(0 <= number < 1 for number in numbers)
    assert abs(sum(numbers) / 3000 - 0.5) < 0.03


def test_choices_of_one_request_draw_apart_and_the_first_as_if_alone():
    row = logits_of(1, scale=1)
    seqs = [sequence(seed=8, choice=choice, n=50, best_of=50) for choice in range(50)]
    drawn = draw(row.expand(50, -1).clone(), seqs)
    assert drawn[0] == draw(row, [sequence(seed=8)])[0]
    assert len(set(drawn)) > 25


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
    seqs = [sequence(temperature=0.7, top_k=2, logprobs=3), sequence(), sequence(temperature=0.0, logprobs=0)]
    drawn = sampler.sample(logits, seqs, num_token_ids=1000)
    expected = logits.log_softmax(dim=-1)
    assert drawn[0].logprob == pytest.approx(expected[0, drawn[0].id].item(), abs=1e-5)
    values, ids = expected[0, :1000].topk(3)
    assert [token_id for token_id, _ in drawn[0].top_logprobs] == ids.tolist()
    assert [logprob for _, logprob in drawn[0].top_logprobs] == pytest.approx(values.tolist(), abs=1e-5)
    assert drawn[1].logprob is None
    assert drawn[2].logprob == pytest.approx(expected[2, drawn[2].id].item(), abs=1e-5)
    assert drawn[2].top_logprobs == []


def test_best_of_has_a_log_probability_to_rank_by():
    (drawn,) = sampler.sample(logits_of(1), [sequence(n=1, best_of=4)], V)
    assert drawn.logprob == pytest.approx(logits_of(1).log_softmax(dim=-1)[0, drawn.id].item(), abs=1e-5)
    assert drawn.top_logprobs == []
