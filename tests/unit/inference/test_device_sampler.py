"""What all rows at once draw on a device is what each row draws on the host. Here the device is the CPU, where
`bloom.kernels` computes by its twins."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from services.inference import device_sampler, sampler
from services.inference.device_sampler import draw_on_device, logprobs_on_device
from services.inference.sampling import SamplingParams
from services.inference.sequence import Generation

V = 1300
PROMPT, OUTPUT = [3, 9, 3, 11, 200], [42, 9, 42, 42, 7]


def logits_of(num_rows: int, seed: int = 0) -> Tensor:
    return 3 * torch.randn(num_rows, V, generator=torch.Generator().manual_seed(seed))


def sequence(*, choice: int = 0, **sampling: object) -> Generation:
    seq = Generation(0, PROMPT, SamplingParams(**({"seed": 1} | sampling)), 1 << 30)
    for token_id in OUTPUT:
        seq.append(token_id)
    seq.choice = choice
    return seq


def on_host(logits: Tensor, seqs: list[Generation], num_token_ids: int = V) -> list[int]:
    return [drawn.id for drawn in sampler.sample(logits, seqs, num_token_ids)]


SAMPLING = st.fixed_dictionaries(
    {"seed": st.integers(0, 2**64 - 1)},
    optional={
        "temperature": st.sampled_from([0.0, 0.7, 1.0, 1e-30]),
        "top_k": st.sampled_from([1, 5, 2000]),
        "top_p": st.sampled_from([0.5, 0.9]),
        "min_p": st.sampled_from([0.01, 0.3]),
        "repetition_penalty": st.sampled_from([0.5, 1.5]),
        "presence_penalty": st.sampled_from([-1.0, 2.0]),
        "frequency_penalty": st.sampled_from([-1.0, 2.0]),
        "logit_bias": st.dictionaries(st.integers(0, V - 1), st.floats(-20, 20), max_size=5),
        "bad_words": st.lists(st.sampled_from([(42,), (7, 5), (9, 7), (42, 7, 8)]), max_size=3).map(tuple),
        "min_tokens": st.sampled_from([3, 9]),
        "stop_ids": st.frozensets(st.integers(0, V - 1), max_size=3),
    },
)


@settings(max_examples=60, deadline=None)
@given(params=st.lists(SAMPLING, min_size=1, max_size=6), seed=st.integers(0, 1000))
def test_all_rows_at_once_draw_what_each_draws_on_the_host(params: list[dict], seed: int):
    logits = logits_of(len(params), seed)
    seqs = [sequence(choice=choice, **one) for choice, one in enumerate(params)]
    before = logits.clone()
    assert draw_on_device(logits, seqs, V) == on_host(logits, seqs)
    assert torch.equal(logits, before)


def test_ids_beyond_the_tokenizer_are_never_drawn():
    logits = logits_of(32)
    logits[:, 1000:] += 50
    for settings_ in ({"temperature": 0.0}, {}, {"top_k": 3}, {"top_p": 0.9}):
        seqs = [sequence(seed=seed, **settings_) for seed in range(32)]
        assert max(draw_on_device(logits, seqs, 1000)) < 1000


def test_log_probabilities_are_those_of_the_host():
    logits = logits_of(3)
    seqs = [sequence(temperature=0.0, logprobs=num) for num in (0, 4, 2)]
    drawn = sampler.sample(logits, seqs, 1000)
    reported = logprobs_on_device(logits, [one.id for one in drawn], [0, 4, 2], 1000)
    for host, device in zip(drawn, reported, strict=True):
        assert device.logprob == pytest.approx(host.logprob, abs=1e-5)
        assert [token_id for token_id, _ in device.top_logprobs] == [token_id for token_id, _ in host.top_logprobs]
        assert [value for _, value in device.top_logprobs] == pytest.approx(
            [value for _, value in host.top_logprobs], abs=1e-5
        )


@pytest.mark.parametrize("lost", ["counts", "biases", "seeds"])
def test_a_planted_error_is_noticed(lost: str, monkeypatch: pytest.MonkeyPatch):
    right_table, right_seeds = device_sampler._table, device_sampler._signed
    if lost == "seeds":
        monkeypatch.setattr(device_sampler, "_signed", lambda seeds, device: right_seeds(seeds, device) + 1)
    else:
        kept = (0, 1, 2).index(1 if lost == "counts" else 2)
        monkeypatch.setattr(
            device_sampler,
            "_table",
            lambda seq: tuple(0 * part if place == kept else part for place, part in enumerate(right_table(seq))),
        )
    logits = logits_of(64)
    seqs = [
        sequence(seed=seed, frequency_penalty=2.0, logit_bias={int(logits[seed].argmax()): -20}) for seed in range(64)
    ]
    assert draw_on_device(logits, seqs, V) != on_host(logits, seqs)


@pytest.mark.gpu
@settings(max_examples=30, deadline=None)
@given(params=st.lists(SAMPLING, min_size=1, max_size=6), seed=st.integers(0, 1000))
def test_a_gpu_draws_what_the_host_draws(params: list[dict], seed: int):
    logits = logits_of(len(params), seed)
    seqs = [sequence(choice=choice, logprobs=2, **one) for choice, one in enumerate(params)]
    assert on_host(logits.cuda(), seqs) == on_host(logits, seqs)
