import pytest
from anthesis.client import Client
from anthesis.settings import Settings

from examples.demo.evaluate import LIVELY, complete_all, first_line
from examples.demo.sizes import Size, Sizes, add, total
from tests.support.scripted_gateway import running_scripted_gateway


@pytest.mark.parametrize(
    ("completion", "line"),
    [(" Yoruba", "Yoruba"), ("\n French\nmore", "French"), ("", ""), ("\n\n", "")],
)
def test_an_answer_is_the_first_line_that_says_something(completion: str, line: str):
    assert first_line(completion) == line


def test_languages_count_by_their_bytes_in_a_total():
    sizes: Sizes = {}
    add(sizes, "en", Size(100.0, 100))
    add(sizes, "ta", Size(500.0, 1_000))
    add(sizes, "ta", Size(400.0, 2_000))
    assert sizes["ta"].bits_per_byte == pytest.approx(0.3)
    assert total(sizes, ["en", "ta"]) == pytest.approx(1_000 / 3_100)


def test_a_completion_leaves_out_a_character_that_was_cut():
    with (
        running_scripted_gateway() as (gateway, address),
        Client(Settings(api_key="k", gateway_address=address)) as client,
    ):
        gateway.script = ["人人", "有\N{REPLACEMENT CHARACTER}"]
        assert complete_all(client, "seedling", ["第一"], 5, LIVELY) == ["人人有"]
        asked = gateway.requests[0].sampling
    assert (asked.max_tokens, asked.seed, asked.temperature) == (5, LIVELY.seed, LIVELY.temperature)
