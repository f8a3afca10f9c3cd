"""BigScience's own checkpoints, Megatron-DeepSpeed's layer files, to Hugging Face's format and back.

    python -m bloom.megatron to-hf --config 176b LAYER_FILES TARGET
    python -m bloom.megatron from-hf --tp 4 MODEL TARGET

`layer_XX-model_YY-model_states.pt` holds tensor-parallel rank YY's part of layer XX: 01 is the embedding with its
LayerNorm, 03 the first block, L + 4 the last LayerNorm. Weights alone; one layer is in memory at a time. Files are
unpickled as weights only: one that holds anything else is refused. Source: bigscience-workshop/Megatron-DeepSpeed,
megatron/model/gpt_model.py (GPTModelPipe); Shoeybi et al. 2019, section 3, for what is cut where.
"""

import argparse
import json
import pickle
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from .checkpoint import load_config
from .config import PRESETS, BloomConfig
from .parallel import Shard
from .tensor_reader import TensorReader
from .tensor_writer import STORED_DTYPES, new_folder, write_checkpoint
from .tensors import EMBEDDING, expected_tensors

EMBEDDING_LAYER, FIRST_BLOCK = 1, 3
ROW_MULTIPLE = 128  # embedding rows of a rank, as Megatron pads them
_FILE = re.compile(r"layer_(\d+)-model_(\d+)-model_states\.pt")
_EMBEDDING_KEYS = {
    EMBEDDING: "word_embeddings.weight",
    "word_embeddings_layernorm.weight": "word_embeddings.norm.weight",
    "word_embeddings_layernorm.bias": "word_embeddings.norm.bias",
}


def place(config: BloomConfig, name: str) -> tuple[int, str]:
    """Layer number and key of the tensor `name` (canonical) in Megatron's files."""
    if name in _EMBEDDING_KEYS:
        return EMBEDDING_LAYER, _EMBEDDING_KEYS[name]
    if name.startswith("ln_f."):
        return config.n_layer + FIRST_BLOCK + 1, name.removeprefix("ln_f.")
    _, index, key = name.split(".", 2)
    return int(index) + FIRST_BLOCK, key


@dataclass(frozen=True, slots=True)
class LayerFiles:
    """The layer files of a folder, for a model of `config`."""

    config: BloomConfig
    paths: dict[int, list[Path]]  # layer -> a file per tensor-parallel rank

    @classmethod
    def open(cls, folder: str | Path, config: BloomConfig) -> "LayerFiles":
        """Raises ValueError where files are missing."""
        found: dict[int, dict[int, Path]] = {}
        for path in sorted(Path(folder).iterdir()):
            if match := _FILE.fullmatch(path.name):
                found.setdefault(int(match[1]), {})[int(match[2])] = path
        if not found:
            raise ValueError(f"{folder} holds no layer_XX-model_YY-model_states.pt; name the folder of one checkpoint")
        size = 1 + max(rank for ranks in found.values() for rank in ranks)
        needed = sorted({place(config, name)[0] for name in expected_tensors(config)})
        missing = [(layer, rank) for layer in needed for rank in range(size) if rank not in found.get(layer, {})]
        if missing:
            layer, rank = missing[0]
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ValueError(f"layer_{layer:02d}-model_{rank:02d}-model_states.pt{more} is missing; copy all files")
        Shard.of(config, tp_size=size)  # raises where heads do not divide
        return cls(config, {layer: [found[layer][rank] for rank in range(size)] for layer in needed})

    @property
    def tp_size(self) -> int:
        return len(next(iter(self.paths.values())))

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Canonical name and whole tensor, in the model's order. Raises ValueError, naming the file."""
        load = lru_cache(maxsize=1)(lambda layer: [_load(path) for path in self.paths[layer]])
        for name in expected_tensors(self.config):
            layer, key = place(self.config, name)
            parts = []
            for path, file in zip(self.paths[layer], load(layer), strict=True):
                if not isinstance(file.get(key), Tensor):
                    raise ValueError(f"{path} holds no tensor {key!r}; it is of another model, or damaged")
                parts.append(file[key])
            yield name, joined(self.config, name, parts)


def joined(config: BloomConfig, name: str, parts: list[Tensor]) -> Tensor:
    """The whole tensor `name` (canonical) of which each tensor-parallel rank has a part, or a state of its shape.

    Raises ValueError where they are of another model.
    """
    rows, columns = Shard.of(config, tp_size=len(parts)).part(config, name)
    if rows != slice(None):
        whole = torch.cat(parts)
    elif columns != slice(None):
        whole = torch.cat(parts, dim=1)
    elif all(torch.equal(part, parts[0]) for part in parts):
        whole = parts[0]
    else:
        # Every rank has all of it. BLOOM's drifted apart a little while it was trained: the mean, as in its release.
        whole = torch.stack([part.float() for part in parts]).mean(dim=0).to(parts[0].dtype)
    shape = expected_tensors(config)[name]
    if name == EMBEDDING:
        whole = whole[: shape[0]]  # rows beyond are padding
    if tuple(whole.shape) != shape:
        layer, key = place(config, name)
        shapes = f"has shape {list(whole.shape)}, the model's is {list(shape)}"
        raise ValueError(f"{key} of layer {layer:02d} {shapes}; check --config")
    return whole


def _load(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0][:200]
        raise ValueError(f"{path} is damaged, or holds more than weights ({reason}); copy it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not tensors by name; name a folder of layer files")
    return content


def to_hf(source: str | Path, target: str | Path, config: BloomConfig) -> None:
    """Write the layer files in `source` as a Hugging Face checkpoint, in the format of their numbers.

    Raises ValueError where files are missing, damaged or of another model, and where `target` holds files already.
    """
    files = LayerFiles.open(source, config)
    tensors = files.tensors()
    first = next(tensors)
    dtype = first[1].dtype
    if dtype not in STORED_DTYPES:
        raise ValueError(f"the weights in {source} are {dtype}; only float32, float16 and bfloat16 are known")
    entries = {f"transformer.{name}": (STORED_DTYPES[dtype], shape) for name, shape in expected_tensors(config).items()}
    with_dtype = config.to_hf() | {"torch_dtype": str(dtype).removeprefix("torch.")}
    with new_folder(target, Path(source)) as folder:
        pieces = (tensor.to(dtype) for _, tensor in chain([first], tensors))
        write_checkpoint(folder, with_dtype, entries, pieces)


def from_hf(source: str | Path, target: str | Path, tp_size: int) -> None:
    """Write the checkpoint in `source` as layer files of `tp_size` ranks.

    Raises ValueError where it is not whole, or the ranks do not divide it, and where `target` holds files already.
    """
    config = load_config(source)
    layers: dict[int, list[str]] = {}
    for name in expected_tensors(config):
        layers.setdefault(place(config, name)[0], []).append(name)
    with new_folder(target, Path(source)) as folder, TensorReader(source) as reader:
        for layer, names in layers.items():
            for rank in range(tp_size):
                shard = Shard.of(config, tp_rank=rank, tp_size=tp_size)
                part = {place(config, name)[1]: _part(reader, shard, config, name) for name in names}
                torch.save(part, folder / f"layer_{layer:02d}-model_{rank:02d}-model_states.pt")


def _part(reader: TensorReader, shard: Shard, config: BloomConfig, name: str) -> Tensor:
    if name != EMBEDDING:
        return reader.read(name, *shard.part(config, name))
    rows = -(-config.vocab_size // (ROW_MULTIPLE * shard.tp_size)) * ROW_MULTIPLE
    own = reader.read(name, slice(rows * shard.tp_rank, rows * (shard.tp_rank + 1)))
    return torch.nn.functional.pad(own, (0, 0, 0, rows - len(own)))


def _config(text: str) -> BloomConfig:
    return PRESETS[text] if text in PRESETS else BloomConfig.from_hf(json.loads(Path(text).read_text()))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bloom.megatron", description="BigScience's layer files and back.")
    commands = parser.add_subparsers(dest="command", required=True)
    reading = commands.add_parser("to-hf")
    reading.add_argument("--config", required=True, help=f"{', '.join(PRESETS)}, or a config.json")
    writing = commands.add_parser("from-hf")
    writing.add_argument("--tp", type=int, default=1, help="tensor-parallel ranks")
    for command in (reading, writing):
        command.add_argument("source", type=Path)
        command.add_argument("target", type=Path, help="new folder")
    args = parser.parse_args()
    try:
        if args.command == "to-hf":
            to_hf(args.source, args.target, _config(args.config))
        else:
            from_hf(args.source, args.target, args.tp)
    except (ValueError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    print(f"{args.target}: written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
