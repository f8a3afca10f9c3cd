from pathlib import Path

import pytest

from services.trainer.cleaning import flagged_words
from services.trainer.cleaning.config import CleaningConfig
from services.trainer.cleaning.errors import ConfigError


def test_lists_hold_words_as_they_are_looked_up_and_pairs_where_pairs_are(tmp_path: Path):
    (tmp_path / "en.txt").write_text("Whale\n\n  cod \n", encoding="utf-8")
    (tmp_path / "vi.txt").write_text("\ufeffcá voi\ncá\n", encoding="utf-8")
    (tmp_path / "zh-hans.txt").write_text("鲸鱼\n鱼\n", encoding="utf-8")
    assert flagged_words.read(str(tmp_path)) == {
        "en": {"whale", "cod"},
        "vi": {"cá voi", "cá"},
        "zh-hans": {"鲸鱼", "鱼"},
    }


def test_without_a_folder_there_is_no_list():
    assert flagged_words.read(None) == {}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "en.txt",
            "cod\nblue whale\n",
            r"en.txt, line 2: 'blue whale' would never be found: en is looked up by 1 word",
        ),
        ("vi.txt", "con cá voi", r"vi.txt, line 1: 'con cá voi' would never be found: vi is looked up by 2 words"),
        ("en.txt", "***", r"en.txt, line 1: '\*\*\*' would never be found"),
        ("en.txt", "\n \n", r"en.txt holds no word; write one a line, or delete the file"),
        ("en.txt", b"caf\xe9", r"en.txt is not UTF-8 .*; save it as UTF-8"),
        ("de.txt", "wal", r"de.txt is no list; name it <language>.txt, a code like sw.txt"),
        ("en.csv", "cod", r"en.csv is no list"),
    ],
)
def test_a_list_that_cannot_work_is_refused_by_name_and_line(
    tmp_path: Path, name: str, content: str | bytes, message: str
):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=message):
        flagged_words.read(str(tmp_path))


@pytest.mark.parametrize("made", [True, False])
def test_a_folder_without_lists_is_refused_before_anything_is_read(tmp_path: Path, made: bool):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("x")
    lists = tmp_path / "lists"
    if made:
        lists.mkdir()
    config = CleaningConfig(input=str(tmp_path / "in"), output=str(tmp_path / "out"), flagged_words=str(lists))
    with pytest.raises(ConfigError, match=r"lists holds no list; name a folder with <language>.txt"):
        config.resolved()
