"""What the demo measured, and what it must have reached."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .baselines import BYTE_NGRAM, PRIMED_LZMA
from .languages import NAMES
from .parallel import Example
from .sizes import Sizes, total

MAX_BITS_PER_BYTE = 1.60
MIN_LANGUAGES_WON = 32
MIN_NAMING, MAX_BASE_NAMING = 0.70, 0.05
MIN_CHRF_RATIO = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelResults:
    naming: float  # share of held-out sentences whose language was named
    chrf: float  # of held-out translations, 0 to 100
    answers: Sequence[str]  # to the results' questions
    completions: Sequence[str]  # of the results' prompts


@dataclass(frozen=True, kw_only=True, slots=True)
class Results:
    pretrained: str
    fine_tuned: str
    models: Mapping[str, ModelResults]  # of both, in this order
    sizes: Sizes  # what the pre-trained model makes of the held-out passages
    baselines: Mapping[str, Sizes]  # the same of each baseline, by its name
    questions: Sequence[Example]  # a few of the held-out tasks, to look at
    prompts: Sequence[tuple[str, str]]  # (language, prompt)

    @property
    def natural_languages(self) -> list[str]:
        return [language for language in self.sizes if language in NAMES]

    @property
    def programming_languages(self) -> list[str]:
        return [language for language in self.sizes if language not in NAMES]


@dataclass(frozen=True, slots=True)
class Bar:
    """A requirement in words, with what was measured, and whether it is met."""

    text: str
    met: bool


def judge(results: Results) -> list[Bar]:
    """Every bar of the demo."""
    languages = results.natural_languages
    base, tuned = results.models[results.pretrained], results.models[results.fine_tuned]
    learned = total(results.sizes, languages)
    primed, byte_ngram = (total(results.baselines[name], languages) for name in (PRIMED_LZMA, BYTE_NGRAM))
    won = sum(
        results.sizes[language].bits_per_byte < results.baselines[PRIMED_LZMA][language].bits_per_byte
        for language in languages
    )
    name, tuned_name = results.pretrained, results.fine_tuned
    named = base.naming
    return [
        Bar(f"{name}: {learned:.3f} bits per byte, at most {MAX_BITS_PER_BYTE:.2f}", learned <= MAX_BITS_PER_BYTE),
        Bar(f"{name}: {learned:.3f} bits per byte, below primed lzma's {primed:.3f}", learned < primed),
        Bar(f"{name}: {learned:.3f} bits per byte, below a byte 5-gram's {byte_ngram:.3f}", learned < byte_ngram),
        Bar(
            f"{name}: better than primed lzma in {won} of {len(languages)} languages, at least {MIN_LANGUAGES_WON}",
            won >= MIN_LANGUAGES_WON,
        ),
        Bar(
            f"{tuned_name}: names {tuned.naming:.1%} of languages, at least {MIN_NAMING:.0%}",
            tuned.naming >= MIN_NAMING,
        ),
        Bar(f"{name}: names {named:.1%} of languages, under {MAX_BASE_NAMING:.0%}", named < MAX_BASE_NAMING),
        Bar(
            f"{tuned_name}: chrF {tuned.chrf:.1f}, more than {MIN_CHRF_RATIO:g} times {name}'s {base.chrf:.1f}",
            tuned.chrf > MIN_CHRF_RATIO * base.chrf,
        ),
    ]
