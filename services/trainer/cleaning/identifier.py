"""Which of ROOTS' languages a text is in, or that this cannot be told.

Two models vote. py3langid (140 languages, its model in the package) knows 36 of ROOTS' codes and many others; ours
(ngram_model) knows 45 and neighbours that are not ROOTS', from the Declaration and from catalogs. Where both know a
language they must agree. No model knows Chitumbuka: a text of it is whatever its data set declares.
"""

from dataclasses import dataclass
from functools import cache
from operator import itemgetter
from pathlib import Path

from py3langid.langid import MODEL_FILE, LanguageIdentifier

from services.trainer.cleaning.languages import NATURAL, OTHER, UNDETERMINED
from services.trainer.cleaning.ngram_model import NgramModel

MODEL = Path(__file__).with_name("languages.npz")  # made by `python -m examples.language_identifier`
UNKNOWN = frozenset({"tum"})  # to both models
MAX_CHARACTERS = 4_000  # of a text are looked at
MIN_PROBABILITY = 0.7  # of either model's first choice; published as the default cut-off for fastText's
MIN_CANDIDATE = 0.1  # less likely ones are not named
EXCLUDED = 0.05  # a language less likely than this, to both models, is ruled out
# py3langid's names that are not ours, and those between which it wavers: there our model decides.
_PY3LANGID = {"zh": "zh-hans", "wuu": "zh-hans", "yue": "zh-hans", "kik": "ki"}
_OURS = {"zh-hant": "zh-hans", "yue": "zh-hans"}


@dataclass(frozen=True, slots=True)
class Guess:
    """`language` is a code of ROOTS', OTHER or UNDETERMINED; `candidates` are what it may be, likeliest first."""

    language: str
    score: float  # probability of the first candidate
    candidates: tuple[str, ...]


class Identifier:
    def __init__(self, model: NgramModel, general: LanguageIdentifier) -> None:
        self._model = model
        self._general = general
        self._general_codes = {_PY3LANGID.get(label, label) for label in general.labels}

    def guess(self, text: str) -> Guess:
        text = text[:MAX_CHARACTERS]
        ours, theirs = _ranked(self._ours(text)), _ranked(self._theirs(text))
        best, score = ours[0]
        general, general_score = theirs[0]
        undetermined = Guess(UNDETERMINED, score, _names(ours, theirs))
        if score < MIN_PROBABILITY:
            return undetermined
        if _general_code(best) in self._general_codes:  # a language that both know
            if _general_code(best) != general or general_score < MIN_PROBABILITY:
                return undetermined
            score = min(score, general_score)
        elif (
            general not in self._model.classes and general_score >= MIN_PROBABILITY
        ):  # each is sure, of one the other lacks
            return undetermined
        return Guess(best if best in NATURAL else OTHER, score, (best,))

    def excludes(self, text: str, language: str) -> bool:
        """Whether both models are sure that the text is in another language."""
        if self._ours(text).get(language, 1.0) >= EXCLUDED:
            return False
        code = _general_code(language)
        return code not in self._general_codes or self._theirs(text)[code] < EXCLUDED

    def _ours(self, text: str) -> dict[str, float]:
        return dict(zip(self._model.classes, self._model.probabilities(text).tolist(), strict=True))

    def _theirs(self, text: str) -> dict[str, float]:
        """By our codes; what it wavers between counts together."""
        probabilities: dict[str, float] = {}
        for label, probability in self._general.rank(text):
            code = _PY3LANGID.get(label, label)
            probabilities[code] = probabilities.get(code, 0.0) + probability
        return probabilities


def _general_code(code: str) -> str:
    """Under which py3langid's opinion of one of our codes is found."""
    return _OURS.get(code, code)


def _ranked(probabilities: dict[str, float]) -> list[tuple[str, float]]:
    """The likeliest three."""
    return sorted(probabilities.items(), key=itemgetter(1), reverse=True)[:3]


def _names(*ranked: list[tuple[str, float]]) -> tuple[str, ...]:
    likely = [name for candidates in ranked for name, score in candidates if score >= MIN_CANDIDATE]
    return tuple(dict.fromkeys(likely))


@cache
def identifier() -> Identifier:
    """The one of this process."""
    return Identifier(NgramModel.load(MODEL), LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True))
