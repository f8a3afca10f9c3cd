"""Personal information, found by regular expressions and replaced by its tag.

What is looked for is what BigScience's patterns say, written anew: what stands around a match is looked at and not
consumed, so that neighbours are both found, and lengths are bounded, so that no text takes long. Source:
bigscience-workshop/data-preparation@9d058841, 02_pii/bigscience_pii_detect_redact.py. PHONE is the international
notation, as in pii-manager (bigscience-workshop/data_tooling@388499d4), with longer groups: BigScience's own NUMBER and
ID, any run of digits, were left out of ROOTS for their false positives, and are left out here.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv6Address

import regex

_MARKS = "。，、；：！？।۔،؛؟"  # ends of sentences and clauses in other scripts: ours
_NEVER_IN_NAMES = rf"""\s,;:?!'"()@{_MARKS}"""
_AROUND = rf"{_NEVER_IN_NAMES}.\p{{Han}}"  # what a match may stand between, like the ends of the text
_BEFORE, _AFTER = rf"(?<![^{_AROUND}])", rf"(?![^{_AROUND}])"

_EMAIL = rf"""
    (?<! [^{_AROUND}<] )
    [^{_NEVER_IN_NAMES}<]{{1,64}} @ [^\s,;?!@/]{{0,253}} [^\s,;:?!'"()@/.>] \. \p{{L}}\w+
    (?! [^{_AROUND}>] )
"""
_USER = rf"(?<! [^{_NEVER_IN_NAMES}\p{{Han}}] ) @ [^{_NEVER_IN_NAMES}]{{3,}}"
# Letters and other characters by turns, four changes or more; or three groups of capitals and digits. The published
# patterns say so in ways that take exponential time where they do not match; these never go back.
_LETTERS, _OTHERS = r"[A-Za-z]++", r"[\p{Nd}\p{Pd}/+=:_]++"
_GROUP = r"(?: \p{Nd}{3,}+ (?![A-Z]) | (?=[A-Z]*+\p{Nd}) (?=\p{Nd}*+[A-Z]) [A-Z\p{Nd}]{2,}+ )"
_SIX_OR_MORE, _NINE_OR_MORE = (rf"(?= [A-Z\p{{Nd}}]{least} ) {_GROUP}" for least in ("{6}", "{9}"))
_KEY = rf"""
    {_BEFORE}
    (?: (?= [A-Za-z\p{{Nd}}\p{{Pd}}/+=:_]{{8}} )
        (?: (?: {_LETTERS} {_OTHERS} ){{2}} {_LETTERS} (?: {_OTHERS} {_LETTERS} ){{0,1000}}+ (?: {_OTHERS} )?+
          | (?: {_OTHERS} {_LETTERS} ){{2}} {_OTHERS} (?: {_LETTERS} {_OTHERS} ){{0,1000}}+ (?: {_LETTERS} )?+ )
      | {_GROUP} (?: [ \p{{Pd}}] {_GROUP} ){{2,1000}}+
      | {_SIX_OR_MORE} [ \p{{Pd}}] {_GROUP} | {_GROUP} [ \p{{Pd}}] {_SIX_OR_MORE}
      | {_NINE_OR_MORE} )
    {_AFTER}
"""
_IPV4 = r"[0-9]{1,3} (?: \. [0-9]{1,3} ){3}"  # which numbers they may be is checked afterwards
_IPV6 = r"(?:[0-9a-fA-F]{1,4})?+ (?: :{1,2} [0-9a-fA-F]{1,4} ){1,8}+ (?: (?:\.\d{1,3}){3} | :: )?+"
_IP = rf"{_BEFORE} (?: {_IPV4} | {_IPV6} ) {_AFTER}"
# Country codes of ITU-T E.164: whole, and the first two digits of those that have three.
_SHORT_CODES = "1 7 20 27 30 31 32 33 34 36 39 40 41 43 44 45 46 47 48 49 51 52 53 54 55 56 57 58 60 61 62 63 64 65 66"
_SHORT_CODES += " 81 82 84 86 90 91 92 93 94 95 98"
_LONG_CODES = "21 22 23 24 25 26 28 29 35 37 38 42 50 59 67 68 69 80 83 85 87 88 89 96 97 99"
_COUNTRY = "|".join((*_SHORT_CODES.split(), *(rf"{code}\d" for code in _LONG_CODES.split())))
_PHONE = rf"""(?<! [^\s'"(\p{{Han}}] ) (?: \+ | 00 ) (?: {_COUNTRY} ) (?: [-.\x20]? \d{{2,4}} ){{2,4}} (?! \d )"""

_DIGIT = regex.compile(r"\p{Nd}")


def _has_digit(match: str) -> bool:
    return _DIGIT.search(match) is not None


def _has_word(match: str) -> bool:
    return any(map(str.isalnum, match))


def _is_address(match: str) -> bool:
    """Neither numbers that no byte holds, nor "::" alone, nor a time."""
    if ":" not in match:
        return all(int(number) < 256 for number in match.split("."))
    try:
        return _has_digit(match) and IPv6Address(match) is not None
    except AddressValueError:
        return False


# In the order of precedence where matches overlap. That a key has a digit, and a name a letter or digit, is ours: the
# published patterns also take a-chain-of-hyphens-like-this, paths, and marks alone.
_FINDERS: dict[str, tuple[str, Callable[[str], bool]]] = {
    "EMAIL": (_EMAIL, bool),
    "PHONE": (_PHONE, bool),
    "IP_ADDRESS": (_IP, _is_address),
    "KEY": (_KEY, _has_digit),
    "USER": (_USER, _has_word),
}
_COMPILED = {
    tag: (regex.compile(pattern, regex.VERBOSE | regex.MULTILINE), check) for tag, (pattern, check) in _FINDERS.items()
}
TAGS = tuple(_FINDERS)
PUBLISHED_TAGS = ("EMAIL", "IP_ADDRESS", "KEY", "USER")  # those of ROOTS


@dataclass(frozen=True, slots=True)
class Span:
    start: int
    end: int
    tag: str


def find(text: str, tags: Iterable[str] = TAGS) -> list[Span]:
    """Personal information, in order, none overlapping."""
    wanted = set(tags)
    taken: list[Span] = []
    for tag, (pattern, check) in _COMPILED.items():
        if tag in wanted:
            spans = (Span(match.start(), match.end(), tag) for match in pattern.finditer(text) if check(match.group()))
            taken.extend(span for span in spans if not _overlaps(span, taken))
    return sorted(taken, key=lambda span: span.start)


def _overlaps(span: Span, others: list[Span]) -> bool:
    return any(span.start < other.end and other.start < span.end for other in others)


def redact(text: str, spans: Iterable[Span]) -> str:
    """The text with `PI:TAG` in place of each span."""
    parts: list[str] = []
    end = 0
    for span in spans:
        parts += (text[end : span.start], f"PI:{span.tag}")
        end = span.end
    return "".join((*parts, text[end:]))
