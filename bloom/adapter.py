"""LoRA adapters as peft keeps them: read, written, and merged into a checkpoint.

    python -m bloom.adapter BASE ADAPTER TARGET

A folder holds adapter_config.json and adapter_model.safetensors, of each layer two tensors under
`base_model.model.transformer.<layer>`: `.lora_A.weight` (r, in) and `.lora_B.weight` (out, r). W + scale * B A replaces
the layer's weight W (out, in); scale = alpha / r, or alpha / sqrt(r) with "use_rslora". R = rows.
Source: Hu et al. 2021, section 4.1; peft's LoraConfig and save_pretrained.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .checkpoint import load_config
from .config import BloomConfig
from .tensor_reader import DTYPES, TensorReader, row_pieces
from .tensor_writer import STORED_DTYPES, new_folder, write_checkpoint
from .tensors import expected_tensors

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
LAYERS = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
_PREFIX = "base_model.model.transformer."
# Values that mean plain LoRA: with another, the weights mean something else.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "use_dora": (False, None),
    "fan_in_fan_out": (False, None),
    "modules_to_save": (None, []),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
}


@dataclass(frozen=True, slots=True)
class Adapter:
    """What is added to each layer, for example "h.0.self_attention.dense"."""

    scale: float
    layers: dict[str, tuple[Tensor, Tensor]]  # A (r, in), B (out, r)
    beside: Callable[[Tensor], Tensor] = Tensor.float  # makes of a layer's weight what it was trained beside, in fp32

    def merged(self, name: str, rows: slice, weight: Tensor) -> Tensor:
        """Rows (R, in) of the tensor `name` (canonical), with what the adapter adds, in fp32."""
        layer = name.removesuffix(".weight")
        if layer == name or layer not in self.layers:
            return weight.float()
        a, b = self.layers[layer]
        return self.beside(weight) + b[rows].float() @ a.float() * self.scale


def read_adapter(folder: str | Path, base: BloomConfig) -> Adapter:
    """The adapter in a folder that peft wrote.

    Raises ValueError where it is not whole, not plain LoRA, or of a model of other shapes than `base`.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / CONFIG_FILE).read_bytes())
        tensors = load_file(folder / WEIGHTS_FILE)
    except FileNotFoundError as error:
        raise ValueError(f"{error.filename} is missing; save the adapter with peft's save_pretrained") from error
    except (ValueError, SafetensorError) as error:
        raise ValueError(f"the adapter in {folder} is damaged ({error}); copy it again") from error
    for key, plain in _PLAIN.items():
        if config.get(key) not in plain:
            raise ValueError(
                f"{CONFIG_FILE} has {key}={config.get(key)!r}; only plain LoRA is merged here, merge it with peft"
            )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise ValueError(f"{CONFIG_FILE} has r={rank!r} and lora_alpha={alpha!r}; both must be numbers, r at least 1")
    layers = _layers(tensors, rank, base)
    return Adapter(alpha / (rank**0.5 if config.get("use_rslora") else rank), layers)


def _layers(tensors: dict[str, Tensor], rank: int, base: BloomConfig) -> dict[str, tuple[Tensor, Tensor]]:
    shapes = expected_tensors(base)
    halves: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        layer, _, half = name.removeprefix(_PREFIX).removesuffix(".weight").rpartition(".")
        weight = shapes.get(f"{layer}.weight", ())
        if half not in ("lora_A", "lora_B") or layer.rpartition(".")[2] not in LAYERS or not weight:
            raise ValueError(
                f"{WEIGHTS_FILE} holds {name}, which is no adapter of a layer of this base; choose its base"
            )
        expected = (rank, weight[1]) if half == "lora_A" else (weight[0], rank)
        if tuple(tensor.shape) != expected:
            raise ValueError(f"{name} has shape {list(tensor.shape)}, this base and r={rank} ask for {list(expected)}")
        halves.setdefault(layer, {})[half] = tensor
    if half_layer := next((layer for layer, found in halves.items() if len(found) != 2), None):
        raise ValueError(f"{WEIGHTS_FILE} holds one half of {half_layer} only; save the adapter again")
    if not halves:
        raise ValueError(f"{WEIGHTS_FILE} holds no tensors; save the adapter again")
    return {layer: (found["lora_A"], found["lora_B"]) for layer, found in halves.items()}


def write_adapter(
    folder: Path, layers: dict[str, tuple[Tensor, Tensor]], *, rank: int, alpha: float, dropout: float, base: str
) -> None:
    """Write what peft's PeftModel.from_pretrained reads; base: the name of the model that it belongs to."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for layer, (a, b) in layers.items():
        tensors[f"{_PREFIX}{layer}.lora_A.weight"] = a.contiguous()
        tensors[f"{_PREFIX}{layer}.lora_B.weight"] = b.contiguous()
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "target_modules": sorted({layer.rpartition(".")[2] for layer in layers}),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def merged_pieces(reader: TensorReader, adapter: Adapter) -> Iterator[Tensor]:
    """The base's tensors in the model's order, a few rows at a time, merged, in fp32."""
    for name, shape in expected_tensors(reader.checkpoint.config).items():
        for rows in row_pieces(shape):
            yield adapter.merged(name, rows, reader.read(name, rows, dtype=torch.float32))


def merge(base: str | Path, adapter: str | Path, target: str | Path) -> None:
    """Write the checkpoint `base` with `adapter` merged to the folder `target`, in base's format.

    Raises ValueError where either is not whole or they do not belong together, and where `target` holds files already.
    """
    found = read_adapter(adapter, load_config(base))
    with TensorReader(base) as reader:
        checkpoint = reader.checkpoint
        if checkpoint.quantized:
            raise ValueError(f"{base} is in int8; merge into the checkpoint that it was made of, then quantize")
        dtype = DTYPES[checkpoint.float_dtype]
        shapes = expected_tensors(checkpoint.config)
        entries = {f"transformer.{name}": (STORED_DTYPES[dtype], shape) for name, shape in shapes.items()}
        config = checkpoint.config.to_hf() | {"torch_dtype": str(dtype).removeprefix("torch.")}
        with new_folder(target, checkpoint.folder) as folder:
            write_checkpoint(folder, config, entries, (piece.to(dtype) for piece in merged_pieces(reader, found)))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bloom.adapter", description="Merge a LoRA adapter into a BLOOM.")
    parser.add_argument("base", type=Path, help="folder with config.json and safetensors")
    parser.add_argument("adapter", type=Path, help="folder with adapter_config.json and adapter_model.safetensors")
    parser.add_argument("target", type=Path, help="new folder")
    args = parser.parse_args()
    try:
        merge(args.base, args.adapter, args.target)
    except (ValueError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    print(f"{args.target}: {args.base} with {args.adapter} merged")
    return 0


if __name__ == "__main__":
    sys.exit(main())
