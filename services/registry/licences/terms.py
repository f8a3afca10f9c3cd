"""What a licence forbids to its users, word for word: a paragraph on use and its attachment, as RAIL licences have.

Source: BigScience RAIL License v1.0, paragraphs 4 and 5, attachment A.
"""

import re
import textwrap

_PARAGRAPH = re.compile(r"^5\. Use-based restrictions\..*?(?=^6\. )", re.MULTILINE | re.DOTALL)
_ATTACHMENT = re.compile(r"^Attachment A\s*$.*", re.MULTILINE | re.DOTALL)
_ITEM = re.compile(r"^\d+\. (.+)$", re.MULTILINE)
ITEM_CHARACTERS = 70


def use_restrictions(text: str) -> str:
    """Paragraph 5 and attachment A; "" for a licence that has no such restrictions."""
    paragraph, attachment = _PARAGRAPH.search(text), _ATTACHMENT.search(text)
    if not paragraph or not attachment:
        return ""
    return f"{paragraph[0].strip()}\n\n{attachment[0].strip()}\n"


def in_short(text: str) -> str:
    """The restrictions' first words, for a message; "" where there are none."""
    attachment = _ATTACHMENT.search(use_restrictions(text))
    items = _ITEM.findall(attachment[0]) if attachment else []
    return "; ".join(
        f"{number}. {textwrap.shorten(item.strip(' ;.'), ITEM_CHARACTERS, placeholder=' ...')}"
        for number, item in enumerate(items, 1)
    )
