"""Conversations as text: what stands around each message, and which part of the text is learnt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from anthesis.messages import is_learnt

Part = tuple[str, bool]  # a text, and whether it is learnt; behind one that is, the end of the text is learnt, too
CONTENT = "{content}"


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatFormat:
    """The text of a message of each role. Ours: BLOOMZ was published with none."""

    system: str = "{content}\n"
    user: str = "User: {content}\n"
    assistant: str = "Assistant: {content}\n"

    def __post_init__(self) -> None:
        for role in fields(self):
            form = getattr(self, role.name)
            if not isinstance(form, str) or form.count(CONTENT) != 1:
                raise ValueError(f"chat.{role.name} is {form!r:.80}; write a text with {CONTENT} in it, once")

    def parts(self, messages: Sequence[Mapping[str, Any]]) -> list[Part]:
        """A conversation's text, of which the assistant's contents are learnt unless their weight is 0.

        Spaces before one belong to it: BPE makes them part of its first word, and a prompt ends without them.
        """
        parts: list[Part] = []
        for message in messages:
            before, after = getattr(self, message["role"]).split(CONTENT)
            if not is_learnt(message):
                parts.append((before + message["content"] + after, False))
                continue
            prompt = before.rstrip(" ")
            parts += [(prompt, False), (before[len(prompt) :] + message["content"], True), (after, False)]
        return _joined(parts)[:-1]  # nothing is learnt behind the last content


def _joined(parts: list[Part]) -> list[Part]:
    """Neighbours that are not learnt as one, so that words are not cut; one at the end in any case."""
    joined: list[Part] = []
    for text, learnt in parts:
        if joined and not learnt and not joined[-1][1]:
            joined[-1] = (joined[-1][0] + text, False)
        else:
            joined.append((text, learnt))
    return joined
