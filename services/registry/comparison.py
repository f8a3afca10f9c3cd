"""How far two versions' weights are apart: read from the store in pieces, so that neither is in memory as a whole."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bloom.tensors import DTYPE_BYTES, StoredTensor, canonical_name
from services.common.artifacts import ArtifactStore
from services.common.errors import FailedPrecondition
from services.registry.checkpoints import File, stored_tensors
from services.registry.tables import ModelVersion

PIECE_NUMBERS = 1 << 21  # of a tensor, at a time
BITS = {"F32": np.uint32, "F16": np.uint16, "BF16": np.uint16, "I8": np.uint8}


@dataclass(frozen=True, kw_only=True, slots=True)
class Distance:
    tensor: str
    num_values: int
    num_different: int  # of other bits; all of them where the formats differ
    max_abs: float
    relative_l2: float  # |version - other| / |version|


def compare(artifacts: ArtifactStore, version: ModelVersion, other: ModelVersion) -> Iterator[Distance]:
    """Each tensor's distance, in the order of `version`'s files. Blocking.

    Raises FailedPrecondition where the two have other tensors.
    """
    mine, theirs = _tensors(artifacts, version), _tensors(artifacts, other)
    shapes, others = ({name: tensor.shape for name, (tensor, _) in found.items()} for found in (mine, theirs))
    if shapes != others:
        name = next(name for name in shapes | others if shapes.get(name) != others.get(name))
        what = f"{name} is {_shown(shapes, name)} in {version.name} and {_shown(others, name)} in {other.name}"
        raise FailedPrecondition(f"{what}; compare versions of one architecture and one format")
    for name in mine:
        yield _distance(artifacts, name, mine[name], theirs[name])


def _tensors(artifacts: ArtifactStore, version: ModelVersion) -> dict[str, tuple[StoredTensor, str]]:
    """Canonical name -> tensor and its file's digest."""
    files = {file["path"]: File(**file) for file in version.files}
    return {
        canonical_name(tensor.name): (tensor, files[tensor.file].digest) for tensor in stored_tensors(artifacts, files)
    }


def _shown(shapes: dict[str, tuple[int, ...]], name: str) -> str:
    return str(list(shapes[name])) if name in shapes else "absent"


def _distance(
    artifacts: ArtifactStore, name: str, mine: tuple[StoredTensor, str], theirs: tuple[StoredTensor, str]
) -> Distance:
    num_values = math.prod(mine[0].shape)
    if mine == theirs:  # the same bytes of the same file
        return Distance(tensor=name, num_values=num_values, num_different=0, max_abs=0.0, relative_l2=0.0)
    num_different, max_abs, squared, norm = 0, 0.0, 0.0, 0.0
    for start in range(0, num_values, PIECE_NUMBERS):
        end = min(start + PIECE_NUMBERS, num_values)
        bits, other_bits = (_read(artifacts, *tensor, start, end) for tensor in (mine, theirs))
        a, b = _numbers(bits, mine[0].dtype), _numbers(other_bits, theirs[0].dtype)
        same_format = mine[0].dtype == theirs[0].dtype
        num_different += int(np.count_nonzero(bits != other_bits)) if same_format else end - start
        max_abs = max(max_abs, float(np.abs(a - b).max()))
        squared += float(np.square(a - b).sum())
        norm += float(np.square(a).sum())
    relative = math.sqrt(squared / norm) if norm else math.inf if squared else 0.0
    return Distance(
        tensor=name, num_values=num_values, num_different=num_different, max_abs=max_abs, relative_l2=relative
    )


def _read(artifacts: ArtifactStore, tensor: StoredTensor, digest: str, start: int, end: int) -> NDArray[Any]:
    size = DTYPE_BYTES[tensor.dtype]
    data = artifacts.read_range(digest, tensor.start + start * size, (end - start) * size)
    return np.frombuffer(data, BITS[tensor.dtype])


def _numbers(bits: NDArray[Any], dtype: str) -> NDArray[np.float64]:
    if dtype == "BF16":
        bits = bits.astype(np.uint32) << 16
    kind = {"F16": np.float16, "I8": np.int8}.get(dtype, np.float32)
    return bits.view(kind).astype(np.float64)
