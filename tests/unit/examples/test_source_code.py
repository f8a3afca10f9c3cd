from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from examples.demo.source_code import MAX_HELD_OUT_BYTES, MAX_TRAINING_BYTES, SourceCode, cut, gather, passages


@given(st.text(alphabet="ab \n\té", max_size=4_000))
def test_passages_together_are_the_text(text: str):
    assert "".join(cut(text)) == text


def test_several_languages_are_found_in_what_is_installed_and_the_others_are_named():
    code = gather()
    assert {"C", "C++", "Python"} <= set(code.training)
    assert code.training.keys() == code.held_out.keys()
    assert {"Scala", "Lua"} <= set(code.missing)
    for language, found in code.training.items():
        assert 0 < len(found.encode()) <= MAX_TRAINING_BYTES
        assert 0 < len(code.held_out[language].encode()) <= MAX_HELD_OUT_BYTES


def test_no_held_out_passage_is_trained_on():
    code = gather()
    for passage in passages(code):
        assert passage.text not in code.training[passage.language]


def test_a_language_whose_package_is_missing_is_left_out(tmp_path: Path):
    (tmp_path / "click").mkdir()
    (tmp_path / "click" / "formatting.py").write_text("learn = 1\n")
    (tmp_path / "click" / "_textwrap.py").write_text("test = 1\n")
    assert set(gather(tmp_path).training) == {"Python"}


def test_a_passage_has_the_one_before_it_as_context():
    code = SourceCode(training={"C": "int a;\n"}, held_out={"C": f"//{'b' * 900}\n//c\n"})
    assert [(p.context, p.text) for p in passages(code)] == [
        ("", f"//{'b' * 900}\n"),
        (f"//{'b' * 900}\n", "//c\n"),
    ]
