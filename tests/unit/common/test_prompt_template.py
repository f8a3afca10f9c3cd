"""Templates as promptsource writes them: what they render, and what is refused before anything is rendered."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.prompt_template import PromptTemplate

XNLI = PromptTemplate(
    name="can we infer",
    jinja='Suppose "{{premise}}" Can we infer that "{{hypothesis}}"? ||| {{ answer_choices[label] }}',
    answer_choices="Yes ||| {% if label > 1 %}Certainly {% endif %}not ||| No",
)
ROW = {"premise": "It rains.", "hypothesis": "It is wet.", "label": 0}


def template(jinja: str, **changes) -> PromptTemplate:
    return PromptTemplate(name="it", jinja=jinja, **changes)


def test_a_row_is_rendered_to_inputs_and_targets():
    assert XNLI.render(ROW) == ('Suppose "It rains." Can we infer that "It is wet."?', "Yes")
    assert XNLI.render(ROW | {"label": 1})[1] == "not"
    assert XNLI.render(ROW | {"label": 2})[1] == "No"


def test_the_bar_may_stand_in_a_condition_and_a_row_left_out_renders_to_nothing():
    found = template("{% if kind == 'q' %} {{a}}? ||| {{b}} {% endif %}")
    assert found.render({"kind": "q", "a": "one", "b": "two"}) == ("one?", "two")
    assert found.render({"kind": "x", "a": "one", "b": "two"}) is None


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\ue000")))
def test_what_a_row_holds_is_text_whatever_it_spells(text):
    rendered = template("{{value}}. ||| a{{value}}b").render({"value": text})
    assert rendered == (f"{text}.".strip(), f"a{text}b")


@pytest.mark.parametrize("text", ["a ||| b", "{{premise}}", "{% raw %}", "<b>&amp;"])
def test_bars_and_jinja_of_a_row_are_text(text):
    assert template("{{value}} ||| {{value}}").render({"value": text}) == (text, text)


def test_its_fields_are_the_names_that_it_reads_and_does_not_set():
    assert XNLI.fields() == {"premise", "hypothesis", "label"}
    found = template("{% set x = a | trim %}{% for i in range(n) %}{{ x[i] }}{% endfor %} ||| {{ b.c }}")
    assert found.fields() == {"a", "n", "b"}


@pytest.mark.parametrize(
    ("jinja", "reason"),
    [
        ("{{a}} {{b}}", r"has no \|\|\| between"),
        ("{{a}} |||\n{{b", "is no Jinja: line 2: unexpected end of template"),
        ("{{a|shout}} ||| {{b}}", "has no Jinja filter 'shout'; choose among abs"),
        ("{{a is odder}} ||| {{b}}", "has no Jinja test 'odder'"),
        ("{% include 'x' %} ||| {{b}}", "loads another template; write it out"),
        ("{{" + "(" * 5000 + "a" + ")" * 5000 + "}} ||| b", "is nested too deeply"),
    ],
)
def test_what_is_no_template_is_refused_when_it_is_made(jinja, reason):
    with pytest.raises(ValueError, match=reason):
        template(jinja)


def test_nothing_is_computed_when_a_template_is_made():
    bombs = template("{{ 'a' * 10**12 }} {{ 'a' | center(10**12) }} ||| {{ 9**9**9 }}", answer_choices="{{ 1 // 0 }}")
    assert bombs.fields() == set()


@pytest.mark.parametrize(
    ("jinja", "row", "reason"),
    [
        ("{{a}} ||| {{b}}", {"a": 1}, "does not suit 'it': 'b' is undefined"),
        ("{{a}} ||| {{b[3]}}", {"a": 1, "b": []}, "does not suit 'it': list object has no element 3"),
        ("{{a / 0}} ||| b", {"a": 1}, "does not suit 'it': division by zero"),
        ("{{a.__class__.__mro__}} ||| b", {"a": 1}, "does not suit 'it': .*unsafe"),
        ("{{a.append(1)}} ||| b", {"a": []}, "does not suit 'it': .*unsafe"),
        ("{{a}} ||| {{b}}", {"a": 1, "b": " "}, r"gives with 'it' no inputs \|\|\| targets, but '1 \|\|\| '"),
        ("{{a}} ||| b ||| c", {"a": 1}, r"gives with 'it' no inputs \|\|\| targets, but '1 \|\|\| b \|\|\| c'"),
    ],
)
def test_a_row_that_does_not_suit_is_refused_with_the_reason(jinja, row, reason):
    with pytest.raises(ValueError, match=reason):
        template(jinja).render(row)
