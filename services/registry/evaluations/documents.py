"""What each text of a suite took: the artifact that a trainer makes as it measures a version.

JSON, {"<language>": [[bits, bytes], …], …}; a language's texts stand in the order of the suite's datasets and rows. So
the texts of two versions are the same, one by one, and can be compared in pairs. Of the harness's tasks each language
has {"<task>/<metric>": [[score, weight], …], …} instead, its questions in their order. What a version gets is the ratio
of the sums: with weights of 1, the mean.
"""

import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.common.artifacts import ArtifactStore
from services.common.errors import InvalidArgument
from services.registry.evaluations.harness import LM_EVAL, metric_of
from services.registry.tables import EvaluationSuite

MAX_BYTES = 256 << 20
BITS = "bits_per_byte"
Documents = dict[
    tuple[str, str], NDArray[np.float64]
]  # (language, metric) -> (n, 2): of each text, bits and UTF-8 bytes


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
        documents = {
            (str(language), str(metric)): np.array(pairs, np.float64)
            for language, found in content.items()
            for metric, pairs in (found.items() if isinstance(found, dict) else [(BITS, found)])
        }
    except (ValueError, TypeError, AttributeError, RecursionError):
        documents = {}
    if not documents or not all(_are_pairs(metric, found) for (_, metric), found in documents.items()):
        shape = '{"<language>": [[bits, bytes], …]} of texts that have bytes, or {"<language>": {"<metric>": [[…]]}}'
        raise InvalidArgument(f"documents {digest} are not {shape}; measure again")
    return Measurement(digest, size, documents)


def _are_pairs(metric: str, found: NDArray[np.float64]) -> bool:
    if found.ndim != 2 or found.shape[0] == 0 or found.shape[1] != 2:
        return False
    is_bits = metric == BITS
    return bool(np.isfinite(found).all() and (found[:, 1] > 0).all() and (not is_bits or (found[:, 0] >= 0).all()))


def check_measures(suite: EvaluationSuite, documents: Documents) -> None:
    """Raise InvalidArgument for what the suite does not measure."""
    known = {metric["name"] for metric in suite.metrics}
    for language, metric in documents:
        of_task = "/" in metric
        if metric_of(suite, metric) not in known or of_task != (suite.kind == LM_EVAL):
            what = f"documents hold {metric[:200]!r} of language {language[:100]!r}"
            raise InvalidArgument(f"{what}, which suite {suite.name} does not measure; measure again")
