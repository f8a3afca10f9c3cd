"""Documents that differ in a few characters, by SimHash: of each group of them the first stays.

Documents are compared within their language, as BigScience ran it, and source code is not compared.
"""

import numpy as np
from datatrove.data import Document
from numpy.typing import NDArray

from services.trainer.cleaning.documents import is_code, language_of
from services.trainer.cleaning.signatures import MatchSignatures, Signatures, WriteSignatures
from services.trainer.cleaning.simhash import near_pairs, simhash

REASON = "near_duplicate"


class WriteSimHashes(WriteSignatures):
    name = "SimHash"

    def signature(self, document: Document) -> int | None:
        return None if is_code(document) else simhash(document.text, language_of(document))


class MatchSimHashes(MatchSignatures):
    name = "SimHash"

    def share(self, signatures: Signatures, num_shares: int) -> NDArray[np.integer]:
        return signatures["language"] % num_shares

    def repeated(self, signatures: Signatures) -> Signatures:
        languages = (signatures[signatures["language"] == number] for number in np.unique(signatures["language"]))
        return np.concatenate([signatures[:0], *map(_repeated, languages)])


def _repeated(signatures: Signatures) -> Signatures:
    """Of one language's signatures, all but the first of each group."""
    hashes, first, groups = np.unique(signatures["hash"], return_index=True, return_inverse=True)
    leaders = _leaders(first, near_pairs(hashes))
    is_leader: NDArray[np.bool_] = np.arange(len(signatures)) == leaders[groups]
    return signatures[~is_leader]


def _leaders(first: NDArray[np.int64], pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each hash, the place of the first document of all that are connected with it by pairs."""
    leaders = first.copy()
    while True:
        before = leaders.copy()
        np.minimum.at(leaders, pairs[:, 0], before[pairs[:, 1]])
        np.minimum.at(leaders, pairs[:, 1], before[pairs[:, 0]])
        if np.array_equal(leaders, before):
            return leaders
