"""Sampling parameters out of range are refused by name, value and range."""

import math

import pytest

from services.gateway.generation import Caller, InvalidParameter, Sampling


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("temperature", -0.1, "0 (greedy) or more"),
        ("temperature", math.nan, "0 (greedy) or more"),
        ("temperature", math.inf, "0 (greedy) or more"),
        ("top_k", -1, "0 (off) to 4294967295"),
        ("top_k", 1 << 32, "0 (off) to 4294967295"),
        ("top_p", 0.0, "above 0, at most 1"),
        ("top_p", 1.01, "above 0, at most 1"),
        ("repetition_penalty", 0.0, "above 0; 1 is off"),
        ("seed", -1, "0 to 18446744073709551615"),
        ("seed", 1 << 64, "0 to 18446744073709551615"),
        ("max_tokens", 0, "1 to 4294967295"),
        ("max_tokens", 1 << 32, "1 to 4294967295"),
        ("logprobs", 21, "0 to 20"),
        ("prompt_logprobs", -1, "0 to 20"),
        ("min_p", 1.1, "0 (off) to 1"),
        ("typical_p", 0.0, "above 0, at most 1"),
        ("presence_penalty", math.nan, "-2 to 2"),
        ("frequency_penalty", -2.5, "-2 to 2"),
        ("min_tokens", -1, "0 to 4294967295"),
        ("n", 0, "1 to 128"),
        ("best_of", 129, "1 to 128"),
    ],
)
def test_a_value_out_of_range_is_named_with_its_range(name: str, value: float, allowed: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        Sampling(**{name: value})
    assert caught.value.param == name
    assert str(caught.value) == f"{name}={value} is out of range; use {allowed}"


@pytest.mark.parametrize(
    ("settings", "param"),
    [
        ({"n": 2, "best_of": 1}, "best_of"),
        ({"temperature": 0.0, "best_of": 2}, "best_of"),
        ({"min_tokens": 3, "max_tokens": 2}, "min_tokens"),
        ({"logit_bias": {4: math.nan}}, "logit_bias"),
    ],
)
def test_what_contradicts_itself_is_refused_under_the_parameter_to_change(settings: dict, param: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        Sampling(**settings)
    assert caught.value.param == param


@pytest.mark.parametrize("priority", [-101, 101])
def test_a_priority_out_of_range_is_refused(priority: int) -> None:
    with pytest.raises(InvalidParameter, match=f"priority={priority} is out of range"):
        Caller(priority=priority)


def test_the_ends_of_the_ranges_are_allowed() -> None:
    Sampling(temperature=0, top_k=0, top_p=1.0, repetition_penalty=1e-3, seed=(1 << 64) - 1, max_tokens=1, logprobs=0)
