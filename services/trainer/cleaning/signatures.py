"""Finding documents that are alike across tasks, in three steps as datatrove's own deduplication does it.

Every task writes the signatures of its documents; a few tasks match them; every task drops what was matched among its
own. datatrove's steps tell nothing by language and know no SimHash, so these are ours.
"""

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
from datatrove.data import Document, DocumentsPipeline
from datatrove.io import DataFolder, get_datafolder
from datatrove.pipeline.base import PipelineStep
from numpy.typing import NDArray

from services.trainer.cleaning.documents import language_of
from services.trainer.cleaning.languages import NATURAL, PROGRAMMING
from services.trainer.cleaning.tally import TallyFilter

SIGNATURE = np.dtype([("hash", "<u8"), ("task", "<u4"), ("document", "<u4"), ("language", "u1")])
Signatures = NDArray[Any]  # of SIGNATURE; `document` is its place in its task's file
_LANGUAGE_NUMBERS = {language: number for number, language in enumerate((*NATURAL, *PROGRAMMING))}


class WriteSignatures(PipelineStep):  # type: ignore[misc]
    """Passes documents on, and leaves their signatures in `<folder>/<task>.npy`."""

    type = "signatures"

    def __init__(self, folder: str) -> None:
        super().__init__()
        self._folder = get_datafolder(folder)

    @abstractmethod
    def signature(self, document: Document) -> int | None:
        """64 bits; None for a document that is not compared."""

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        rows = []
        for place, document in enumerate(data or ()):
            with self.track_time():
                signature = self.signature(document)
            if signature is not None:
                rows.append((signature, rank, place, _LANGUAGE_NUMBERS[language_of(document)]))
            yield document
        save(self._folder.open(f"{rank:05d}.npy", "wb"), np.array(rows, SIGNATURE))


class MatchSignatures(PipelineStep):  # type: ignore[misc]
    """Writes `<matches>/<task>.npy`: the signatures of the documents to drop, among this task's share."""

    type = "matches"

    def __init__(self, signatures: str, matches: str) -> None:
        super().__init__()
        self._signatures, self._matches = get_datafolder(signatures), get_datafolder(matches)

    @abstractmethod
    def share(self, signatures: Signatures, num_shares: int) -> NDArray[np.bool_] | NDArray[np.integer]:
        """The number, below `num_shares`, of the task that looks at each signature."""

    @abstractmethod
    def repeated(self, signatures: Signatures) -> Signatures:
        """Those whose document is like one that comes before it."""

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:
        signatures = load(self._signatures, SIGNATURE)
        mine = np.sort(signatures[self.share(signatures, world_size) == rank], order=("task", "document"))
        with self.track_time():
            save(self._matches.open(f"{rank:05d}.npy", "wb"), self.repeated(mine))


class DropMatches(TallyFilter):
    """Drops a task's documents that were matched; they must come in the order in which they were signed."""

    def __init__(self, output: str, matches: str, reason: str) -> None:
        super().__init__(output)
        self._folder, self._reason = get_datafolder(matches), reason
        self._places: frozenset[int] = frozenset()
        self._place = -1

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        matches = load(self._folder, SIGNATURE)
        self._places = frozenset(matches["document"][matches["task"] == rank].tolist())
        self._place = -1
        yield from super().run(data, rank, world_size)

    def reason(self, document: Document) -> str | None:
        self._place += 1
        return self._reason if self._place in self._places else None


def save(file: BinaryIO, array: NDArray[Any]) -> None:
    with file:
        np.save(file, array, allow_pickle=False)


def load(folder: DataFolder, dtype: np.dtype[Any]) -> NDArray[Any]:
    """What all files of a folder hold, one after another."""
    arrays = [np.empty(0, dtype)]
    for name in folder.list_files(glob_pattern="*.npy"):
        with folder.open(name, "rb") as file:
            arrays.append(np.load(file, allow_pickle=False))
    return np.concatenate(arrays)
