"""Documents from .jsonl and plain text, and what the steps keep about them."""

import json
import zlib
from collections.abc import Iterator
from gzip import BadGzipFile
from lzma import LZMAError
from typing import Any, TextIO

from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.readers.base import BaseDiskReader
from datatrove.pipeline.readers.jsonl import JsonlReader
from datatrove.pipeline.writers.jsonl import JsonlWriter

from services.trainer.cleaning.config import CleaningConfig
from services.trainer.cleaning.languages import PROGRAMMING, normalised, programming_language

LANGUAGE = "cleaning_language"  # in a document's metadata: what it is in
DECLARED = "cleaning_declared"  # what its data set says, None where it says nothing


class DocumentReader(BaseDiskReader):  # type: ignore[misc]
    """Rows of .jsonl files, and whole files otherwise. A row that is none is counted and left out."""

    name = "documents"

    def __init__(self, config: CleaningConfig) -> None:
        super().__init__(config.input, text_key=config.text_key, id_key=config.id_key, add_file_path=False)
        self._config = config

    def read_file(self, filepath: str) -> Iterator[Document]:
        with self.data_folder.open(filepath, "rt", compression="infer", encoding="utf-8", errors="replace") as file:
            for number, row in enumerate(self._rows(file, filepath)):
                document = self.get_document_from_dict(row, filepath, number)
                if document is None:
                    self._note_unreadable("empty text")
                else:
                    self._note_language(document)
                    yield document

    def _rows(self, file: TextIO, filepath: str) -> Iterator[dict[str, Any]]:
        """Of a damaged file, what comes before the damage."""
        try:
            if ".jsonl" in filepath.rsplit("/", 1)[-1]:
                yield from filter(None, map(self._row, file))
            else:
                yield {self.text_key: file.read(), self._config.path_key: filepath}
        except (EOFError, BadGzipFile, zlib.error, LZMAError) as error:
            self._note_unreadable(f"the rest of {filepath}: {error}")

    def _row(self, line: str) -> dict[str, Any] | None:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None
        if isinstance(row, dict) and isinstance(row.get(self.text_key), str):
            return row
        self._note_unreadable(f"no JSON object with a text under {self.text_key!r}")
        return None

    def _note_unreadable(self, why: str) -> None:
        self.stat_update(f"unreadable|{why.replace('|', '/')}")

    def _note_language(self, document: Document) -> None:
        metadata, config = document.metadata, self._config
        document.id = str(document.id)
        declared = normalised(metadata.get(config.language_key)) or config.default_language
        metadata[DECLARED] = programming_language(metadata.get(config.path_key)) or declared


def language_of(document: Document) -> str:
    return str(document.metadata[LANGUAGE])


def is_code(document: Document) -> bool:
    return document.metadata.get(LANGUAGE, document.metadata[DECLARED]) in PROGRAMMING


class WorkReader(JsonlReader):  # type: ignore[misc]
    """The documents that the same task of an earlier stage wrote, in their order; none where it wrote none."""

    name = "documents of the stage before"

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        name = f"{rank:05d}.jsonl.gz"
        if self.data_folder.exists(name):
            yield from self.read_files_shard([name])


def work_writer(folder: str) -> JsonlWriter:
    return JsonlWriter(folder, "${rank}.jsonl.gz")


class CleanWriter(JsonlWriter):  # type: ignore[misc]
    """Writes what was kept to `clean/<language>/<task>.jsonl.gz`."""

    name = "clean"

    def __init__(self, output: str) -> None:
        super().__init__(f"{output}/clean", f"${{{LANGUAGE}}}/${{rank}}.jsonl.gz", adapter=_clean_row)


def _clean_row(_writer: JsonlWriter, document: Document) -> dict[str, Any]:
    """Text, id and metadata, without what steps noted for each other."""
    metadata = {key: value for key, value in document.metadata.items() if not key.startswith("cleaning_")}
    return {**metadata, "id": document.id, "text": document.text, "language": language_of(document)}
