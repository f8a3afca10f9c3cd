"""Files of rows become the same JSONL, whatever they are; what would unpack without end is refused."""

import csv
import gzip
import io
import json
import tracemalloc
from pathlib import Path

import psutil
import pyarrow
import pyarrow.parquet
import pytest
from anthesis import row_files
from anthesis.row_files import as_jsonl, suffix_of
from anthesis.row_files.csv_file import read_csv
from anthesis.row_files.limits import Limits
from anthesis.row_files.parquet import read_parquet
from hypothesis import given, settings
from hypothesis import strategies as st

ROWS = [{"text": 'Il dit: "Né, là"\nfin', "language": "fr"}, {"text": "人人生而自由, 在", "language": "zh-hans"}]
BODY = {"text": "body"}


def csv_bytes(rows: list[dict], **names: str) -> bytes:
    """names: field -> column."""
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow([names.get(name, name) for name in rows[0]])
    writer.writerows(row.values() for row in rows)
    return file.getvalue().encode()


def write_parquet(path: Path, **columns: object) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def jsonl(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def read(path: Path, folder: Path, dataset_format: str = "TEXT", columns: dict | None = None, **limits: int) -> list:
    rows = as_jsonl(path, dataset_format, columns or {}, folder, Limits(**limits))
    return [json.loads(line) for line in rows.read_bytes().splitlines()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, folder: Path) -> None:
    table = csv_bytes(ROWS)
    contents = {
        "rows.csv": table,
        "rows.CSV.gz": gzip.compress(table),
        "rows.csv.zst": pyarrow.compress(table, codec="zstd", asbytes=True),
        "rows.jsonl.gz": gzip.compress(jsonl(ROWS)),
        "rows.ndjson.zst": pyarrow.compress(jsonl(ROWS), codec="zstd", asbytes=True),
        "windows.csv": b"\xef\xbb\xbf" + table,
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        assert read(tmp_path / name, folder) == ROWS, name
    path = write_parquet(tmp_path / "rows.parquet", **{name: [row[name] for row in ROWS] for name in ROWS[0]})
    assert read(path, folder) == ROWS


def test_jsonl_and_yaml_are_taken_as_they_are(tmp_path: Path, folder: Path) -> None:
    for name in ("rows.jsonl", "rows", "blend.yaml"):
        assert as_jsonl(tmp_path / name, "TEXT", {}, folder) == tmp_path / name
    assert as_jsonl(tmp_path / "mix.csv", "MIXTURE", {}, folder) == tmp_path / "mix.csv"
    assert [suffix_of(name) for name in ("a.b.csv.GZ", "a.parquet", "a.tar.gz", "a")] == [".csv.gz", ".parquet", "", ""]


def test_columns_are_renamed_and_others_left_out_but_of_fields(tmp_path: Path, folder: Path) -> None:
    rows = [{"body": "a", "text": "not this", "language": "fr"}, {"body": "b", "text": "nor this", "language": ""}]
    (tmp_path / "rows.csv").write_bytes(csv_bytes(rows))
    found = [{"text": "a", "language": "fr"}, {"text": "b"}]
    assert read(tmp_path / "rows.csv", folder, columns=BODY) == found
    fields = [{"a": "a", "text": "not this", "language": "fr"}, {"a": "b", "text": "nor this"}]
    assert read(tmp_path / "rows.csv", folder, "FIELDS", {"a": "body"}) == fields
    columns = {"body": ["a", "b"], "image": [b"\xff", b"\xff"], "language": ["fr", None]}
    assert read(write_parquet(tmp_path / "rows.parquet", **columns), folder, columns=BODY) == found


def test_parquet_keeps_conversations_numbers_and_times(tmp_path: Path, folder: Path) -> None:
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    path = write_parquet(tmp_path / "talks.parquet", messages=[talk])
    assert read(path, folder, "MULTITASK") == [{"messages": talk}]
    when = pyarrow.array([0], pyarrow.timestamp("s"))
    columns = {"label": [3], "score": [float("nan")], "tags": [["a", None]], "when": when, "raw": [b"bytes"]}
    row = {"label": 3, "tags": ["a", None], "when": "1970-01-01T00:00:00", "raw": "bytes"}
    assert read(write_parquet(tmp_path / "fields.parquet", **columns), folder, "FIELDS") == [row]


@pytest.mark.parametrize(
    ("content", "dataset_format", "columns", "message"),
    [
        ("body\na\n", "TEXT", {}, "no column 'text', which TEXT rows need; it has 'body': say which one it is, text=C"),
        ("body\na\n", "TEXT", {"text": "bod"}, "rows.csv has no column 'bod' for 'text'; it has 'body'"),
        ("body\na\n", "TEXT", {"txt": "body"}, "'txt' is no field of TEXT rows; they have text, context, language"),
        ("inputs\na\n", "MULTITASK", {}, "no column 'targets', which MULTITASK rows need"),
        ("text,text\na,b\n", "TEXT", {}, "rows.csv has two columns 'text'; call one of them otherwise"),
        ("text,\na,b\n", "TEXT", {}, "rows.csv has no name for column 2; give it one"),
        ("a,b\n1,2\n", "FIELDS", {"a": "b"}, "would have two fields 'a'; call one of the columns otherwise"),
        ("text,language\na,fr\nb\nc,fr,x\n", "TEXT", {}, "(?s)2 of the first 3 rows.*row 2: 1 cells.*row 3: 3 c"),
        ('text\na\n"b"c\n', "TEXT", {}, "row 2 cannot be read: .*double the quotes inside quotes"),
        ('text\na\n"b\n', "TEXT", {}, "row 2 cannot be read: unexpected end of data"),
        (b"text\na\n\xff\n", "TEXT", {}, "row 2 cannot be read: it is not UTF-8"),
        ("", "TEXT", {}, "the file has no header"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_by_row_and_column(tmp_path, folder, content, dataset_format, columns, message) -> None:
    (tmp_path / "rows.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        as_jsonl(tmp_path / "rows.csv", dataset_format, columns, folder)


def test_what_is_wrong_in_parquet_is_named_by_row_and_column(tmp_path: Path, folder: Path) -> None:
    path = write_parquet(tmp_path / "rows.parquet", text=[b"good", b"\xff"])
    with pytest.raises(ValueError, match="row 2: column 'text' has 1 bytes that are no UTF-8"):
        as_jsonl(path, "TEXT", {}, folder)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"rows\.parquet is no Parquet that can be read"):
        as_jsonl(path, "TEXT", {}, folder)
    (tmp_path / "rows.jsonl").write_bytes(b"{}\n")
    with pytest.raises(ValueError, match=r"rows\.jsonl is no \.csv or \.parquet, so .*; leave text out"):
        as_jsonl(tmp_path / "rows.jsonl", "TEXT", BODY, folder)


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.jsonl.zst"])
def test_a_damaged_file_is_refused(tmp_path: Path, folder: Path, name: str) -> None:
    packed = gzip.compress(jsonl(ROWS)) if name.endswith("gz") else pyarrow.compress(jsonl(ROWS), "zstd", asbytes=True)
    for content in (packed[:-12], b"no such thing"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} is damaged: .*; pack it again"):
            as_jsonl(tmp_path / name, "TEXT", {}, folder)


def bomb(name: str, folder: Path, num_megabytes: int) -> Path:
    """Rows that pack to a thousandth, or less: the same part again and again."""
    part = jsonl([{"text": "a" * ((1 << 20) - 13)}]) * 16
    if name.endswith(".csv.gz"):
        part = b'text\n"' + (b"a" * 1023 + b"\n") * (16 << 10)
    packed = gzip.compress(part) if name.endswith("gz") else pyarrow.compress(part, "zstd", asbytes=True)
    (folder / name).write_bytes(packed * (num_megabytes // 16))
    return folder / name


@pytest.mark.parametrize("name", ["bomb.jsonl.gz", "bomb.jsonl.zst", "bomb.csv.gz"])
def test_a_bomb_is_refused_with_the_limit_named_before_it_takes_memory_or_disk(tmp_path, folder, name) -> None:
    path = bomb(name, tmp_path, 4096)
    assert path.stat().st_size < 10 << 20
    tracemalloc.start()
    with pytest.raises(ValueError, match=rf"the rows of {name} are longer than|longer than 16777216 bytes") as refused:
        as_jsonl(path, "TEXT", {}, folder, Limits(max_ratio=2, min_bytes=40 << 20))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 160 << 20
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 41 << 20
    if "jsonl" in name:
        assert f"2 times its {path.stat().st_size} bytes, and than {40 << 20}; if this is no" in str(refused.value)
        with pytest.raises(ValueError, match=f"longer than the most that is taken, {8 << 20} bytes"):
            as_jsonl(path, "TEXT", {}, folder, Limits(max_bytes=8 << 20))


def test_what_is_within_the_limits_is_no_bomb(tmp_path: Path, folder: Path) -> None:
    """The same content, which shows that it is the limit that refuses it."""
    rows = as_jsonl(bomb("bomb.jsonl.gz", tmp_path, 32), "TEXT", {}, folder)
    assert rows.stat().st_size == 32 << 20


def test_parquet_that_repeats_a_long_value_is_refused_and_its_process_ends(tmp_path: Path, folder: Path) -> None:
    values = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 4000, pyarrow.int32()), ["a" * (1 << 16)])
    path = write_parquet(tmp_path / "bomb.parquet", text=values)
    assert path.stat().st_size < 1 << 20  # of 250 MB
    with pytest.raises(ValueError, match=r"the rows of bomb\.parquet are longer than .*, and than 16777216; if"):
        as_jsonl(path, "TEXT", {}, folder, Limits(max_ratio=2, min_bytes=16 << 20))
    assert not [child for child in psutil.Process().children() if "anthesis.row_files.parquet" in child.cmdline()]


def test_a_parquet_row_that_takes_more_memory_than_allowed_is_refused(tmp_path: Path) -> None:
    zeros = pyarrow.ListArray.from_arrays([0, 60_000_000], pyarrow.nulls(60_000_000, pyarrow.int8()))
    path = write_parquet(tmp_path / "bomb.parquet", text=zeros)
    assert path.stat().st_size < 1 << 20
    with pytest.raises(ValueError, match=f"bomb.parquet cannot be read within {400 << 20} bytes of memory; write it"):
        list(read_parquet(path, lambda header: {"text": "text"}, 400 << 20))
    small = write_parquet(tmp_path / "small.parquet", text=["a"])
    assert list(read_parquet(small, lambda header: {"text": "text"}, 400 << 20)) == [{"text": "a"}]


def test_a_csv_quote_that_is_left_open_is_not_read_to_the_files_end(monkeypatch) -> None:
    monkeypatch.setattr("anthesis.row_files.csv_file.MAX_ROW_BYTES", 1000)
    taken = 0

    def chunks():
        nonlocal taken
        yield b'text\n"'
        while True:
            taken += 1
            yield b"a\n" * 50

    with pytest.raises(ValueError, match="row 1 cannot be read: it is longer than 1000 bytes; a quote may"):
        list(read_csv(chunks(), lambda header: {"text": "text"}))
    assert taken < 20


def test_bad_rows_are_listed_up_to_a_thousand(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "rows.csv").write_bytes(b"text\n" + b"a,b\n" * 5000)
    with pytest.raises(ValueError, match="1000 of the first 1000 rows cannot be read") as refused:
        as_jsonl(tmp_path / "rows.csv", "TEXT", {}, folder)
    assert len(str(refused.value).splitlines()) == 1001


CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r"), min_size=1, max_size=20)


@settings(deadline=None)
@given(st.lists(st.tuples(CELL, CELL), min_size=1, max_size=8), st.integers(1, 30))
def test_any_text_in_csv_comes_out_as_it_was(pairs: list[tuple[str, str]], size: int) -> None:
    content = csv_bytes([{"a": first, "b": second} for first, second in pairs])
    chunks = (content[start : start + size] for start in range(0, len(content), size))
    found = list(read_csv(chunks, lambda header: {"a": "a", "b": "b"}))
    assert found == [{"a": first, "b": second} for first, second in pairs]


def test_without_pyarrow_the_remedy_is_said(tmp_path: Path, folder: Path, monkeypatch) -> None:
    (tmp_path / "rows.parquet").touch()
    monkeypatch.setattr(row_files.parquet.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"rows\.parquet needs pyarrow, .*: pip install 'anthesis\[data\]'"):
        as_jsonl(tmp_path / "rows.parquet", "TEXT", {}, folder)
