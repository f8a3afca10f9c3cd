"""What is taken for what, in numbers and in a table."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from services.trainer.cleaning.languages import NATURAL, OTHER, UNDETERMINED


@dataclass(frozen=True, slots=True)
class Confusion:
    """Of a language's texts: how many were told as what."""

    language: str
    told: Counter[str]

    @property
    def right(self) -> int:
        return self.told[self.language if self.language in NATURAL else OTHER]

    @property
    def undetermined(self) -> int:
        return self.told[UNDETERMINED]

    @property
    def wrong(self) -> dict[str, int]:
        expected = {self.language if self.language in NATURAL else OTHER, UNDETERMINED}
        return {code: number for code, number in self.told.most_common() if code not in expected}


def confusions(texts: dict[str, list[str]], tell: Callable[[str], str]) -> list[Confusion]:
    return [Confusion(code, Counter(map(tell, found))) for code, found in texts.items() if found]


def cell(found: Confusion | None) -> str:
    """How many were right; how many undetermined, or taken for what, where any were."""
    if found is None:
        return "–"
    undetermined = [f"{found.undetermined} undetermined"] if found.undetermined else []
    wrong = [f"{number} taken for {code}" for code, number in found.wrong.items()]
    return ", ".join((f"{found.right} of {found.told.total()}", *undetermined, *wrong))


def total(found: Iterable[Confusion]) -> str:
    found = list(found)
    texts, right = sum(one.told.total() for one in found), sum(one.right for one in found)
    undetermined = sum(one.undetermined for one in found)
    wrong = texts - right - undetermined
    return f"{right / texts:.1%} of {texts:,}, {undetermined / texts:.1%} undetermined, {wrong / texts:.1%} wrong"
