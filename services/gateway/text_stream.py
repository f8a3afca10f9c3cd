"""Tokens to text: whole characters only, ending before the first stop string."""

from collections import deque
from collections.abc import Sequence

from anthesis.decoding import IncrementalDecoder, Vocabulary

from services.gateway.generation import Piece, PlacedToken, Token
from services.gateway.stop import StopStrings


class TextStream:
    """Takes tokens one by one. A token is passed on with the first of its text: one of a stop string never is."""

    def __init__(self, vocabulary: Vocabulary, stops: Sequence[str]) -> None:
        self._decoder = IncrementalDecoder(vocabulary)
        self._stops = StopStrings(stops)
        self._waiting: deque[PlacedToken] = deque()
        self._num_decoded = 0  # code points, stop strings included
        self._num_passed = 0

    @property
    def stopped(self) -> bool:
        """A stop string was found: the text has ended."""
        return self._stops.found

    def feed(self, token: Token) -> Piece:
        self._waiting.append(PlacedToken(token, self._num_decoded))
        text = self._decoder.decode([token.id])
        self._num_decoded += len(text)
        return self._pass(self._stops.feed(text))

    def finish(self) -> Piece:
        """No more tokens: what was held back."""
        text = self._stops.feed(self._decoder.finish())
        if not self.stopped:
            text += self._stops.finish()
        piece = self._pass(text)
        if not self.stopped:
            piece.tokens.extend(self._waiting)  # those without text: special tokens
        return piece

    def _pass(self, text: str) -> Piece:
        self._num_passed += len(text)
        tokens = []
        while self._waiting and self._waiting[0].text_offset < self._num_passed:
            tokens.append(self._waiting.popleft())
        return Piece(text, tokens)
