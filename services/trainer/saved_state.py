"""A checkpoint's tensors, whole or in part, out of the files of all ranks that wrote it."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from bloom.config import BloomConfig
from bloom.parallel import Shard

MANIFEST = "manifest.json"
STATE_FOLDER = "state"  # of a version: a checkpoint beside its weights, for a job that goes on from it
VALUE = "value"  # beside the optimizer's own names for its state
Region = tuple[tuple[int, int], tuple[int, int]]  # of a whole tensor: rows and columns, first and end


def region(config: BloomConfig, shard: Shard, name: str, shape: tuple[int, ...]) -> Region:
    """What `shard` holds of the tensor `name`, in a parameter of `shape`; a vector has one column."""
    rows, columns = shard.part(config, name)
    first = rows.start or 0
    count = shape[0] if rows.stop is None else min(rows.stop - first, shape[0])
    left = columns.start or 0
    return (first, first + count), (left, left + (shape[1] if len(shape) == 2 else 1))


def stored_name(name: str, key: str) -> str:
    return f"{key}:{name}"


class SavedState:
    """Reads a checkpoint of any layout. Raises ValueError where it does not hold what is asked for."""

    dtype = torch.float32

    def __init__(self, folder: Path) -> None:
        manifest = json.loads((folder / MANIFEST).read_text())
        self.step: int = manifest["step"]
        self.optimizer_steps: int = manifest["optimizer_steps"]
        self.loss_scale: dict[str, float] | None = manifest.get("loss_scale")
        self.config = BloomConfig.from_hf(manifest["config"])
        self._folder = folder
        self._files: list[Any] = [safe_open(folder / name, framework="pt") for name in sorted(manifest["files"])]
        self._parts: dict[str, list[tuple[int, Region]]] = {}  # name -> (file, what of the tensor it has)
        for index, file in enumerate(self._files):
            for name, ((first, last), (left, right)) in json.loads(file.metadata()["regions"]).items():
                self._parts.setdefault(name, []).append((index, ((first, last), (left, right))))

    def names(self) -> list[str]:
        return list(self._parts)

    def shape(self, name: str) -> tuple[int, int]:
        """Rows and columns of the whole tensor; a vector has one column."""
        parts = [part for _, part in self._parts[name]]
        return max(rows[1] for rows, _ in parts), max(columns[1] for _, columns in parts)

    def read(self, name: str, key: str = VALUE, wanted: Region | None = None) -> Tensor:
        """`wanted` of the tensor, by default all of it: (rows, columns), or (rows,) of a vector; fp32."""
        shape = self.shape(name)
        (first, last), (left, right) = wanted or ((0, shape[0]), (0, shape[1]))
        out = torch.empty(last - first, right - left)
        num_read = 0
        is_vector = len(self._files[self._parts[name][0][0]].get_slice(stored_name(name, key)).get_shape()) == 1
        for index, (rows, columns) in self._parts[name]:
            top, bottom = max(first, rows[0]), min(last, rows[1])
            start, end = max(left, columns[0]), min(right, columns[1])
            if top >= bottom or start >= end:
                continue
            stored = self._files[index].get_slice(stored_name(name, key))
            own_rows = slice(top - rows[0], bottom - rows[0])
            part = stored[own_rows] if is_vector else stored[own_rows, start - columns[0] : end - columns[0]]
            out[top - first : bottom - first, start - left : end - left] = part[:, None] if is_vector else part
            num_read += (bottom - top) * (end - start)
        if num_read != out.numel():
            raise ValueError(
                f"{self._folder} holds {num_read} of {out.numel()} values of {name}; use another checkpoint"
            )
        return out[:, 0] if is_vector else out
