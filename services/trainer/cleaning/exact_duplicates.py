"""Documents that are the same but for white space, digits and punctuation; for code, but for white space.

Source: bigscience-workshop/data-preparation@9d058841, 01a_catalogue_cleaning_and_filtering/clean_helpers and
sourcing/code_dataset/processing.py.
"""

import string

import numpy as np
import regex
from datatrove.data import Document
from numpy.typing import NDArray

from services.trainer.cleaning.documents import is_code
from services.trainer.cleaning.hashes import hash64
from services.trainer.cleaning.signatures import MatchSignatures, Signatures, WriteSignatures

REASON = "duplicate"
_BESIDE_WORDS = regex.compile(rf"\s+|\d+|[{regex.escape(string.punctuation)}]")
_WHITE_SPACE = regex.compile(r"\s+")


class WriteExactSignatures(WriteSignatures):
    name = "exact"

    def signature(self, document: Document) -> int:
        return hash64((_WHITE_SPACE if is_code(document) else _BESIDE_WORDS).sub("", document.text))


class MatchExact(MatchSignatures):
    name = "exact"

    def share(self, signatures: Signatures, num_shares: int) -> NDArray[np.integer]:
        return signatures["hash"] % np.uint64(num_shares)

    def repeated(self, signatures: Signatures) -> Signatures:
        order = np.argsort(signatures["hash"], kind="stable")
        hashes = signatures["hash"][order]
        later = np.flatnonzero(hashes[1:] == hashes[:-1]) + 1
        return signatures[order[later]]
