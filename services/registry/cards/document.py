"""A card as a file: front matter, a title, sections; in each what people wrote, then, between marks, what is made.

What people wrote can be told from the rest again, so a whole card can be edited and handed back. It has no HTML: a tag
or a comment that is not closed would swallow what comes after it.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from services.common.errors import InvalidArgument

MAX_CHARACTERS = 64 * 1024
MAX_SECTIONS = 30
MAX_TITLE = 100
_MARK = "<!-- registry:"
GENERATED = f"{_MARK} made from what it knows, anew each time -->"
INHERITED = f"{_MARK} from the model's card -->"
END = f"{_MARK} end -->"
_HEADING = re.compile(r"## +(.*?)(?: +#+)? *")
_FENCE = re.compile(r" {0,3}(?:(`{3,})[^`]*|(~{3,}).*)")
_HTML = re.compile(r"<(?!https?://|mailto:)[a-zA-Z/!?][^\s>]{0,20}")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_FRONT_MATTER = re.compile(r"\A---\n(.*?)^---[ \t]*(?:\n|\Z)", re.DOTALL | re.MULTILINE)
_BLANK_ENDS = re.compile(r"\A(?:[ \t]*\n)+|\s+\Z")


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    title: str  # "": what stands before the first heading
    text: str = ""  # that people wrote
    inherited: str = ""  # that people wrote on the model's card
    generated: str = ""

    @property
    def marked(self) -> list[tuple[str, str]]:
        """(mark, body) of what people did not write here."""
        return [(mark, body) for mark, body in ((INHERITED, self.inherited), (GENERATED, self.generated)) if body]


@dataclass(kw_only=True, slots=True)
class Parsed:
    front_matter: str = ""
    own: dict[str, str] = field(default_factory=dict)  # title -> text, in order
    marked: list[tuple[str, str, str]] = field(default_factory=list)  # (title, mark, body)


def write(front_matter: str, name: str, sections: Sequence[Section]) -> str:
    """The whole README.md."""
    parts = [f"---\n{front_matter.strip()}\n---", f"# {name}"]
    for section in sections:
        if section.title:
            parts.append(f"## {section.title}")
        if section.text:
            parts.append(section.text)
        parts += [f"{mark}\n\n{body}\n\n{END}" for mark, body in section.marked]
    return "\n\n".join(parts) + "\n"


def write_own(own: Mapping[str, str]) -> str:
    """What people wrote alone, as it is kept."""
    parts = [f"## {title}\n\n{text}" if title else text for title, text in own.items()]
    return "\n\n".join(parts)


def parse(text: str, name: str, titles: Sequence[str]) -> Parsed:
    """What people wrote in `text`, by section, and what else is in it. `titles`: those of the registry's sections.

    Raises InvalidArgument, naming section and line.
    """
    if len(text) > MAX_CHARACTERS:
        raise InvalidArgument(f"the text has {len(text)} characters; write at most {MAX_CHARACTERS}")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if control := _CONTROL.search(text):
        raise InvalidArgument(f"the text has the control character {control[0]!r}; take it out")
    parsed = Parsed()
    if found := _FRONT_MATTER.match(text):
        parsed.front_matter, text = found[1].strip(), text[found.end() :]
    for title, lines in _sections(text, name, {title.casefold(): title for title in titles}):
        if title in parsed.own:
            raise InvalidArgument(f"section {title!r} is there twice; make one of them")
        own = _take_marked(title, lines, parsed)
        _check(title, own)
        parsed.own[title] = _BLANK_ENDS.sub("", "\n".join(own))
    parsed.own = {title: written for title, written in parsed.own.items() if written}
    if len(parsed.own) > MAX_SECTIONS:
        raise InvalidArgument(f"{len(parsed.own)} sections are too many; write at most {MAX_SECTIONS}")
    return parsed


def _sections(text: str, name: str, titles: Mapping[str, str]) -> Iterator[tuple[str, list[str]]]:
    """(title, lines) of each, the first without a title; the card's own heading left out."""
    title, lines = "", list[str]()
    for line, is_code in _lines(text):
        if not is_code and (heading := _HEADING.fullmatch(line)):
            yield title, lines
            title, lines = _title(heading[1], titles), []
        elif title or line != f"# {name}" or any(map(str.strip, lines)):
            lines.append(line)
    yield title, lines


def _title(text: str, titles: Mapping[str, str]) -> str:
    if not text or len(text) > MAX_TITLE or _HTML.search(text):
        raise InvalidArgument(
            f"heading {text[:MAX_TITLE]!r} is not allowed; write 1 to {MAX_TITLE} characters without HTML"
        )
    return titles.get(text.casefold(), text)


def _lines(text: str) -> Iterator[tuple[str, bool]]:
    """Each line, and whether it is of fenced code, or of what the registry made. Source: CommonMark 0.31, 4.5."""
    fence = ""
    marked = False
    for line in text.split("\n"):
        if marked:
            marked = line != END
            yield line, True
        elif fence:
            yield line, True
            if re.fullmatch(rf" {{0,3}}{re.escape(fence[0])}{{{len(fence)},}}[ \t]*", line):
                fence = ""
        else:
            found = _FENCE.fullmatch(line)
            fence = (found[1] or found[2]) if found else ""
            marked = line in (GENERATED, INHERITED)
            yield line, bool(fence) or marked


def _take_marked(title: str, lines: Sequence[str], parsed: Parsed) -> list[str]:
    """`lines` without the blocks between marks, which go to `parsed`."""
    own, mark, block = list[str](), "", list[str]()
    for line in lines:
        if mark and line == END:
            parsed.marked.append((title, mark, _BLANK_ENDS.sub("", "\n".join(block))))
            mark = ""
        elif mark:
            block.append(line)
        elif line in (GENERATED, INHERITED):
            mark, block = line, []
        else:
            own.append(line)
    if mark:
        raise InvalidArgument(f"section {title!r} has {mark!r} without {END!r}; take both out, or neither")
    return own


def _check(title: str, lines: Sequence[str]) -> None:
    """Raise InvalidArgument for HTML, marks and code without an end in what people wrote."""
    where = f"section {title!r}" if title else "before the first heading"
    if not title and next(filter(str.strip, lines), "").rstrip() == "---":
        raise InvalidArgument(f"{where}: the text begins with '---', as front matter does; write '***' for a rule")
    is_code = False
    for number, (line, is_code) in enumerate(_lines("\n".join([*lines, ""])), 1):
        if _MARK in line:
            raise InvalidArgument(f"{where}, line {number}: {_MARK!r} marks what the registry makes; leave it out")
        if not is_code and (html := _HTML.search(line)):
            remedy = "write Markdown, or put it into a fenced code block"
            raise InvalidArgument(f"{where}, line {number}: {html[0]!r} is HTML; {remedy}")
    if is_code:
        raise InvalidArgument(f"{where}: a code block has no end; close it with its fence")
