"""The 46 natural and 13 programming languages of BLOOM's training data, with prompts to begin from."""

import tomllib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Language:
    code: str  # ROOTS' code; simplified and traditional Chinese are "zhs" and "zht"
    name: str  # in English
    endonym: str  # in the language itself
    tag: str  # BCP 47, for the browser's choice of fonts; "en" for programming languages
    rtl: bool = False
    article: str = ""  # article 1 of the Universal Declaration of Human Rights, where there is a translation
    prompts: tuple[str, ...] = ()
    programming: bool = False

    @property
    def label(self) -> str:
        return self.name if self.endonym == self.name else f"{self.endonym} · {self.name}"


def _load() -> tuple[Language, ...]:
    data = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    natural = (
        Language(
            code=row["code"],
            name=row["name"],
            endonym=row["endonym"],
            tag=row.get("tag", row["code"]),
            rtl=row.get("rtl", False),
            article=row.get("article", ""),
            prompts=tuple(row["prompts"]),
        )
        for row in data["natural"]
    )
    programming = (
        Language(
            code=row["code"],
            name=row["name"],
            endonym=row["name"],
            tag="en",
            prompts=tuple(row["prompts"]),
            programming=True,
        )
        for row in data["programming"]
    )
    return (*natural, *programming)


LANGUAGES = _load()
BY_CODE = {language.code: language for language in LANGUAGES}


def label_of(name: str) -> str:
    """The label of a language by its code, tag or, for programming languages, name; else `name` itself."""
    return next((x.label for x in LANGUAGES if name in ((x.name,) if x.programming else (x.code, x.tag))), name)
