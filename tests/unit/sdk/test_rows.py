import json

import pytest
from anthesis import rows
from anthesis.rows import check_rows, split_lines
from hypothesis import given
from hypothesis import strategies as st


def rows_of(*lines: str | bytes) -> list[bytes]:
    return [line.encode() + b"\n" if isinstance(line, str) else line + b"\n" for line in lines]


def talk(*roles: str, content: object = "Hi", **more: object) -> str:
    return json.dumps({"messages": [{"role": role, "content": content, **more} for role in roles]})


def test_conversations_stand_beside_inputs_and_targets_and_fields_have_any_shape():
    rows = rows_of(talk("system", "user", "assistant"), '{"inputs": "a", "targets": "b", "language": "sw"}')
    summary = check_rows(rows, "MULTITASK")
    assert (summary.num_rows, summary.languages) == (2, {"sw"})
    assert check_rows(rows_of('{"prompt": "a", "completion": " b"}'), "MULTITASK").num_rows == 1
    assert check_rows(rows_of(talk("user", "assistant", weight=1)), "MULTITASK").num_rows == 1
    assert check_rows(rows_of('{"premise": ["a", 1], "language": "fr"}'), "FIELDS").languages == {"fr"}


def test_good_rows_are_counted_and_their_languages_collected():
    rows = rows_of(
        '{"text": "a", "language": "fr"}', '{"text": "b", "context": "x"}', '{"text": "c", "language": null, "more": 1}'
    )
    summary = check_rows(rows, "TEXT")
    assert (summary.num_rows, summary.languages) == (3, {"fr"})


@pytest.mark.parametrize(
    ("dataset_format", "row", "reason"),
    [
        ("TEXT", "{", r"not JSON \(.* at column 2\)"),
        ("TEXT", "", "empty line"),
        ("TEXT", b'{"text": "\xff"}', "not UTF-8"),
        ("TEXT", '["text"]', "a JSON array, not an object"),
        ("TEXT", '{"txt": "a"}', 'no "text"'),
        ("TEXT", '{"text": ""}', '"text" is empty'),
        ("TEXT", '{"text": 7}', '"text" is a JSON number, not a string'),
        ("TEXT", '{"text": "a", "language": ["fr"]}', '"language" is a JSON array, not a string'),
        ("TEXT", '{"text": "a", "context": true}', '"context" is a JSON boolean, not a string'),
        ("TEXT", '{"text": "\\ud800"}', '"text" has half a surrogate pair'),
        ("TEXT", "[" * 100_000, "nested too deeply"),
        ("TEXT", '{"text": %s}' % ("1" * 5000), "a number with too many digits"),
        ("MULTITASK", '{"inputs": "a"}', 'no "targets"'),
        ("MULTITASK", '{"inputs": "a", "targets": ""}', '"targets" is empty'),
        ("MULTITASK", '{"text": "a"}', 'no "inputs"'),
        ("MULTITASK", '{"inputs": "a", "messages": []}', '"messages" beside "inputs"; give one or the other'),
        ("MULTITASK", '{"messages": []}', '"messages" is not a list of {"role": "user", "content": "…"}, …'),
        ("MULTITASK", '{"messages": ["Hi"]}', 'message 1 is not {"role": "user", "content": "…"}'),
        ("MULTITASK", talk("robot"), """message 1 has as "role" 'robot'; choose system, user, assistant"""),
        ("MULTITASK", talk("user", "system"), "message 2 is of the system; only the first may be"),
        ("MULTITASK", talk("assistant", content=" "), 'message 1 has no text as "content"'),
        ("MULTITASK", talk("assistant", content=3), 'message 1 has no text as "content"'),
        ("MULTITASK", talk("assistant", "user"), "the last message is of the user; end with one of the assistant.*"),
        ("MULTITASK", talk("user", "assistant", content="\ud800"), "half a surrogate pair"),
        ("MULTITASK", talk("user", "assistant", weight=0), "nothing is learnt: each message of the assistant has.*"),
        ("MULTITASK", talk("assistant", weight=0.5), 'message 1 has a "weight" that is neither 0 .* nor 1'),
        ("MULTITASK", talk("assistant", weight=True), 'message 1 has a "weight" that is neither 0 .* nor 1'),
        ("MULTITASK", talk("assistant", tool_calls=[{}]), 'message 1 has "tool_calls", which is not supported; .*'),
        ("MULTITASK", '{"prompt": "a"}', 'no "completion"'),
        ("MULTITASK", '{"prompt": "a", "inputs": "b"}', '"prompt" beside "inputs"; give one or the other'),
        ("MULTITASK", '{"prompt": "a", "messages": []}', '"messages" beside "prompt"; give one or the other'),
        ("FIELDS", "{}", "no field"),
        ("FIELDS", '{"a": ["\\ud800"]}', "half a surrogate pair"),
        ("FIELDS", '{"a": 1, "language": 1}', '"language" is a JSON number, not a string'),
    ],
)
def test_a_bad_row_is_named_with_its_number_and_reason(dataset_format, row, reason):
    good = '{"text": "a", "inputs": "a", "targets": "b"}'
    with pytest.raises(ValueError, match=rf"1 of 3 rows are not {dataset_format} rows.*\nrow 2: {reason}$"):
        check_rows(rows_of(good, row, good), dataset_format)


def test_all_bad_rows_come_in_one_report():
    rows = rows_of('{"text": "a"}', "{}", '{"text": "b"}', "[]")
    with pytest.raises(ValueError, match=r'row 2: no "text"\nrow 4: a JSON array, not an object$'):
        check_rows(rows, "TEXT")


def test_of_very_many_bad_rows_the_first_thousand_are_listed_and_the_rest_counted():
    with pytest.raises(ValueError, match="1500 of 1500") as refused:
        check_rows(rows_of(*["{}"] * 1500), "TEXT")
    report = str(refused.value).splitlines()
    assert report[0].startswith("1500 of 1500 rows")
    assert report[-2:] == ['row 1000: no "text"', "and 500 more"]
    assert len(report) == 1002


def test_an_empty_file_is_no_dataset():
    with pytest.raises(ValueError, match="has no rows"):
        check_rows([], "TEXT")


def test_a_row_too_long_for_memory_is_refused_without_keeping_it(monkeypatch):
    monkeypatch.setattr(rows, "MAX_ROW_BYTES", 100)
    row = json.dumps({"text": "x" * 200}).encode()
    chunks = [b'{"text": "a"}\n', *(row[i : i + 10] for i in range(0, len(row), 10)), b'\n{"text": "b"}']
    with pytest.raises(ValueError, match=r"1 of 3 rows.*\nrow 2: longer than 100 bytes$"):
        check_rows(chunks, "TEXT")


@given(lines=st.lists(st.binary(max_size=12).map(lambda line: line.replace(b"\n", b""))), data=st.data())
def test_lines_do_not_depend_on_where_the_file_is_cut(lines, data):
    file = b"".join(line + b"\n" for line in lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(file)))))
    chunks = [file[i:j] for i, j in zip([0, *cuts], [*cuts, len(file)], strict=True)]
    assert list(split_lines(chunks)) == lines


def test_a_blend_names_corpora_and_a_mixture_tasks_and_neither_has_rows_of_its_own():
    assert check_rows([b"split: [0, 1]\ncorp", b"ora: {a: {files: [a]}}"], "BLEND").num_rows == 0
    assert check_rows([b"tasks:\n  xnli: {}"], "MIXTURE").num_rows == 0


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"corpora:\n\xff", "is not UTF-8"),
        (b'{"text": "a"}', "has no line 'corpora:'"),
        (b"corpora:" + b" " * (1 << 20), "is longer than 1048576 bytes"),
    ],
)
def test_what_is_no_blend_is_refused_with_what_it_lacks(content, reason):
    with pytest.raises(ValueError, match=reason):
        check_rows([content], "BLEND")
    with pytest.raises(ValueError, match=reason.replace("corpora", "tasks")):
        check_rows([content.replace(b"corpora", b"tasks")], "MIXTURE")
