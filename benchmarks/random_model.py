"""Checkpoints of random weights in any published shape: `python -m benchmarks.random_model 7b1 FOLDER --weights int8`.

Nothing need be downloaded, and speed does not depend on the values. Written tensor by tensor: memory stays at the
largest one. float32 and bfloat16 of one preset are the same model, rounded.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from bloom.config import PRESETS, QUANTIZATION, BloomConfig
from bloom.tensors import expected_tensors, header

DTYPES = {"float32": ("F32", torch.float32), "bfloat16": ("BF16", torch.bfloat16)}
INT8_STD = 73.3  # of the integers -127 to 127, each as likely


def random_model(folder: Path, config: BloomConfig, *, weights: str) -> Path:
    """Write config.json and model.safetensors unless they are there; `weights`: float32, bfloat16 or int8."""
    target = folder / "model.safetensors"
    if target.exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    content = config.to_hf() | {"torch_dtype": "float32" if weights == "int8" else weights}
    if weights == "int8":
        content["quantization_config"] = QUANTIZATION
    (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n")
    partial = target.with_name(target.name + ".partial")
    with partial.open("wb") as file:
        file.write(header(_entries(config, weights)))
        for tensor in _tensors(config, weights):
            file.write(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    partial.rename(target)
    return folder


def _entries(config: BloomConfig, weights: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    entries: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, shape in expected_tensors(config).items():
        stored = f"transformer.{name}"
        if weights != "int8":
            entries[stored] = (DTYPES[weights][0], shape)
        elif len(shape) == 1:
            entries[stored] = ("F32", shape)
        else:
            entries[stored] = ("I8", shape)
            entries[f"{stored}_scale"] = ("F32", shape[:1])
    return entries


def _tensors(config: BloomConfig, weights: str) -> Iterator[Tensor]:
    """In the order of `_entries`; as a fresh BLOOM is initialised."""
    generator = torch.Generator().manual_seed(0)
    std = config.initializer_range
    for name, shape in expected_tensors(config).items():
        if len(shape) == 1:
            is_gain = name.endswith(("layernorm.weight", "ln_f.weight"))
            vector = torch.ones(shape) if is_gain else torch.zeros(shape)
            yield vector if weights == "int8" else vector.to(DTYPES[weights][1])
        elif weights == "int8":
            yield torch.randint(-127, 128, shape, generator=generator, dtype=torch.int8)
            yield torch.full(shape[:1], std / INT8_STD)
        else:
            yield torch.empty(shape).normal_(std=std, generator=generator).to(DTYPES[weights][1])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.random_model", description="Random weights.")
    parser.add_argument("preset", choices=PRESETS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", choices=(*DTYPES, "int8"), default="bfloat16")
    args = parser.parse_args()
    print(random_model(args.folder, BloomConfig.preset(args.preset), weights=args.weights))


if __name__ == "__main__":
    main()
