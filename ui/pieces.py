"""A text's tokens as they are drawn: which hold whole characters, and which share one."""

import codecs
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Piece:
    """One token. `text` is None when its bytes are no whole characters."""

    id: int
    data: bytes
    text: str | None

    @property
    def hex(self) -> str:
        return self.data.hex(" ").upper()


@dataclass(frozen=True, slots=True)
class Group:
    """Consecutive tokens that together hold whole characters: `text`. Most groups are one token."""

    text: str
    pieces: tuple[Piece, ...]

    @property
    def shared(self) -> bool:
        """Whether its tokens are parts of a character."""
        return len(self.pieces) > 1 or self.pieces[0].text is None


def group_tokens(ids: Sequence[int], tokens: Sequence[bytes]) -> list[Group]:
    """Split a text's tokens (ids and bytes, in order) where characters end.

    Bytes that are no UTF-8 at all (the text was cut inside a character) end in a group whose text has U+FFFD.
    """
    groups: list[Group] = []
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    pending: list[Piece] = []
    text = ""
    for token_id, data in zip(ids, tokens, strict=True):
        pending.append(Piece(token_id, data, _whole(data)))
        text += decoder.decode(data)
        if not decoder.getstate()[0]:  # no unfinished character is held back
            groups.append(Group(text, tuple(pending)))
            pending, text = [], ""
    if pending:
        groups.append(Group(text + decoder.decode(b"", final=True), tuple(pending)))
    return groups


def _whole(data: bytes) -> str | None:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Fertility:
    """How finely a text was cut."""

    tokens: int
    words: int  # separated by white space
    characters: int  # code points
    num_bytes: int  # UTF-8

    @classmethod
    def of(cls, text: str, tokens: int) -> "Fertility":
        return cls(tokens=tokens, words=len(text.split()), characters=len(text), num_bytes=len(text.encode()))

    @property
    def tokens_per_word(self) -> float:
        return self.tokens / max(self.words, 1)

    @property
    def tokens_per_byte(self) -> float:
        return self.tokens / max(self.num_bytes, 1)

    @property
    def tokens_per_character(self) -> float:
        return self.tokens / max(self.characters, 1)
