"""How much text takes how many bits, by language."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Size:
    """Bits that some text takes, and the bytes it has."""

    bits: float = 0.0
    num_bytes: int = 0

    def __add__(self, other: "Size") -> "Size":
        return Size(self.bits + other.bits, self.num_bytes + other.num_bytes)

    @property
    def bits_per_byte(self) -> float:
        return self.bits / self.num_bytes


Sizes = dict[str, Size]  # by language


def total(sizes: Sizes, languages: Iterable[str]) -> float:
    """Bits per byte over these languages together."""
    return sum((sizes[language] for language in languages), Size()).bits_per_byte


def add(sizes: Sizes, language: str, size: Size) -> None:
    sizes[language] = sizes.get(language, Size()) + size
