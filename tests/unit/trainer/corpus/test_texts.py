"""Documents of files: each row once however a file is cut; what cannot be read is named by file and row."""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.trainer.corpus import texts
from services.trainer.corpus.texts import BadRow, Reading, cut, documents, find_sources
from services.trainer.failure import JobFailure

any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


def read(path: Path, reading: Reading | None = None) -> list[str | BadRow | None]:
    reading = reading or Reading()
    return [
        row for source in find_sources([path]) for piece in cut(source, reading) for row in documents(piece, reading)
    ]


@given(rows=st.lists(any_text, max_size=12), size=st.integers(1, 60), ascii_only=st.booleans(), last=st.booleans())
@settings(deadline=None)
def test_every_row_of_a_file_is_read_once_in_order_however_it_is_cut(tmp_path_factory, rows, size, ascii_only, last):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lines = [json.dumps({"text": row}, ensure_ascii=ascii_only) for row in rows]
    path.write_bytes(("\n".join(lines) + ("\n" if rows and last else "")).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(texts, "PIECE_BYTES", size)
        assert read(path) == [row or None for row in rows]


@given(
    content=st.lists(st.sampled_from(["a", "é", "\n", "\r\n", " ", "人"]), max_size=40).map("".join),
    size=st.integers(1, 9),
)
@settings(deadline=None)
def test_plain_text_is_read_by_line_or_by_file(tmp_path_factory, content, size):
    path = tmp_path_factory.mktemp("plain") / "a.txt"
    path.write_bytes(content.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(texts, "PIECE_BYTES", size)
        lines = content.split("\n")
        lines = lines[:-1] if lines[-1] == "" else lines
        assert read(path, Reading(plain="line")) == [line.rstrip("\r") or None for line in lines]
        assert read(path) == [content or None]


def test_parquet_is_read_by_row_group(tmp_path):
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"id": range(5), "body": ["eins", "zwei", None, "", "人"]})
    pyarrow.parquet.write_table(table, path, row_group_size=2)
    found = read(path, Reading(key="body"))
    assert [row for row in found if not isinstance(row, BadRow)] == ["eins", "zwei", None, "人"]
    assert str(found[2]) == f"{path}, row 1: has no string 'body'"  # of its row group; the run numbers it in the file
    assert len(cut(find_sources([path])[0], Reading(key="body"))) == 3


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "a"', "is no JSON"),
        (b'{"text": 5}', "has no string 'text'"),
        (b'{"txt": "a"}', "has no string 'text'"),
        (b'["text"]', "has no string 'text'"),
        (b'{"text": "\xff"}', "can't decode byte 0xff"),
        (b'{"text": "\\ud800"}', "surrogates not allowed"),
        (b"[" * 100_000, "is no JSON"),
        (b'{"text": "' + b"a" * 200 + b'"}', "is longer than the 100 bytes of a document; cut it"),
    ],
)
def test_a_bad_row_is_named_and_those_beside_it_are_read(tmp_path, monkeypatch, line, reason):
    monkeypatch.setattr(texts, "MAX_DOCUMENT_BYTES", 100 if b"a" * 200 in line else 1 << 20)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "before"}\n\n' + line + b'\n{"text": "after"}\n')
    before, blank, bad, after = read(path)
    assert (before, blank, after) == ("before", None, "after")
    assert isinstance(bad, BadRow)
    assert (bad.path, bad.row) == (path, 3)
    assert reason in bad.reason


def test_folders_are_searched_in_order_and_other_files_left_alone(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("b/2.jsonl", "a.txt", "notes.md"):
        (tmp_path / name).write_text("x")
    assert [source.path.name for source in find_sources([tmp_path])] == ["a.txt", "2.jsonl"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl.gz", b"", "does not end in .jsonl, .*; unpack or convert it first"),
        ("gone.jsonl", None, "is no file or folder; check its name"),
        ("a.parquet", b"PAR1 but not really", "is no readable Parquet: .*; bring it from a good copy"),
        (".", None, "holds no file that ends in"),
    ],
)
def test_inputs_that_cannot_be_read_are_refused_by_name(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(JobFailure, match=message) as failed:
        read(path)
    assert str(path) in failed.value.message


def test_parquet_without_the_column_names_those_it_has(tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"id": [1], "body": ["a"]}), path)
    with pytest.raises(JobFailure, match="has no column 'text'; choose --key among id, body"):
        read(path)


def test_parquet_damaged_inside_is_refused_by_name(tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["abc" * 50] * 50}), path, compression="zstd")
    content = bytearray(path.read_bytes())
    content[20:60] = bytes(40)
    path.write_bytes(content)
    with pytest.raises(JobFailure, match=r"a.parquet is no readable Parquet"):
        read(path)
