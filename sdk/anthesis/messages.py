"""Conversations as rows hold them: [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}].

The assistant's contents are learnt, but for messages with "weight": 0, as OpenAI's fine-tuning has it.
"""

from collections.abc import Mapping
from typing import Any

ROLES = ("system", "user", "assistant")
CALLS = ("tool_calls", "function_call")  # OpenAI's; there is no text of theirs to learn


def is_learnt(message: Mapping[str, Any]) -> bool:
    return message["role"] == "assistant" and message.get("weight") != 0


def check_messages(messages: object) -> str:
    """Why `messages` are no conversation to learn from; "" when they are one."""
    if not isinstance(messages, list) or not messages:
        return '"messages" is not a list of {"role": "user", "content": "…"}, …'
    for number, message in enumerate(messages, 1):
        if reason := _check_message(message, first=number == 1):
            return f"message {number} {reason}"
    if messages[-1]["role"] != "assistant":
        return f"the last message is of the {messages[-1]['role']}; end with one of the assistant, which is learnt"
    if not any(map(is_learnt, messages)):
        return 'nothing is learnt: each message of the assistant has "weight" 0; set one to 1'
    return ""


def _check_message(message: object, *, first: bool) -> str:
    if not isinstance(message, dict):
        return 'is not {"role": "user", "content": "…"}'
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        shown = repr(role)[:40] if isinstance(role, str) else "no string"
        return f'has as "role" {shown}; choose {", ".join(ROLES)}'
    if role == "system" and not first:
        return "is of the system; only the first may be"
    if call := next((key for key in CALLS if message.get(key)), ""):
        return f'has "{call}", which is not supported; leave the conversation out'
    if not isinstance(content, str) or not content.strip():
        return 'has no text as "content"'
    weight = message.get("weight")
    if weight is not None and (type(weight) is not int or weight not in (0, 1)):
        return 'has a "weight" that is neither 0 (not learnt) nor 1'
    return ""
