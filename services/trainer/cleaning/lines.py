"""Lines that do not belong to their document: boilerplate, and lines in another language.

Boilerplate is a line that occurs often in all documents together; it is removed everywhere. BigScience's
`dedup_template_soft` does so with the defaults of our settings. Source: bigscience-workshop/data-preparation@9d058841,
01a_catalogue_cleaning_and_filtering/clean.py. Removing lines in another language is our addition.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import regex
from datatrove.data import Document, DocumentsPipeline
from datatrove.io import get_datafolder
from datatrove.pipeline.base import PipelineStep

from services.trainer.cleaning.config import CleaningConfig
from services.trainer.cleaning.documents import is_code, language_of
from services.trainer.cleaning.hashes import hash64
from services.trainer.cleaning.identifier import UNKNOWN, identifier
from services.trainer.cleaning.signatures import load, save
from services.trainer.cleaning.tally import TallyFilter, count, side_writer

COUNT = np.dtype([("hash", "<u8"), ("count", "<u4")])
BOILERPLATE, FOREIGN = "boilerplate_lines", "foreign_lines"
REASON = "nothing_left"
MIN_FOREIGN_CHARACTERS = 40  # shorter lines tell too little; a Chinese character counts twice
_CHINESE = regex.compile(r"\p{Han}")


class CountLines(PipelineStep):  # type: ignore[misc]
    """Passes documents on, and leaves in `<folder>/<task>.npy` how often each line occurred."""

    type, name = "lines", "count"

    def __init__(self, folder: str, min_characters: int) -> None:
        super().__init__()
        self._folder, self._min_characters = get_datafolder(folder), min_characters

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        hashes: list[int] = []
        for document in data or ():
            if not is_code(document):
                lines = map(str.strip, document.text.split("\n"))
                hashes.extend(hash64(line) for line in lines if len(line) >= self._min_characters)
            yield document
        found, counts = np.unique(np.array(hashes, np.uint64), return_counts=True)
        rows = np.empty(len(found), COUNT)
        rows["hash"], rows["count"] = found, counts
        save(self._folder.open(f"{rank:05d}.npy", "wb"), rows)


class FindBoilerplate(PipelineStep):  # type: ignore[misc]
    """Leaves in `<found>/<task>.npy` the hashes, of this task's share, of lines that occurred often enough."""

    type, name = "lines", "find boilerplate"

    def __init__(self, counts: str, found: str, min_repeats: int) -> None:
        super().__init__()
        self._counts, self._found, self._min_repeats = get_datafolder(counts), get_datafolder(found), min_repeats

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:
        rows = load(self._counts, COUNT)
        rows = rows[rows["hash"] % np.uint64(world_size) == rank]
        hashes, places = np.unique(rows["hash"], return_inverse=True)
        counts = np.bincount(places, weights=rows["count"], minlength=len(hashes))
        save(self._found.open(f"{rank:05d}.npy", "wb"), hashes[counts >= self._min_repeats])


class RemoveLines(TallyFilter):
    """Removes both kinds of lines; drops a document of which nothing is left."""

    name = "lines"

    def __init__(self, config: CleaningConfig, boilerplate: str) -> None:
        super().__init__(config.output)
        self._folder = get_datafolder(boilerplate)
        self._foreign_lines = config.foreign_lines
        self._removed = side_writer(config.output, "changed")
        self._boilerplate: frozenset[int] = frozenset()
        self._rank = 0

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        self._boilerplate, self._rank = frozenset(load(self._folder, np.dtype("<u8")).tolist()), rank
        with self._removed:
            yield from super().run(data, rank, world_size)

    def reason(self, document: Document) -> str | None:
        if is_code(document):
            return None
        kept = []
        for line in document.text.split("\n"):
            kind = self._kind(line.strip(), language_of(document))
            if kind is None:
                kept.append(line)
            else:
                self._note(document, kind, line)
        text = "\n".join(kept)
        if not text.strip():
            return REASON
        document.text = text
        return None

    def _kind(self, line: str, language: str) -> str | None:
        if hash64(line) in self._boilerplate:
            return BOILERPLATE
        if self._foreign_lines and language not in UNKNOWN and _is_foreign(line, language):
            return FOREIGN
        return None

    def _note(self, document: Document, kind: str, line: str) -> None:
        removed = replace(document, text=line, metadata={**document.metadata, "filter_reason": kind})
        count(self, "changed", removed, kind)
        self._removed.write(removed, self._rank)


def _is_foreign(line: str, language: str) -> bool:
    is_long = len(line) + len(_CHINESE.findall(line)) >= MIN_FOREIGN_CHARACTERS
    return is_long and identifier().excludes(line, language)
