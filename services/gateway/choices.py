"""The choices of one generation: each its own text, and the best of them."""

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Sequence
from dataclasses import replace
from statistics import fmean

from anthesis.decoding import Vocabulary

from services.common.errors import DomainError
from services.gateway.generation import Drawn, Piece, PlacedToken, Sampling
from services.gateway.text_stream import TextStream


class Choice:
    """One choice's tokens as they are drawn, as text."""

    def __init__(self, number: int, vocabulary: Vocabulary, stops: Sequence[str]) -> None:
        self._number = number
        self._text = TextStream(vocabulary, stops)
        self._num_tokens = 0
        self.ended = False

    def feed(self, message: Drawn) -> Piece:
        """What has become certain with it; `finish` is set with the last of the text."""
        piece = Piece(choice=self._number)
        for token in message.tokens:
            self._num_tokens += 1
            piece.extend(self._text.feed(token))
            if self._text.stopped:
                break
        if message.finish and not self._text.stopped:
            piece.extend(self._text.finish())
        if self._text.stopped or message.finish:
            self.ended = True
            piece.finish = "STOP" if self._text.stopped else message.finish
            piece.completion_tokens = self._num_tokens
        return piece


async def choices(
    drawn: AsyncIterable[Drawn], vocabulary: Vocabulary, stops: Sequence[str], num_choices: int
) -> AsyncGenerator[Piece, None]:
    """Pieces of all choices as they come, until the last has ended."""
    under_way = {number: Choice(number, vocabulary, stops) for number in range(num_choices)}
    async for message in drawn:
        if message.prompt:
            yield Piece(prompt=message.prompt)
        choice = under_way.get(message.choice)
        if choice is None:  # a stop string ended it, of which the worker knows nothing
            continue
        piece = choice.feed(message)
        if piece.text or piece.finish:
            yield piece
        if choice.ended:
            del under_way[message.choice]
            if not under_way:
                return
    raise DomainError("the inference worker ended the stream without a finish reason")


def drawing_all(sampling: Sampling) -> Sampling:
    """To draw what `best_pieces` chooses from: every choice reported, with its log-probabilities."""
    return replace(sampling, n=sampling.num_drawn, best_of=None, logprobs=sampling.logprobs or 0)


async def best_pieces(pieces: AsyncIterable[Piece], sampling: Sampling) -> AsyncIterator[Piece]:
    """The `n` choices with the highest mean log-probability, best first, once all have ended."""
    whole = [Piece(choice=number) for number in range(sampling.num_drawn)]
    async for piece in pieces:
        if piece.prompt:
            yield piece
        else:
            whole[piece.choice].extend(piece)
    for number, piece in enumerate(sorted(whole, key=_mean_logprob, reverse=True)[: sampling.num_choices]):
        piece.choice = number
        if sampling.logprobs is None:
            piece.tokens = [_without_logprob(placed) for placed in piece.tokens]
        yield piece


def _mean_logprob(piece: Piece) -> float:
    """Of the tokens that are in the text; a text without any comes first, as nothing in it is unlikely."""
    return fmean([placed.token.logprob or 0.0 for placed in piece.tokens] or [0.0])


def _without_logprob(placed: PlacedToken) -> PlacedToken:
    return replace(placed, token=replace(placed.token, logprob=None, top=()))
