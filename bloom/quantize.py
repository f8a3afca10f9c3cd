"""Turn a checkpoint's matrices into int8, ahead of time, or back into floats for transformers and others.

    python -m bloom.quantize SOURCE TARGET
    python -m bloom.quantize --dequantize [--dtype bfloat16] SOURCE TARGET

Reads and writes pieces of a tensor: memory stays far below the model. docs/quantization.md describes the format.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from .checkpoint import CONFIG_FILE
from .config import QUANTIZATION
from .tensor_reader import DTYPES, TensorReader, row_pieces
from .tensor_writer import MAX_SHARD_BYTES, STORED_DTYPES, Entries, new_folder, write_checkpoint
from .tensors import scale_name


def quantize_checkpoint(source: str | Path, target: str | Path, *, max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
    """Write the checkpoint `source` to the folder `target` with every matrix in int8; vectors stay as they are.

    Raises ValueError, naming file or tensor and a remedy, where `source` is not whole, quantized already, or holds a
    matrix with numbers that are not finite, and where `target` holds files already.
    """
    with TensorReader(source) as reader:
        checkpoint = reader.checkpoint
        if checkpoint.quantized:
            raise ValueError(f"{source} is in int8 already; serve or import it as it is")
        entries: Entries = {}
        for name, stored in checkpoint.tensors.items():
            if len(stored.shape) == 1:
                entries[f"transformer.{name}"] = (stored.dtype, stored.shape)
            else:
                entries[f"transformer.{name}"] = ("I8", stored.shape)
                entries[f"transformer.{scale_name(name)}"] = ("F32", stored.shape[:1])
        config = _config(checkpoint.folder) | {"quantization_config": QUANTIZATION}
        with new_folder(target, checkpoint.folder) as folder:
            write_checkpoint(folder, config, entries, _int8_pieces(reader), max_shard_bytes=max_shard_bytes)


def dequantize_checkpoint(
    source: str | Path,
    target: str | Path,
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write the int8 checkpoint `source` to the folder `target` as floats, which transformers reads; what rounding lost
    stays lost. dtype: by default that of its vectors.

    Raises ValueError where `source` is not whole or not in int8, and where `target` holds files already.
    """
    with TensorReader(source) as reader:
        checkpoint = reader.checkpoint
        if not checkpoint.quantized:
            raise ValueError(f"{source} is not in int8; use it as it is")
        dtype = dtype or DTYPES[checkpoint.float_dtype]
        names = [name for name in checkpoint.tensors if not name.endswith("_scale")]
        entries = {f"transformer.{name}": (STORED_DTYPES[dtype], checkpoint.tensors[name].shape) for name in names}
        config = _config(checkpoint.folder) | {"torch_dtype": str(dtype).removeprefix("torch.")}
        del config["quantization_config"]
        pieces = (
            reader.read(name, rows, dtype=dtype)
            for name in names
            for rows in row_pieces(reader.checkpoint.tensors[name].shape)
        )
        with new_folder(target, checkpoint.folder) as folder:
            write_checkpoint(folder, config, entries, pieces, max_shard_bytes=max_shard_bytes)


def _int8_pieces(reader: TensorReader) -> Iterator[Tensor]:
    for name, stored in reader.checkpoint.tensors.items():
        if len(stored.shape) == 1:
            yield reader.read(name)
            continue
        scales = []
        for rows in row_pieces(reader.checkpoint.tensors[name].shape):
            q, scale = reader.read_int8(name, rows)
            scales.append(scale)
            yield q
        yield torch.cat(scales)


def _config(folder: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((folder / CONFIG_FILE).read_bytes())
    return content


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bloom.quantize", description="A BLOOM checkpoint in int8, or back."
    )
    parser.add_argument("source", type=Path, help="folder with config.json and safetensors")
    parser.add_argument("target", type=Path, help="new folder")
    parser.add_argument("--dequantize", action="store_true", help="int8 to floats")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="with --dequantize: to store")
    args = parser.parse_args()
    if args.dtype and not args.dequantize:
        parser.error("--dtype says what --dequantize stores; give both")
    try:
        if args.dequantize:
            dtype = getattr(torch, args.dtype) if args.dtype else None
            dequantize_checkpoint(args.source, args.target, dtype=dtype)
        else:
            quantize_checkpoint(args.source, args.target)
    except (ValueError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    size = sum(path.stat().st_size for path in args.target.glob("*.safetensors"))
    print(f"{args.target}: {size / 1e6:,.1f} MB of weights")
    return 0


if __name__ == "__main__":
    sys.exit(main())
