"""Requests that nobody means: any message of the contract, with values that break things and names that are there."""

from collections.abc import Sequence
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

MAX_DEPTH = 4  # of messages in messages
MAX_REPEATED = 3
NASTY_TEXTS = (
    "../../etc/passwd",
    "/etc/passwd",
    "a/b/c",
    "a\\b",
    "\0",
    "\x1b[2J\n",
    "\u202egnp.exe",
    "🌱" * 50,
    "x" * 10_000,
    "' OR 1=1 --",
    "%_%",
    "{}",
    "[" * 2_000,
    '{"model_type": "bloom"}',
    "560m",
    "176b",
    "name@0",
    "name@99999999999999999999",
    "sha256:" + "0" * 64,
    "sha256:" + "z" * 64,
    "file:///etc/passwd",
    "http://127.0.0.1:1/",
    "https://[::1]/",
    "1e400",
    "NaN",
)
_INTEGERS = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_SINT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_SINT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
}


def requests(descriptor: Descriptor, known: Sequence[str]) -> SearchStrategy[Message]:
    """Messages of a type, in which `known` names occur often."""
    return _messages(descriptor, known, 0)


@st.composite
def _messages(draw: Any, descriptor: Descriptor, known: Sequence[str], depth: int) -> Message:
    message = GetMessageClass(descriptor)()
    for field in descriptor.fields:
        if not draw(st.booleans()):
            continue
        is_message = field.type == FieldDescriptor.TYPE_MESSAGE
        if is_message and depth == MAX_DEPTH:
            continue
        if is_message and field.message_type.GetOptions().map_entry:
            _draw_map(draw, message, field, known)
        elif field.is_repeated:
            for value in draw(st.lists(_values(field, known, depth), max_size=MAX_REPEATED)):
                add = getattr(message, field.name)
                add.add().CopyFrom(value) if is_message else add.append(value)
        elif is_message:
            getattr(message, field.name).CopyFrom(draw(_values(field, known, depth)))
        else:
            setattr(message, field.name, draw(_values(field, known, depth)))
    return message


def _draw_map(draw: Any, message: Message, field: FieldDescriptor, known: Sequence[str]) -> None:
    key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
    if value.type == FieldDescriptor.TYPE_MESSAGE:
        return
    entries = st.dictionaries(_values(key, known, MAX_DEPTH), _values(value, known, MAX_DEPTH), max_size=MAX_REPEATED)
    getattr(message, field.name).update(draw(entries))


def _values(field: FieldDescriptor, known: Sequence[str], depth: int) -> SearchStrategy[Any]:
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        return _messages(field.message_type, known, depth + 1)
    if field.type == FieldDescriptor.TYPE_ENUM:
        declared = [value.number for value in field.enum_type.values]
        return st.sampled_from([*declared, max(declared) + 1, 2**31 - 1, -1])
    if field.type == FieldDescriptor.TYPE_STRING:
        return st.sampled_from([*known, *NASTY_TEXTS]) | st.text(max_size=20)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return st.binary(max_size=64)
    if field.type == FieldDescriptor.TYPE_BOOL:
        return st.booleans()
    if field.type in _INTEGERS:
        low, high = _INTEGERS[field.type]
        return st.integers(0, 8) | st.sampled_from([low, high]) | st.integers(low, high)
    width = 32 if field.type == FieldDescriptor.TYPE_FLOAT else 64
    return st.floats(width=width) | st.sampled_from([0.0, 1.0, float("nan"), float("inf"), -1.0])
