"""HTML of model output and tokens. Everything that is not ours is escaped here, and nowhere else is HTML made of it.

Drawn with `st.html`, never as Markdown: a model's output may hold any Markdown, LaTeX or HTML.
"""

from collections.abc import Iterable, Sequence
from html import escape
from unicodedata import bidirectional

from ui.languages import Language
from ui.pieces import Group, Piece

COLOURS = 4  # token backgrounds alternate; style.css has as many
_VISIBLE = {" ": "·", "\n": "↵", "\t": "→", "\r": "␍", "\u00a0": "⍽", "\u3000": "□"}


def completion(prompt: str, text: str, language: Language, *, running: bool = False) -> str:
    """The prompt, and after it what the model added, each paragraph in its own direction."""
    kind = "code" if language.programming else "text"
    caret = '<span class="an-caret"></span>' if running else ""
    return (
        f'<div class="an-completion an-{kind}" dir="{direction(prompt + text)}" lang="{escape(language.tag)}">'
        f'<span class="an-prompt">{escape(prompt)}</span>'
        f'<span class="an-added">{escape(text)}</span>{caret}</div>'
    )


def token_boxes(groups: Iterable[Group], language: Language, *, show_ids: bool) -> str:
    """Each token in a box, in the text's order; tokens that share a character stand together under it."""
    groups = list(groups)
    text = "".join(group.text for group in groups)
    boxes, number = [], 0
    for group in groups:
        pieces = []
        for piece in group.pieces:
            pieces.append(_box(piece, number % COLOURS, show_ids=show_ids))
            number += 1
        shared = (
            f'<span class="an-shared" title="{escape(group.text)}: {len(pieces)} tokens">'
            f'<span class="an-shared-text">{escape(_visible(group.text))}</span>{"".join(pieces)}</span>'
        )
        boxes.append(shared if group.shared else pieces[0])
        boxes.append("<br>" * group.text.count("\n"))
    return (
        f'<div class="an-tokens" dir="{direction(text)}" lang="{escape(language.tag)}">'
        f"{''.join(boxes) or '&nbsp;'}</div>"
    )


def _box(piece: Piece, colour: int, *, show_ids: bool) -> str:
    below = f'<span class="an-id">{piece.id}</span>' if show_ids else ""
    title = f"id {piece.id} · bytes {piece.hex}"
    if piece.text is None:
        inside = f'<span class="an-hex" dir="ltr">{piece.hex}</span>'
        return f'<span class="an-token an-bytes" title="{title}">{inside}{below}</span>'
    text = "".join(f'<span class="an-space">{_VISIBLE[c]}</span>' if c in _VISIBLE else escape(c) for c in piece.text)
    return f'<span class="an-token an-c{colour}" title="{title}"><bdi>{text}</bdi>{below}</span>'


def _visible(text: str) -> str:
    return "".join(_VISIBLE.get(c, c) for c in text)


def direction(text: str) -> str:
    """That of the text's first letter: "rtl" or "ltr"."""
    kinds = (bidirectional(c) for c in text)
    return next(("ltr" if kind == "L" else "rtl" for kind in kinds if kind in ("L", "R", "AL")), "ltr")


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """A row of labelled figures."""
    cells = "".join(f"<div><dt>{escape(label)}</dt><dd>{escape(value)}</dd></div>" for label, value in pairs)
    return f'<dl class="an-facts">{cells}</dl>'


def chips(values: Iterable[str], kind: str = "") -> str:
    """Small labels in a row."""
    return f'<div class="an-chips">{"".join(f"<span class={_quoted(kind)}>{escape(v)}</span>" for v in values)}</div>'


def _quoted(kind: str) -> str:
    return f'"an-chip {escape(kind)}"'


def state_badge(state: str) -> str:
    """A job's state ("RUNNING") as a coloured label."""
    return f'<span class="an-state an-{escape(state.lower())}">{escape(state.capitalize())}</span>'


def heading(title: str, subtitle: str) -> str:
    return f'<div class="an-heading"><h1>{escape(title)}</h1><p>{escape(subtitle)}</p></div>'


def card_title(title: str, detail: str = "") -> str:
    aside = f"<span>{escape(detail)}</span>" if detail and detail != title else ""
    return f'<div class="an-card-title"><b>{escape(title)}</b>{aside}</div>'


def description(text: str) -> str:
    return f'<p class="an-description">{escape(text)}</p>'


def findings(pairs: Sequence[tuple[str, str]]) -> str:
    """Lines of (what about, what was found)."""
    lines = "".join(f"<div><b>{escape(about.capitalize())}</b> {escape(text)}</div>" for about, text in pairs)
    return f'<div class="an-findings">{lines}</div>'


def log(rows: Sequence[tuple[str, str]]) -> str:
    """Lines of (time, message), in order."""
    lines = "".join(f"<div><time>{escape(at)}</time>{escape(message)}</div>" for at, message in rows)
    return f'<div class="an-log">{lines}</div>'


def job_title(title: str, state: str, job_id: str) -> str:
    quiet = f'<span class="an-quiet">{escape(job_id)}</span>'
    return f'<div class="an-job"><b>{escape(title)}</b>{state_badge(state)}{quiet}</div>'
