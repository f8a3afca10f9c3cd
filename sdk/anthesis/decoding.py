"""Ids to text without a call per token: the tokenizer's table of bytes, and a decoder that waits for whole characters.

`TokenizerService.GetVocabulary` gives the table, once per tokenizer digest.
"""

import codecs
from collections.abc import Iterable, Mapping, Sequence


class Vocabulary:
    """The bytes of each id of a byte-level tokenizer, and which ids are special tokens."""

    def __init__(self, tokens: Sequence[bytes], special_ids: Mapping[str, int]) -> None:
        self.tokens = tuple(tokens)
        self.special_ids = dict(special_ids)
        self._special = frozenset(special_ids.values())

    def __len__(self) -> int:
        return len(self.tokens)

    def bytes_of(self, token_id: int) -> bytes:
        """The bytes of one id; a special token's are its name. Raises ValueError for an id that stands for nothing."""
        token = self.tokens[token_id] if 0 <= token_id < len(self.tokens) else b""
        if not token:
            raise ValueError(f"id {token_id} is not in the vocabulary, whose ids are 0 to {len(self.tokens) - 1}")
        return token

    def is_special(self, token_id: int) -> bool:
        return token_id in self._special

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = False) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD. Raises ValueError, naming an unknown id."""
        shown = (token_id for token_id in ids if not (skip_special_tokens and token_id in self._special))
        return b"".join(map(self.bytes_of, shown)).decode("utf-8", "replace")


class IncrementalDecoder:
    """Decodes a stream of ids: what it returns, joined, is `Vocabulary.decode` of all of them."""

    def __init__(self, vocabulary: Vocabulary, *, skip_special_tokens: bool = True) -> None:
        self._vocabulary = vocabulary
        self._skip_special_tokens = skip_special_tokens
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def decode(self, ids: Iterable[int]) -> str:
        """The text that `ids` complete; bytes of an unfinished character are held back until the next call."""
        text = []
        for token_id in ids:
            token = self._vocabulary.bytes_of(token_id)
            if not (self._skip_special_tokens and self._vocabulary.is_special(token_id)):
                text.append(self._utf8.decode(token))
        return "".join(text)

    def finish(self) -> str:
        """What was held back: U+FFFD if the ids end within a character, else nothing. Ready for another stream then."""
        text = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return text
