import pytest

from examples.demo.evaluate import first_line
from examples.demo.sizes import Size, Sizes, add, total


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
