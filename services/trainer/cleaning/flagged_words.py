"""Lists of flagged words that the operator gives: a folder with `<language>.txt`, one word a line.

None is bundled. What such a list should hold depends on who reads what a model trained on the text will say.
"""

from pathlib import PurePosixPath

from datatrove.io import DataFolder, get_datafolder

from services.trainer.cleaning import words
from services.trainer.cleaning.errors import ConfigError
from services.trainer.cleaning.languages import NATURAL
from services.trainer.cleaning.thresholds import thresholds_of

FlaggedWords = dict[str, frozenset[str]]  # language -> words as the filter looks them up


def read(folder: str | None) -> FlaggedWords:
    """The lists in a folder; none without a folder. Raises ConfigError."""
    if folder is None:
        return {}
    files = get_datafolder(folder)
    names = files.list_files() if files.exists("") else []
    if not names:
        raise ConfigError(f"flagged_words={folder} holds no list; name a folder with <language>.txt, one word a line")
    return {_language(folder, name): _list(files, folder, name) for name in names}


def _language(folder: str, name: str) -> str:
    path = PurePosixPath(name)
    if path.suffix != ".txt" or path.name != name or path.stem not in NATURAL:
        raise ConfigError(f"flagged_words: {folder}/{name} is no list; name it <language>.txt, a code like sw.txt")
    return path.stem


def _list(files: DataFolder, folder: str, name: str) -> frozenset[str]:
    try:
        with files.open(name, "rt", encoding="utf-8-sig") as file:
            lines = file.read().splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError(f"flagged_words: {folder}/{name} is not UTF-8 ({error}); save it as UTF-8") from error
    language = _language(folder, name)
    found = {
        _word(line.strip(), language, f"{folder}/{name}, line {number}")
        for number, line in enumerate(lines, 1)
        if line.strip()
    }
    if not found:
        raise ConfigError(f"flagged_words: {folder}/{name} holds no word; write one a line, or delete the file")
    return frozenset(found)


def _word(line: str, language: str, where: str) -> str:
    """As the filter will see it in a text: a word, or two where it also looks up pairs. Raises ConfigError."""
    found, joined_by = words.split(line, language), thresholds_of(language).joins_words
    most = 1 if joined_by is None else 2
    if not 1 <= len(found) <= most:
        raise ConfigError(
            f"flagged_words: {where}: {line!r} would never be found: "
            f"{language} is looked up by {most} word{'s' * (most > 1)} at most, without marks and digits at the ends"
        )
    return (joined_by or "").join(found)
