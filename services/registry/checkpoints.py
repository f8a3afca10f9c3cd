"""Is this set of artifacts a BLOOM checkpoint? Reads configuration, safetensors headers and scales, never the weights.

Blocking (it reads the artifact store): async callers use a thread.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

from bloom.config import BloomConfig, is_quantized
from bloom.tensors import StoredTensor, check_scales, check_tensors, header_end, parse_header, scale_name
from services.common.artifacts import ArtifactStore
from services.common.errors import InvalidArgument
from services.registry.tokenizers import check_fits

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
MAX_CONFIG_BYTES = 1 << 20
MAX_INDEX_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class File:
    path: str  # relative to the checkpoint's folder
    digest: str
    size_bytes: int = 0
    carried: bool = False  # it goes along with the version: see licences/carried.py


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """Files that were found to hold exactly the tensors of `config`."""

    config: BloomConfig
    config_json: str
    files: tuple[File, ...]  # with their sizes

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    @property
    def file_rows(self) -> list[dict[str, Any]]:
        return [asdict(file) for file in self.files]


def inspect_checkpoint(artifacts: ArtifactStore, files: Iterable[File], tokenizer_digest: str) -> Checkpoint:
    """The checkpoint that `files` make up.

    Raises NotFound for an artifact that was not uploaded, InvalidArgument, naming file or tensor, for anything that is
    missing, extra, misshapen, cut off, or not safetensors, and for a tokenizer with more ids than the model has rows.
    """
    by_path = _by_path(files)
    sized = {
        path: File(path=path, digest=file.digest, size_bytes=artifacts.size(file.digest))
        for path, file in by_path.items()
    }
    try:
        config_json, config = _read_config(artifacts, sized)
        _check_weights(artifacts, sized, config, quantized=is_quantized(json.loads(config_json)))
    except ValueError as error:
        raise InvalidArgument(str(error)) from error
    check_fits(artifacts, tokenizer_digest, config.vocab_size)
    return Checkpoint(config=config, config_json=config_json, files=tuple(sized.values()))


def _by_path(files: Iterable[File]) -> dict[str, File]:
    by_path: dict[str, File] = {}
    for file in files:
        path = PurePosixPath(file.path)
        if not file.path or path.is_absolute() or str(path) != file.path or ".." in path.parts or "\\" in file.path:
            raise InvalidArgument(f"file path {file.path!r} is not a plain relative path like 'model.safetensors'")
        if not file.path.isprintable():
            raise InvalidArgument(f"file path {file.path!r} has unprintable characters; rename the file")
        if file.path in by_path:
            raise InvalidArgument(f"file {file.path!r} is listed twice; list it once")
        by_path[file.path] = file
    if pickled := [path for path in by_path if path.endswith(PICKLED)]:
        raise InvalidArgument(
            f"{pickled[0]!r} is a pickle, which runs code when it is read; convert the checkpoint first: python -c "
            "\"from transformers import BloomForCausalLM as M; M.from_pretrained('DIR').save_pretrained('DIR-safe')\""
        )
    if CONFIG not in by_path:
        raise InvalidArgument(f"no {CONFIG} among the {len(by_path)} files; add the one that belongs to the weights")
    if not any(_holds_weights(path) for path in by_path):
        raise InvalidArgument(f"no .safetensors file among {', '.join(sorted(by_path)[:10])}; add the weights")
    return by_path


def _holds_weights(path: str) -> bool:
    """In a folder below lies what goes along with the weights: the adapter that they were merged with."""
    return path.endswith(".safetensors") and "/" not in path


def _read_config(artifacts: ArtifactStore, files: dict[str, File]) -> tuple[str, BloomConfig]:
    config_json = _read_text(artifacts, files[CONFIG], MAX_CONFIG_BYTES)
    return config_json, BloomConfig.from_hf(_json_object(config_json, CONFIG))


def stored_tensors(artifacts: ArtifactStore, files: dict[str, File]) -> Iterator[StoredTensor]:
    """All tensors of the weights among `files`, by path; `size_bytes` is set. Raises ValueError, naming the file."""
    for path, file in files.items():
        if not _holds_weights(path):
            continue
        prefix = artifacts.read_range(file.digest, 0, 8)
        header = artifacts.read_range(file.digest, 0, header_end(prefix, file=path, size=file.size_bytes))
        yield from parse_header(header, file=path, size=file.size_bytes).values()


def _check_weights(artifacts: ArtifactStore, files: dict[str, File], config: BloomConfig, *, quantized: bool) -> None:
    stored = list(stored_tensors(artifacts, files))
    where = {tensor.name: tensor.file for tensor in stored}
    if INDEX in files:
        _check_index(_json_object(_read_text(artifacts, files[INDEX], MAX_INDEX_BYTES), INDEX), where)
    checked = check_tensors(config, stored, quantized=quantized)
    for scales in (checked[scale_name(name)] for name in checked if scale_name(name) in checked):
        digest = files[scales.file].digest
        check_scales(scales, artifacts.read_range(digest, scales.start, scales.end - scales.start))


def _check_index(index: dict[str, Any], where: dict[str, str]) -> None:
    """The index must send every tensor to the file that holds it: it is what a loader follows."""
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict):
        raise ValueError(f"{INDEX} has no weight_map; export the checkpoint anew")
    for name in sorted(weight_map.keys() | where.keys()):
        said, found = weight_map.get(name), where.get(name)
        if said != found:
            raise ValueError(
                f"{INDEX} says tensor {name} is in {said or 'no file'}, it is in {found or 'no file given'}; "
                "give all shards and the index that belongs to them"
            )


def _read_text(artifacts: ArtifactStore, file: File, max_bytes: int) -> str:
    if file.size_bytes > max_bytes:
        raise ValueError(
            f"{file.path} has {file.size_bytes} bytes, at most {max_bytes} are read; is it the right file?"
        )
    try:
        return artifacts.read_bytes(file.digest).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file.path} is not UTF-8 ({error}); export the checkpoint anew") from error


def _json_object(text: str, path: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}); export the checkpoint anew") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no JSON object; export the checkpoint anew")
    return value
