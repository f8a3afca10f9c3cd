"""Hugging Face safetensors <-> BloomModel, one tensor at a time.

Reading puts each tensor into its place, so that the peak is the model and the model does not depend on the file
afterwards. Writing streams tensor by tensor into a temporary file that then takes its name.
"""

import json
import os
from pathlib import Path

import torch
from torch import Tensor

from .checkpoint import CONFIG_FILE, INDEX_FILE, SINGLE_FILE, load_config
from .int8 import Int8Weights, to_int8
from .model import BloomModel
from .parallel import Shard
from .parallelize import cut_to_shard
from .tensor_reader import TensorReader
from .tensors import EMBEDDING, header, scale_name

__all__ = ["TensorReader", "load_config", "load_model", "save_model"]

_STORED_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def load_model(
    folder: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    shard: Shard | None = None,
    weights: Int8Weights | None = None,
) -> BloomModel:
    """The model in a Hugging Face BLOOM folder, computing in dtype, in evaluation mode.

    shard: load this part alone (see cut_to_shard), reading no other byte. weights: keep matrices in int8, quantizing
    those that are not; by default they are in dtype, whatever is stored.
    Raises ValueError, naming file or tensor and a remedy, when the checkpoint is not whole (see open_checkpoint).
    """
    with TensorReader(folder) as reader, torch.no_grad():
        config = reader.checkpoint.config
        model = BloomModel(config, device="meta", dtype=dtype)
        if shard:
            model = cut_to_shard(model, shard)
        if weights:
            to_int8(model, weights)
        model.to_empty(device=device)
        _fill(model, reader, shard or Shard.of(config))
    return model.eval()


def _fill(model: BloomModel, reader: TensorReader, shard: Shard) -> None:
    """Read what `shard` has into the tensors of `model`; the vocabulary's padding becomes zeros."""
    config, tensors = reader.checkpoint.config, model.state_dict()
    for name, tensor in tensors.items():
        if name.endswith("_scale"):
            continue  # comes with its matrix
        rows, columns = shard.part(config, name)
        if name == EMBEDDING:
            own = shard.vocabulary(config)
            tensor[own.stop - own.start :].zero_()
            tensor = tensor[: own.stop - own.start]
        if tensor.dtype != torch.int8:
            reader.read(name, rows, columns, out=tensor)
            continue
        _, scales = reader.read_int8(name, rows, columns, out=tensor)
        tensors[scale_name(name)].zero_()[: len(scales)].copy_(scales)


def save_model(
    model: BloomModel,
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Write config.json and safetensors that transformers reads as BloomForCausalLM; the tied head is not repeated.

    dtype: what to store, by default each parameter's own. More than max_shard_bytes of tensors are split into shards
    with an index; other weight files of an earlier export in the folder are removed.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {f"transformer.{name}": parameter for name, parameter in model.named_parameters()}
    shards = _split(tensors, dtype, max_shard_bytes)
    files = [SINGLE_FILE] if len(shards) == 1 else _shard_names(len(shards))
    for file, shard in zip(files, shards, strict=True):
        _write_shard(folder / file, shard, dtype)
    if len(shards) > 1:
        weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
        total = sum(_num_bytes(tensor, dtype) for tensor in tensors.values())
        _write_json(folder / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})
        files.append(INDEX_FILE)
    for stale in [*folder.glob("model*.safetensors"), folder / INDEX_FILE]:
        if stale.name not in files:
            stale.unlink(missing_ok=True)
    stored_dtype = dtype or model.word_embeddings.weight.dtype
    config = model.config.to_hf() | {"torch_dtype": str(stored_dtype).removeprefix("torch.")}
    _write_json(folder / CONFIG_FILE, config)


def _num_bytes(tensor: Tensor, dtype: torch.dtype | None) -> int:
    return tensor.numel() * (dtype or tensor.dtype).itemsize


def _split(tensors: dict[str, Tensor], dtype: torch.dtype | None, max_shard_bytes: int) -> list[dict[str, Tensor]]:
    """Tensors in order, into shards of at most max_shard_bytes; a larger tensor gets a shard of its own."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        num_bytes = _num_bytes(tensor, dtype)
        if shards[-1] and size + num_bytes > max_shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += num_bytes
    return shards


def _shard_names(count: int) -> list[str]:
    return [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]


def _write_shard(path: Path, shard: dict[str, Tensor], dtype: torch.dtype | None) -> None:
    entries = {}
    for name, tensor in shard.items():
        stored = dtype or tensor.dtype
        if stored not in _STORED_DTYPES:
            raise ValueError(f"{name} cannot be saved as {stored}; pass dtype= float32, float16 or bfloat16")
        entries[name] = (_STORED_DTYPES[stored], tuple(tensor.shape))
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(header(entries))
        for tensor in shard.values():
            flat = tensor.detach().to(device="cpu", dtype=dtype).contiguous().view(-1)
            file.write(flat.view(torch.uint8).numpy().data)
    os.replace(partial, path)


def _write_json(path: Path, content: dict[str, object]) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    os.replace(partial, path)
