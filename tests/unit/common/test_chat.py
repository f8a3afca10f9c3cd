"""Conversations as text, of which the assistant's contents alone are learnt."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.chat import ChatFormat

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi!"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Who wrote Faust?"},
    {"role": "assistant", "content": "Goethe."},
]
contents = st.text(min_size=1)
messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(("user", "assistant")), "content": contents}), max_size=6
).map(lambda found: [*found, {"role": "assistant", "content": "last"}])


def test_a_conversation_is_a_text_that_grows_turn_by_turn():
    assert ChatFormat().parts(TALK) == [
        ("Be brief.\nUser: Hi!\nAssistant:", False),
        (" Hello.", True),
        ("\nUser: Who wrote Faust?\nAssistant:", False),
        (" Goethe.", True),
    ]
    assert ChatFormat().parts(TALK[:3]) == ChatFormat().parts(TALK)[:2]


def test_an_answer_of_weight_0_is_read_and_not_learnt():
    first = {**TALK[2], "weight": 0}
    assert ChatFormat().parts([*TALK[:2], first, *TALK[3:]]) == [
        ("Be brief.\nUser: Hi!\nAssistant: Hello.\nUser: Who wrote Faust?\nAssistant:", False),
        (" Goethe.", True),
    ]
    assert ChatFormat().parts([*TALK[:4], {**TALK[4], "weight": 0}]) == ChatFormat().parts(TALK[:3])


@settings(deadline=None)
@given(messages)
def test_all_of_the_text_is_there_and_the_assistants_is_what_is_learnt(talk):
    form = ChatFormat()
    parts = form.parts(talk)
    text = "".join(getattr(form, message["role"]).replace("{content}", message["content"]) for message in talk)
    assert "".join(part for part, _ in parts) == text.removesuffix("\n")
    learnt = [part for part, is_learnt in parts if is_learnt]
    assert learnt == [f" {message['content']}" for message in talk if message["role"] == "assistant"]


def test_a_format_of_ones_own():
    form = ChatFormat(user="<{content}>", assistant="{content}")
    assert form.parts(TALK[1:3]) == [("<Hi!>", False), ("Hello.", True)]


@pytest.mark.parametrize("form", ["User:", "{content}{content}", 3, None])
def test_a_format_without_its_content_once_is_refused(form):
    with pytest.raises(ValueError, match=r"chat.user is .*; write a text with {content} in it, once"):
        ChatFormat(user=form)
