"""What a BLOOM checkpoint holds, plain or in int8, and whether a safetensors header agrees. Torch-free.

Source of the format: huggingface/safetensors, README: 8 bytes little-endian header length, JSON header, data.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from .config import BloomConfig

FLOATS = ("F32", "F16", "BF16")
DTYPE_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I8": 1}
HEAD = "lm_head.weight"
EMBEDDING = "word_embeddings.weight"
_MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredTensor:
    """One tensor as it lies in a file: bytes [start, end) from the file's beginning."""

    file: str
    name: str  # as stored, perhaps with `transformer.`
    dtype: str  # safetensors' name: F32, F16, BF16, I8
    shape: tuple[int, ...]
    start: int
    end: int


def expected_tensors(config: BloomConfig, *, quantized: bool = False) -> dict[str, tuple[int, ...]]:
    """Canonical name -> shape of every tensor, in the model's order; rows of qkv are [n_head, 3, head_dim].

    quantized: as docs/quantization.md says, each matrix is followed by the scales of its rows.
    """
    h, ffn = config.hidden_size, config.ffn_size
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (config.vocab_size, h)}
    shapes |= _layer_norm("word_embeddings_layernorm", h)
    for i in range(config.n_layer):
        shapes |= _layer_norm(f"h.{i}.input_layernorm", h)
        shapes |= _linear(f"h.{i}.self_attention.query_key_value", 3 * h, h)
        shapes |= _linear(f"h.{i}.self_attention.dense", h, h)
        shapes |= _layer_norm(f"h.{i}.post_attention_layernorm", h)
        shapes |= _linear(f"h.{i}.mlp.dense_h_to_4h", ffn, h)
        shapes |= _linear(f"h.{i}.mlp.dense_4h_to_h", h, ffn)
    shapes |= _layer_norm("ln_f", h)
    if not quantized:
        return shapes
    return {part: size for name, shape in shapes.items() for part, size in _quantized(name, shape).items()}


def scale_name(name: str) -> str:
    """Of the tensor that holds the scales of the int8 matrix `name`."""
    return f"{name}_scale"


def canonical_name(name: str) -> str:
    """The name in our model: BloomForCausalLM's prefix `transformer.` is stripped."""
    return name.removeprefix("transformer.")


def header_end(prefix: bytes, *, file: str, size: int) -> int:
    """Offset of the first data byte of a safetensors file of `size` bytes, from its first 8 bytes.

    Raises ValueError, naming the file, when it is cut off or no safetensors file.
    """
    if len(prefix) < 8:
        raise ValueError(f"{file} is truncated: {size} bytes, less than a safetensors header; copy it again")
    length = int.from_bytes(prefix[:8], "little")
    if not 2 <= length <= _MAX_HEADER_BYTES:
        raise ValueError(f"{file} is no safetensors file: it announces a header of {length} bytes; convert or copy it")
    if 8 + length > size:
        raise ValueError(f"{file} is truncated: its header ends at byte {8 + length} of {size}; copy it again")
    return 8 + length


def parse_header(data: bytes, *, file: str, size: int) -> dict[str, StoredTensor]:
    """Stored name -> tensor, from the file's bytes up to `header_end`.

    Raises ValueError, naming file or tensor, when the header is malformed or disagrees with the file's size.
    """
    end = header_end(data[:8], file=file, size=size)
    try:
        header = json.loads(data[8:end])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} has a damaged safetensors header ({error}); copy it again") from error
    if not isinstance(header, dict):
        raise ValueError(f"{file} has a damaged safetensors header (no JSON object); copy it again")
    header.pop("__metadata__", None)
    tensors = {name: _stored_tensor(file, name, entry, end) for name, entry in header.items()}
    _check_layout(tensors, file=file, data_start=end, size=size)
    return tensors


def header(entries: Mapping[str, tuple[str, tuple[int, ...]]], **metadata: str) -> bytes:
    """What a safetensors file begins with, for tensors name -> (dtype, shape) whose data follow in this order."""
    # transformers refuses a file without a format
    content: dict[str, Any] = {"__metadata__": {"format": "pt"} | metadata}
    position = 0
    for name, (dtype, shape) in entries.items():
        end = position + math.prod(shape) * DTYPE_BYTES[dtype]
        content[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    data = json.dumps(content, separators=(",", ":")).encode()
    data += b" " * (-len(data) % 8)  # keeps the data aligned
    return len(data).to_bytes(8, "little") + data


def check_tensors(
    config: BloomConfig, stored: list[StoredTensor], *, quantized: bool = False
) -> dict[str, StoredTensor]:
    """Canonical name -> tensor of a whole checkpoint, in the model's order; a saved head stays under `lm_head.weight`.

    Raises ValueError naming every missing, extra, doubled or misshapen tensor.
    """
    if not quantized and (int8 := next((tensor for tensor in stored if tensor.dtype == "I8"), None)):
        raise ValueError(
            f"tensor {int8.name} in {int8.file} is I8, but config.json has no quantization_config;"
            " copy the config.json of these weights, or save the checkpoint as " + ", ".join(FLOATS)
        )
    found: dict[str, StoredTensor] = {}
    for tensor in stored:
        name = canonical_name(tensor.name)
        if name in found:
            other = found[name]
            raise ValueError(f"{name} is saved twice, in {other.file} and {tensor.file}; export the checkpoint anew")
        found[name] = tensor
    expected = expected_tensors(config, quantized=quantized)
    if missing := [name for name in expected if name not in found]:
        raise ValueError(f"missing {_listed(missing)}; the checkpoint is incomplete, copy or export it anew")
    if extra := [found[name].name for name in found if name not in expected and name != HEAD]:
        raise ValueError(
            f"unexpected {_listed(extra)}; config.json describes no such tensor, export the checkpoint anew"
        )
    tied = {HEAD: expected[EMBEDDING]} if HEAD in found else {}
    for name, shape in (expected | tied).items():
        _check_shape(found[name], shape)
        _check_dtype(found[name], is_matrix=len(shape) == 2, is_scale=name.endswith("_scale"), quantized=quantized)
    return {name: found[name] for name in expected | tied}


def check_scales(tensor: StoredTensor, data: bytes) -> None:
    """Raises ValueError, naming the row, unless all of a scale tensor's bytes are finite numbers of 0 or more."""
    scales = memoryview(data).cast("f")
    if math.isfinite(sum(scales)) and min(scales) >= 0:  # a sum is NaN or infinite where one of its terms is
        return
    for row, scale in enumerate(scales):
        if not 0 <= scale < math.inf:
            raise ValueError(
                f"{tensor.name} in {tensor.file} has scale {scale} in row {row}, a scale is finite and not negative;"
                " quantize the original checkpoint anew: python -m bloom.quantize"
            )


def _layer_norm(name: str, size: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}


def _linear(name: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def _quantized(name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {name: shape, scale_name(name): shape[:1]} if len(shape) == 2 else {name: shape}


def _stored_tensor(file: str, name: str, entry: Any, data_start: int) -> StoredTensor:
    damaged = ValueError(f"{file} has a damaged header entry for tensor {name}; copy or export it anew")
    if not isinstance(entry, Mapping):
        raise damaged
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not (isinstance(dtype, str) and _are_sizes(shape) and _are_sizes(offsets) and len(offsets) == 2):
        raise damaged
    start, end = offsets
    return StoredTensor(
        file=file, name=name, dtype=dtype, shape=tuple(shape), start=data_start + start, end=data_start + end
    )


def _are_sizes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _check_layout(tensors: Mapping[str, StoredTensor], *, file: str, data_start: int, size: int) -> None:
    """Tensors must fill the data part without hole or overlap, to the file's last byte."""
    position = data_start
    for tensor in sorted(tensors.values(), key=lambda t: (t.start, t.end)):
        if tensor.start != position or tensor.end < tensor.start:
            raise ValueError(f"{file} has a damaged header: tensor {tensor.name} is out of line; copy it again")
        position = tensor.end
    if position > size:
        raise ValueError(f"{file} is truncated: {size} bytes, its header promises {position}; copy it again")
    if position < size:
        raise ValueError(f"{file} has {size - position} bytes after its last tensor; copy or export it anew")


def _check_shape(tensor: StoredTensor, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise ValueError(
            f"tensor {tensor.name} in {tensor.file} has shape {list(tensor.shape)}, config.json asks for {list(shape)};"
            " the two belong to different models, copy the matching config.json or export the checkpoint anew"
        )


def _check_dtype(tensor: StoredTensor, *, is_matrix: bool, is_scale: bool, quantized: bool) -> None:
    allowed = ("I8",) if quantized and is_matrix else ("F32",) if is_scale else FLOATS
    if tensor.dtype not in allowed:
        remedy = f"save the checkpoint as {', '.join(FLOATS)}"
        if quantized:
            remedy = f"in int8 weights it is {' or '.join(allowed)}: quantize anew, python -m bloom.quantize"
        raise ValueError(f"tensor {tensor.name} in {tensor.file} is {tensor.dtype}; {remedy}")
    if tensor.end - tensor.start != math.prod(tensor.shape) * DTYPE_BYTES[tensor.dtype]:
        raise ValueError(f"tensor {tensor.name} in {tensor.file} has offsets that do not fit its shape; copy it again")


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return f"tensor{'s' if len(names) > 1 else ''} {shown}"
