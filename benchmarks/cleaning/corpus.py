"""A mixed corpus from a seed, and the truth about it: `python -m benchmarks.cleaning.corpus --seed 1 FOLDER`.

FOLDER/corpus has .jsonl files in 24 natural and 6 programming languages; FOLDER/truth.jsonl says of every document
what was planted. Nothing in the corpus itself tells.
"""

import argparse
import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from benchmarks.cleaning import programs
from benchmarks.cleaning.personal import harmless, personal
from benchmarks.cleaning.speech import Speaker, articles
from services.trainer.cleaning.pii import TAGS

NUM_PLAIN = 8  # documents per language with nothing planted but what looks like something
NUM_WITH_LINES = 11  # with boilerplate, some also with a line in another language: enough for the published 10 repeats
NUM_WITH_PII = 4
NUM_PAIRS = 2  # of each kind of copy
NUM_WRONG = 1  # documents that declare another language than theirs
NUM_PROGRAMS = 14  # per programming language
NUM_REFRAINS = 3  # documents that share a line and may: too few for boilerplate
NUM_FILES = 4


@dataclass(frozen=True, kw_only=True)
class Planted:
    """A document and the truth about it."""

    id: str
    language: str
    text: str
    kind: str  # plain, lines, pii, wrong_language, code, code_unfit, or the kind of copy
    declared: str | None = None
    copy_of: str | None = None
    pii: dict[str, str] = field(default_factory=dict)  # value -> tag
    boilerplate: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    path: str | None = None
    licence: str | None = None

    def row(self) -> dict[str, str]:
        named = {
            "id": self.id,
            "text": self.text,
            "language": self.declared,
            "path": self.path,
            "license": self.licence,
        }
        return {key: value for key, value in named.items() if value is not None}


def corpus(seed: int) -> list[Planted]:
    """All documents, in the order in which they are written."""
    rng = random.Random(seed)
    speakers = {language: Speaker(language, text, rng) for language, text in articles().items()}
    documents = [document for language in speakers for document in _in_language(language, speakers, rng)]
    documents += [document for language in programs.LANGUAGES for document in _in_code(language, rng)]
    rng.shuffle(documents)
    return documents


def write(seed: int, folder: Path) -> None:
    documents = corpus(seed)
    (folder / "corpus").mkdir(parents=True)
    for part in range(NUM_FILES):
        rows = (json.dumps(document.row(), ensure_ascii=False) + "\n" for document in documents[part::NUM_FILES])
        (folder / "corpus" / f"{part}.jsonl").write_text("".join(rows), encoding="utf-8")
    truth = (json.dumps(asdict(document), ensure_ascii=False) + "\n" for document in documents)
    (folder / "truth.jsonl").write_text("".join(truth), encoding="utf-8")


def read_truth(folder: Path) -> list[Planted]:
    return [Planted(**json.loads(line)) for line in (folder / "truth.jsonl").read_text(encoding="utf-8").splitlines()]


def _in_language(language: str, speakers: dict[str, Speaker], rng: random.Random) -> Iterator[Planted]:
    speaker = speakers[language]
    plain = [_plain(f"{language}-plain-{n}", speaker, rng) for n in range(NUM_PLAIN)]
    refrain = speaker.line()
    plain[:NUM_REFRAINS] = [replace(document, text=f"{document.text}\n{refrain}") for document in plain[:NUM_REFRAINS]]
    yield from plain
    for n in range(NUM_PAIRS):
        yield _copy(plain[n], "duplicate", plain[n].text)
        yield _copy(plain[n + 1 * NUM_PAIRS], "duplicate_but_for_marks", _other_marks(plain[n + NUM_PAIRS].text, rng))
        yield _copy(plain[n + 2 * NUM_PAIRS], "near_duplicate_case", _other_case(plain[n + 2 * NUM_PAIRS].text))
        yield _copy(
            plain[n + 3 * NUM_PAIRS], "near_duplicate_word", _other_word(plain[n + 3 * NUM_PAIRS].text, speaker, rng)
        )
    boilerplate = [speaker.sentence(8, 10) for _ in range(2)]
    others = [other for code, other in speakers.items() if code != language]
    for n in range(NUM_WITH_LINES):
        yield _with_lines(f"{language}-lines-{n}", speaker, boilerplate, rng.choice(others) if n % 2 else None, rng)
    for n in range(NUM_WITH_PII):
        yield _with_pii(f"{language}-pii-{n}", speaker, rng)
    for n in range(NUM_WRONG):
        wrong = rng.choice([code for code in speakers if code != language])
        yield replace(_plain(f"{language}-wrong-{n}", speaker, rng), kind="wrong_language", declared=wrong)


def _plain(name: str, speaker: Speaker, rng: random.Random) -> Planted:
    lines = [_with_word(line, harmless(rng), rng) if rng.random() < 0.4 else line for line in speaker.text()]
    declared = rng.choice((None, speaker.language))
    return Planted(id=name, language=speaker.language, text="\n".join(lines), kind="plain", declared=declared)


def _with_lines(
    name: str, speaker: Speaker, boilerplate: list[str], foreign: Speaker | None, rng: random.Random
) -> Planted:
    strangers = [foreign.sentence(12, 16)] if foreign else []
    lines = speaker.text()
    for line in (*boilerplate, *strangers):
        lines.insert(rng.randrange(len(lines) + 1), line)
    return Planted(
        id=name,
        language=speaker.language,
        text="\n".join(lines),
        kind="lines",
        declared=speaker.language,
        boilerplate=boilerplate,
        foreign=strangers,
    )


def _with_pii(name: str, speaker: Speaker, rng: random.Random) -> Planted:
    lines = speaker.text(len(TAGS) + 1, 10)
    values = {personal(tag, rng): tag for tag in TAGS}
    for place, value in enumerate(values):
        lines[place] = _with_word(_with_word(lines[place], harmless(rng), rng), value, rng)
    rng.shuffle(lines)
    language = speaker.language
    return Planted(id=name, language=language, text="\n".join(lines), kind="pii", declared=language, pii=values)


def _with_word(line: str, value: str, rng: random.Random) -> str:
    """With the value between two words, sometimes in brackets or before a comma."""
    words = line.split(" ")
    framed = rng.choice(("{}", "{}", "({})", "{},")).format(value)
    words.insert(rng.randrange(len(words) + 1), framed)
    return " ".join(words)


def _copy(original: Planted, kind: str, text: str) -> Planted:
    return replace(original, id=f"{original.id}-{kind}", kind=kind, text=text, copy_of=original.id)


def _other_marks(text: str, rng: random.Random) -> str:
    """Other white space, other digits, more punctuation."""
    digits = str.maketrans("0123456789", "".join(rng.choices("0123456789", k=10)))
    return text.translate(digits).replace("\n", " !\n\n").replace(" ", "  ")


def _other_case(text: str) -> str:
    """Capitals, or, in scripts that have none, quotation marks that are no ASCII."""
    return text.upper().lower() + "”" if text.lower() != text else "“" + text.replace("\n", "”\n“") + "”"


def _other_word(text: str, speaker: Speaker, rng: random.Random) -> str:
    separator = "" if speaker.language == "zh-hans" else " "
    words = list(text) if not separator else text.split(" ")
    words[rng.randrange(len(words))] = speaker.word()
    return separator.join(words)


def _in_code(language: str, rng: random.Random) -> Iterator[Planted]:
    def planted(name: str, kind: str, text: str, licence: str | None = None, copy_of: str | None = None) -> Planted:
        path = f"src/{name}{programs.ending(language)}"
        return Planted(id=name, language=language, text=text, kind=kind, path=path, licence=licence, copy_of=copy_of)

    texts = [programs.program(language, rng) for _ in range(NUM_PROGRAMS)]
    for n, text in enumerate(texts):
        yield planted(f"{language}-{n}", "code", text, rng.choice((None, "mit", "apache-2.0")))
    for n in range(NUM_PAIRS):
        yield planted(f"{language}-{n}-copy", "code_duplicate", programs.respaced(texts[n]), copy_of=f"{language}-{n}")
    for reason in programs.UNFIT:
        licence = "gpl-3.0" if reason == "code_licence" else "mit"
        yield planted(f"{language}-{reason}", "code_unfit", programs.unfit(reason, language, rng), licence)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cleaning.corpus", description=__doc__)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    write(arguments.seed, arguments.folder)


if __name__ == "__main__":
    main()
