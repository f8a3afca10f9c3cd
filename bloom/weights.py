"""Hugging Face safetensors <-> BloomModel, one tensor at a time.

Reading puts each tensor into its place, so that the peak is the model and the model does not depend on the file
afterwards. Writing streams tensor by tensor.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from .checkpoint import load_config
from .config import BloomConfig
from .initial import initial_tensor
from .int8 import Int8Weights, to_int8
from .model import BloomModel
from .parallel import Shard
from .parallelize import cut_to_shard
from .tensor_reader import TensorReader
from .tensor_writer import MAX_SHARD_BYTES, STORED_DTYPES, Entries, write_checkpoint
from .tensors import EMBEDDING, scale_name

__all__ = ["TensorReader", "load_config", "load_model", "new_model", "save_model"]


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
        _allocate(model, device)
        _fill(model, reader, shard or Shard.of(config))
    return model.eval()


@torch.no_grad()
def new_model(config: BloomConfig, seed: int, shard: Shard | None = None) -> BloomModel:
    """A model as training starts, in fp32 on the CPU (see initial_tensor), or the part of it that is `shard`."""
    model = BloomModel(config, device="meta")
    if shard:
        model = cut_to_shard(model, shard)
    _allocate(model, "cpu")
    shard = shard or Shard.of(config)
    for name, tensor in own_parts(model, shard):
        rows, columns = shard.part(config, name)
        whole = initial_tensor(config, name, seed)
        tensor.copy_(whole[rows] if whole.dim() == 1 else whole[rows, columns])
    return model


def own_parts(model: BloomModel, shard: Shard) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of `model`, without the rows that pad the vocabulary of `shard`: those become zeros."""
    for name, tensor in model.state_dict().items():
        if name == EMBEDDING:
            own = shard.vocabulary(model.config)
            tensor[own.stop - own.start :].zero_()
            tensor = tensor[: own.stop - own.start]
        yield name, tensor


def _allocate(model: BloomModel, device: torch.device | str) -> None:
    """Give meta tensors memory, as `to_empty` does, which imports 500 modules of torch for it: 1 s at every start."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            memory = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
            setattr(module, name, nn.Parameter(memory, requires_grad=parameter.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype, device=device))


def _fill(model: BloomModel, reader: TensorReader, shard: Shard) -> None:
    """Read what `shard` has into the tensors of `model`; the vocabulary's padding becomes zeros."""
    tensors = model.state_dict()
    for name, tensor in own_parts(model, shard):
        if name.endswith("_scale"):
            continue  # comes with its matrix
        rows, columns = shard.part(reader.checkpoint.config, name)
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
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write config.json and safetensors that transformers reads as BloomForCausalLM; the tied head is not repeated.

    dtype: what to store, by default each parameter's own. See write_checkpoint for shards.
    """
    entries: Entries = {}
    for name, parameter in model.named_parameters():
        stored = dtype or parameter.dtype
        if not stored.is_floating_point or stored not in STORED_DTYPES:
            raise ValueError(f"{name} cannot be saved as {stored}; pass dtype= float32, float16 or bfloat16")
        entries[f"transformer.{name}"] = (STORED_DTYPES[stored], tuple(parameter.shape))
    stored_dtype = dtype or model.word_embeddings.weight.dtype
    config = model.config.to_hf() | {"torch_dtype": str(stored_dtype).removeprefix("torch.")}
    pieces = (parameter.detach().to(device="cpu", dtype=dtype) for parameter in model.parameters())
    write_checkpoint(Path(folder), config, entries, pieces, max_shard_bytes=max_shard_bytes)
