import pytest

from services.common.errors import InvalidArgument
from services.inference.sampling import MAX_SEED, SamplingParams, choice_seed


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.5),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("typical_p", 0.0),
        ("typical_p", float("nan")),
        ("repetition_penalty", 0.0),
        ("presence_penalty", 2.1),
        ("presence_penalty", float("nan")),
        ("frequency_penalty", -2.1),
        ("min_tokens", -1),
        ("max_tokens", 0),
        ("n", 0),
        ("n", 129),
        ("best_of", 129),
        ("logprobs", 21),
        ("prompt_logprobs", -1),
        ("seed", MAX_SEED + 1),
    ],
)
def test_a_value_out_of_range_is_refused_with_name_value_and_range(name: str, value: float):
    with pytest.raises(InvalidArgument) as error:
        SamplingParams(**{"seed": 0, name: value})
    assert f"{name}={value} is out of range; use" in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n": 3, "best_of": 2}, "best_of=2 is below n=3; raise best_of or leave it out"),
        ({"temperature": 0.0, "n": 1, "best_of": 2}, "best_of=2 with temperature=0: greedy choices are all the same"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens=9 is above max_tokens=8; lower it or raise max_tokens"),
        ({"bad_words": ((5,), ())}, "bad_words[1] has 0 ids; give 1 to 64"),
        ({"bad_words": ((5,),) * 129}, "bad_words has 129 sequences; give at most 128"),
        ({"stop_sequences": ((),)}, "stop_sequences[0] has 0 ids; give 1 to 64"),
        ({"stop_sequences": ((1,) * 65,)}, "stop_sequences[0] has 65 ids; give 1 to 64"),
        ({"logit_bias": {7: 101.0}}, "logit_bias of id 7 is 101.0, out of range; use -100.0 to 100.0"),
        ({"logit_bias": {7: float("nan")}}, "logit_bias of id 7 is nan, out of range"),
        ({"logit_bias": dict.fromkeys(range(1025), 1.0)}, "logit_bias has 1025 ids; give at most 1024"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_value_and_remedy(settings: dict, message: str):
    with pytest.raises(InvalidArgument) as error:
        SamplingParams(seed=0, **settings)
    assert message in str(error.value)


def test_greedy_choices_may_be_asked_for_though_all_are_the_same():
    assert SamplingParams(seed=0, temperature=0.0, n=2, best_of=2).n == 2


def test_the_first_choice_draws_with_the_requests_seed_and_the_others_with_seeds_of_their_own():
    seeds = {choice_seed(seed, choice) for seed in range(100) for choice in range(128)}
    assert [choice_seed(seed, 0) for seed in (0, 7, MAX_SEED)] == [0, 7, MAX_SEED]
    assert len(seeds) == 100 * 128
    assert all(0 <= seed <= MAX_SEED for seed in seeds)
