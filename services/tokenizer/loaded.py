"""One tokenizer.json in use: text to ids with exact offsets, ids to text, and the table of bytes where there is one."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from anthesis.decoding import Vocabulary
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder

from services.common.errors import FailedPrecondition, InvalidArgument

Span = tuple[int, int]  # half open


@dataclass(frozen=True, slots=True)
class Encoding:
    """One text's ids; the offsets, one span per id, are empty unless asked for."""

    ids: list[int]
    byte_offsets: list[Span]
    char_offsets: list[Span]


class LoadedTokenizer:
    """A tokenizer by digest. Its methods are pure, may run in any thread, and release the GIL while they encode."""

    def __init__(self, digest: str, data: bytes) -> None:
        """Raises FailedPrecondition when `data` is not a tokenizer.json that the library understands."""
        try:
            tokenizer = Tokenizer.from_buffer(data)
        except ValueError as error:
            raise FailedPrecondition(f"artifact {digest} is not a tokenizer.json: {error}") from None
        # The file may ask for what suits a training script. A service neither cuts nor fills what it is given, and text
        # that spells a special token is text.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        self.digest = digest
        self._tokenizer = tokenizer
        self._vocabulary = _byte_table(tokenizer)

    def vocabulary(self) -> Vocabulary:
        """id -> bytes. Raises FailedPrecondition for a tokenizer that is not byte-level: its tokens are not bytes."""
        if self._vocabulary is None:
            kind = type(self._tokenizer.model).__name__
            raise FailedPrecondition(f"tokenizer {self.digest} ({kind}) is not byte-level and has no table of bytes")
        return self._vocabulary

    def encode(self, texts: Sequence[str], *, with_offsets: bool = False) -> list[Encoding]:
        """Encode texts as they are, without adding special tokens."""
        if not with_offsets:
            return [Encoding(ids, [], []) for ids in self._ids(texts)]
        if self._vocabulary is None:
            return [self._encode_with_library_offsets(text) for text in texts]
        return [
            self._encode_with_byte_lengths(text, ids, self._vocabulary)
            for text, ids in zip(texts, self._ids(texts), strict=True)
        ]

    def count(self, texts: Sequence[str]) -> list[int]:
        """Ids per text."""
        return [len(ids) for ids in self._ids(texts)]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The text of `ids`. Raises InvalidArgument, naming an id that the tokenizer lacks."""
        if self._vocabulary is not None:
            try:
                return self._vocabulary.decode(ids, skip_special_tokens=skip_special_tokens)
            except ValueError as error:
                raise InvalidArgument(f"{error} (tokenizer {self.digest})") from None
        for token_id in ids:
            if self._tokenizer.id_to_token(token_id) is None:
                raise InvalidArgument(f"id {token_id} is not in the vocabulary of tokenizer {self.digest}")
        return self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def _encode_with_byte_lengths(self, text: str, ids: list[int], vocabulary: Vocabulary) -> Encoding:
        """Offsets from the lengths of the tokens' bytes: exact within characters, where the library's are not."""
        data = text.encode()
        tokens = [vocabulary.bytes_of(token_id) for token_id in ids]
        if b"".join(tokens) != data:  # a normalizer or an added space changed the text
            return self._encode_with_library_offsets(text)
        byte_offsets = list(pairwise(accumulate(map(len, tokens), initial=0)))
        starts = _char_starts(text)
        char_offsets = [(bisect_right(starts, start) - 1, bisect_right(starts, end - 1)) for start, end in byte_offsets]
        return Encoding(ids, byte_offsets, char_offsets)

    def _encode_with_library_offsets(self, text: str) -> Encoding:
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        starts = [*_char_starts(text), len(text.encode())]
        byte_offsets = [(starts[start], starts[end]) for start, end in encoding.offsets]
        return Encoding(encoding.ids, byte_offsets, encoding.offsets)


def _char_starts(text: str) -> list[int]:
    """The byte at which each code point starts."""
    return [0, *accumulate(len(char.encode()) for char in text[:-1])] if text else []


def _byte_table(tokenizer: Tokenizer) -> Vocabulary | None:
    """id -> bytes; None unless each token is made of bytes. Ids that stand for nothing have no bytes."""
    if not isinstance(tokenizer.decoder, ByteLevelDecoder):
        return None
    added = tokenizer.get_added_tokens_decoder()
    vocab = tokenizer.get_vocab()
    tokens = [b""] * (max(vocab.values(), default=-1) + 1)
    for token, token_id in vocab.items():
        if token_id in added:
            tokens[token_id] = token.encode()
        elif all(char in _BYTE_OF for char in token):
            tokens[token_id] = bytes(map(_BYTE_OF.__getitem__, token))
        else:
            return None
    special_ids = {token.content: token_id for token_id, token in added.items() if token.special}
    return Vocabulary(tokens, special_ids)


def _byte_alphabet() -> dict[str, int]:
    """The character by which byte-level BPE writes each byte: itself where printable, else the next from U+0100 on.

    Source: Radford et al. 2019 (GPT-2), bytes_to_unicode.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()
