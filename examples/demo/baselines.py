"""What a model must beat: a general compressor and counted n-grams, on the same text.

Each baseline has what suits it best. lzma is primed with the training text of all languages, the tested one last; the
n-grams are counted on the tested language alone, which they prefer, and go on from the context that the model sees.
lzma's figure is the size of what it really writes; the n-grams are proper probability models.
"""

import lzma
import math
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from .corpus import Passage
from .sizes import Size, Sizes, add

Symbol = TypeVar("Symbol", bound=Hashable)

LZMA, PRIMED_LZMA = "lzma", "primed lzma"
BYTE_NGRAM, CHARACTER_NGRAM = "byte 5-gram", "character 5-gram"

ORDER = 5
NUM_BYTES = 256
NUM_CHARACTERS = 0x110000 - 0x800  # Unicode scalar values: code points without surrogates

# Raw LZMA2 streams: no container, checksum or header, so a few hundred bytes are not charged for 24 of framing.
_FILTERS = ({"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 1 << 24},)


class WittenBell(Generic[Symbol]):
    """An n-gram model in which each order is interpolated with the next lower one, down to the uniform distribution.

    P(s | h) = (c(h, s) + T(h) P(s | h')) / (c(h) + T(h)), T(h) being the number of different symbols seen after h and
    h' being h without its first symbol. Source: Witten and Bell 1991, as interpolated by Chen and Goodman 1999.
    """

    def __init__(self, order: int, alphabet_size: int) -> None:
        self._order = order
        self._uniform = 1.0 / alphabet_size
        self._counts: dict[Sequence[Symbol], dict[Symbol, int]] = defaultdict(lambda: defaultdict(int))
        self._totals: dict[Sequence[Symbol], int] = defaultdict(int)

    def train(self, text: Sequence[Symbol]) -> None:
        """Count every n-gram of `text` (bytes or str) up to the order."""
        for length in range(self._order):
            for end in range(length, len(text)):
                history = text[end - length : end]
                self._counts[history][text[end]] += 1
                self._totals[history] += 1

    def probability(self, symbol: Symbol, history: Sequence[Symbol]) -> float:
        """P(symbol | the last order - 1 symbols of history)."""
        probability = self._uniform
        for length in range(min(self._order - 1, len(history)) + 1):
            suffix = history[len(history) - length :]
            total = self._totals.get(suffix)
            if total is None:
                break  # a longer history has not been seen either
            followers = self._counts[suffix]
            probability = (followers.get(symbol, 0) + len(followers) * probability) / (total + len(followers))
        return probability

    def bits(self, text: Sequence[Symbol], context: Sequence[Symbol]) -> float:
        """The length of `text` in bits, given that `context` came before it."""
        keep = self._order - 1
        padded = context[max(0, len(context) - keep) :]
        start, whole = len(padded), padded + text  # type: ignore[operator]  # bytes + bytes or str + str
        return -sum(
            math.log2(self.probability(whole[i], whole[max(0, i - keep) : i])) for i in range(start, len(whole))
        )


def measure(training: Mapping[str, str], passages: Sequence[Passage]) -> dict[str, Sizes]:
    """Every baseline's sizes of the passages, by its name; `training` has each language's text."""
    sizes: dict[str, Sizes] = {name: {} for name in (LZMA, PRIMED_LZMA, BYTE_NGRAM, CHARACTER_NGRAM)}
    languages = dict.fromkeys(passage.language for passage in passages)
    for language in languages:
        chosen = [passage for passage in passages if passage.language == language]
        for name, size in _ngram_sizes(training[language], chosen).items():
            add(sizes[name], language, size)
    with ThreadPoolExecutor() as pool:  # lzma lets other threads run
        held_out = ["".join(p.text for p in passages if p.language == language).encode() for language in languages]
        primes = ["".join(_last(training, language)).encode() for language in languages]
        alone, primed = pool.map(lzma_bits, held_out), pool.map(lzma_bits, held_out, primes)
        for language, text, bits, primed_bits in zip(languages, held_out, alone, primed, strict=True):
            add(sizes[LZMA], language, Size(bits, len(text)))
            add(sizes[PRIMED_LZMA], language, Size(primed_bits, len(text)))
    return sizes


def _ngram_sizes(training: str, passages: Sequence[Passage]) -> dict[str, Size]:
    by_bytes: WittenBell[int] = WittenBell(ORDER, NUM_BYTES)
    by_bytes.train(training.encode())
    by_characters: WittenBell[str] = WittenBell(ORDER, NUM_CHARACTERS)
    by_characters.train(training)
    num_bytes = sum(len(passage.text.encode()) for passage in passages)
    byte_bits = sum(by_bytes.bits(p.text.encode(), p.context.encode()) for p in passages)
    character_bits = sum(by_characters.bits(p.text, p.context) for p in passages)
    return {BYTE_NGRAM: Size(byte_bits, num_bytes), CHARACTER_NGRAM: Size(character_bits, num_bytes)}


def _last(training: Mapping[str, str], language: str) -> list[str]:
    """All texts, this language's at the end."""
    return [*(text for other, text in training.items() if other != language), training[language]]


def lzma_bits(text: bytes, prime: bytes = b"") -> int:
    """Bits that lzma writes for `text` after it has written `prime`."""
    return 8 * (_compressed_size(prime + text) - _compressed_size(prime))


def _compressed_size(data: bytes) -> int:
    return len(lzma.compress(data, format=lzma.FORMAT_RAW, filters=_FILTERS)) if data else 0
