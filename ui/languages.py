"""The 46 natural and 13 programming languages of BLOOM's training data, with prompts to begin from."""

import tomllib
from dataclasses import dataclass
from pathlib import Path

TO_TRANSLATE = "Everyone has the right to education."
TITLE_CHARACTERS = 36


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
    def examples(self) -> list[tuple[str, str]]:
        """(title, prompt): beginnings to continue, then tasks as models tuned on tasks know them."""
        beginnings = [(_shortened(prompt), prompt) for prompt in self.prompts]
        if not self.article:
            return beginnings
        tasks = [("Which language?", f"{self.article}\nThe language of this sentence is:")]
        if self.code != "en":
            tasks.append(("Translate", f"{TO_TRANSLATE}\nIn {self.name}:"))
        return beginnings + tasks

    @property
    def label(self) -> str:
        return self.name if self.endonym == self.name else f"{self.endonym} · {self.name}"


def _shortened(prompt: str) -> str:
    line = " ".join(prompt.split())
    return line if len(line) <= TITLE_CHARACTERS else line[: TITLE_CHARACTERS - 1].rstrip() + "…"


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
    for language in LANGUAGES:
        names = (language.name,) if language.programming else (language.code, language.tag.lower())
        if name in names or name.lower() in names:
            return language.label
    return name
