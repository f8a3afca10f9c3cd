"""What each text of a suite took: the artifact that a trainer makes as it measures a version.

JSON, {"<language>": [[bits, bytes], …], …}; a language's texts stand in the order of the suite's datasets and rows. So
the texts of two versions are the same, one by one, and can be compared in pairs.
"""

import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.common.artifacts import ArtifactStore
from services.common.errors import InvalidArgument

MAX_BYTES = 256 << 20
Documents = dict[str, NDArray[np.float64]]  # language -> (n, 2): bits and UTF-8 bytes of each text


@dataclass(frozen=True, slots=True)
class Measurement:
    digest: str  # of the artifact
    size_bytes: int
    documents: Documents


def read_measurement(artifacts: ArtifactStore, digest: str) -> Measurement:
    """Raises NotFound, InvalidArgument for an artifact that is none. Blocking."""
    if (size := artifacts.size(digest)) > MAX_BYTES:
        raise InvalidArgument(f"documents {digest} have {size} bytes; measure with a smaller suite")
    try:
        content = json.loads(artifacts.read_bytes(digest))
        documents = {str(language): np.array(pairs, np.float64) for language, pairs in content.items()}
    except (ValueError, TypeError, AttributeError, RecursionError):
        documents = {}
    if not documents or not all(map(_are_pairs, documents.values())):
        shape = '{"<language>": [[bits, bytes], …]} of texts that have bytes'
        raise InvalidArgument(f"documents {digest} are not {shape}; measure again")
    return Measurement(digest, size, documents)


def _are_pairs(found: NDArray[np.float64]) -> bool:
    is_table = found.ndim == 2 and found.shape[0] > 0 and found.shape[1] == 2
    return is_table and bool(np.isfinite(found).all() and (found[:, 0] >= 0).all() and (found[:, 1] > 0).all())
