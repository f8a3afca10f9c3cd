"""Conversations as rows hold them: [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]."""

ROLES = ("system", "user", "assistant")


def check_messages(messages: object) -> str:
    """Why `messages` are no conversation to learn from; "" when they are one."""
    if not isinstance(messages, list) or not messages:
        return '"messages" is not a list of {"role": "user", "content": "…"}, …'
    for number, message in enumerate(messages, 1):
        if reason := _check_message(message, first=number == 1):
            return f"message {number} {reason}"
    if messages[-1]["role"] != "assistant":
        return f"the last message is of the {messages[-1]['role']}; end with one of the assistant, which is learnt"
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
    if not isinstance(content, str) or not content.strip():
        return 'has no text as "content"'
    return ""
