"""Choices as text, and the best of them, from messages that a worker could send."""

from collections.abc import AsyncIterator

import pytest
from anthesis.decoding import Vocabulary

from services.common.errors import DomainError
from services.gateway.choices import best_pieces, choices, drawing_all
from services.gateway.generation import Drawn, Piece, PlacedToken, Sampling, Token

LETTERS = Vocabulary([bytes([code]) for code in range(ord("a"), ord("z") + 1)], {})


def message(choice: int, text: str, finish: str | None = None, logprob: float | None = None) -> Drawn:
    return Drawn([Token(ord(letter) - ord("a"), logprob) for letter in text], finish, choice)


async def stream(*messages: Drawn) -> AsyncIterator[Drawn]:
    for one in messages:
        yield one


async def read(*messages: Drawn, stops: tuple[str, ...] = (), num_choices: int = 2) -> list[Piece]:
    return [piece async for piece in choices(stream(*messages), LETTERS, stops, num_choices)]


async def test_choices_are_decoded_apart():
    pieces = await read(message(0, "ab"), message(1, "x"), message(0, "c", "STOP"), message(1, "y", "LENGTH"))
    assert [(piece.choice, piece.text, piece.finish) for piece in pieces] == [
        (0, "ab", None),
        (1, "x", None),
        (0, "c", "STOP"),
        (1, "y", "LENGTH"),
    ]
    assert [piece.completion_tokens for piece in pieces] == [0, 0, 3, 2]


async def test_a_stop_string_ends_its_choice_alone_and_nothing_of_it_comes_after():
    pieces = await read(
        message(0, "aend"), message(1, "b"), message(0, "more"), message(1, "c", "LENGTH"), stops=("end",)
    )
    assert [(piece.choice, piece.text, piece.finish) for piece in pieces] == [
        (0, "a", "STOP"),
        (1, "b", None),
        (1, "c", "LENGTH"),
    ]
    assert pieces[0].completion_tokens == 4


async def test_nothing_is_read_after_the_last_choice_has_ended():
    async def endless() -> AsyncIterator[Drawn]:
        yield message(0, "aend")
        raise AssertionError("read on")

    assert [piece.text async for piece in choices(endless(), LETTERS, ("end",), 1)] == ["a"]


async def test_a_prompt_is_passed_on_before_all_else():
    prompt = Drawn([], None, 0, [Token(3), Token(4, -1.0)])
    pieces = await read(prompt, message(0, "a", "STOP"), num_choices=1)
    assert [piece.prompt for piece in pieces] == [[Token(3), Token(4, -1.0)], []]


async def test_a_stream_that_ends_before_its_choices_is_an_error():
    with pytest.raises(DomainError, match="without a finish reason"):
        await read(message(0, "a", "STOP"), num_choices=2)


async def pieces_of(*whole: tuple[int, list[float]]) -> AsyncIterator[Piece]:
    for choice, logprobs in whole:
        tokens = [PlacedToken(Token(1, logprob, ((1, logprob),)), 0) for logprob in logprobs]
        yield Piece("", tokens, "STOP", len(tokens), choice)


async def best(sampling: Sampling) -> list[Piece]:
    drawn = pieces_of((2, [-1.0]), (0, [-3.0, -2.0]), (1, [-1.0, -1.5]))
    return [piece async for piece in best_pieces(drawn, sampling)]


async def test_the_best_choices_by_mean_log_probability_come_first_and_are_renumbered():
    pieces = await best(Sampling(n=2, best_of=3, logprobs=1))
    assert [(piece.choice, [placed.token.logprob for placed in piece.tokens]) for piece in pieces] == [
        (0, [-1.0]),
        (1, [-1.0, -1.5]),
    ]


async def test_log_probabilities_that_were_asked_for_ranking_alone_are_not_passed_on():
    pieces = await best(Sampling(n=1, best_of=3))
    assert [placed.token for placed in pieces[0].tokens] == [Token(1)]


def test_all_choices_are_asked_for_where_the_gateway_ranks():
    asked = drawing_all(Sampling(n=2, best_of=5, seed=1))
    assert (asked.n, asked.best_of, asked.logprobs, asked.seed) == (5, None, 0, 1)
    assert drawing_all(Sampling(best_of=5, logprobs=3)).logprobs == 3
