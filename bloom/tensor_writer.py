"""A checkpoint written piece by piece: memory holds one piece, and no file has its name before it is whole."""

import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checkpoint import CONFIG_FILE, INDEX_FILE, SINGLE_FILE
from .tensors import DTYPE_BYTES, header

COMPANIONS = ("*.json", "*.txt", "LICENSE*", "README*")  # tokenizer, licence: what belongs to the weights
MAX_SHARD_BYTES = 5_000_000_000
STORED_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int8: "I8"}

Entries = dict[str, tuple[str, tuple[int, ...]]]  # name as stored -> (safetensors' dtype, shape)


def write_checkpoint(
    folder: Path,
    config: Mapping[str, Any],
    entries: Entries,
    pieces: Iterable[Tensor],
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write config.json and the tensors `entries`, whose data are `pieces`, in order, none across two tensors.

    More than max_shard_bytes of tensors are split into shards with an index; a larger tensor gets a shard of its own.
    Other weight files of an earlier export in the folder are removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards = _split(entries, max_shard_bytes)
    files = [SINGLE_FILE] if len(shards) == 1 else _shard_names(len(shards))
    source = iter(pieces)
    for file, shard in zip(files, shards, strict=True):
        _write_shard(folder / file, shard, source)
    if len(shards) > 1:
        weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
        total = sum(num_bytes(*entry) for entry in entries.values())
        _write_json(folder / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})
        files.append(INDEX_FILE)
    for stale in [*folder.glob("model*.safetensors"), folder / INDEX_FILE]:
        if stale.name not in files:
            stale.unlink(missing_ok=True)
    _write_json(folder / CONFIG_FILE, config)


@contextmanager
def new_folder(target: str | Path, source: Path | None) -> Iterator[Path]:
    """Where to write; it takes the name `target`, with source's companions in it, once all is written."""
    target = Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} exists and is no empty folder; name a new one")
    building = target.with_name(target.name + ".partial")
    shutil.rmtree(building, ignore_errors=True)  # what a killed run may have left
    building.mkdir(parents=True)
    try:
        yield building
        companions = [path for pattern in COMPANIONS for path in source.glob(pattern)] if source else []
        for path in companions:
            if path.is_file() and path.name not in (CONFIG_FILE, INDEX_FILE):
                shutil.copy(path, building / path.name)
        building.rename(target)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def num_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * DTYPE_BYTES[dtype]


def _split(entries: Entries, max_shard_bytes: int) -> list[Entries]:
    shards: list[Entries] = [{}]
    size = 0
    for name, entry in entries.items():
        if shards[-1] and size + num_bytes(*entry) > max_shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = entry
        size += num_bytes(*entry)
    return shards


def _shard_names(count: int) -> list[str]:
    return [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]


def _write_shard(path: Path, shard: Entries, pieces: Iterator[Tensor]) -> None:
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(header(shard))
        for name, (dtype, shape) in shard.items():
            left = num_bytes(dtype, shape)
            while left:
                piece = next(pieces)
                assert STORED_DTYPES[piece.dtype] == dtype, f"{name} is announced as {dtype}, got {piece.dtype}"
                left -= piece.numel() * piece.element_size()
                assert left >= 0, f"a piece reaches beyond {name}"
                file.write(piece.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    os.replace(partial, path)


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    os.replace(partial, path)
