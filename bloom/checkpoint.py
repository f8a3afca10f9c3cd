"""A Hugging Face BLOOM folder, found and checked without reading its tensors. Torch-free.

Single file `model.safetensors`, or shards named by `model.safetensors.index.json`, as transformers writes them.
"""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .config import BloomConfig, is_quantized
from .tensors import EMBEDDING, HEAD, StoredTensor, check_scales, check_tensors, header_end, parse_header, scale_name

CONFIG_FILE = "config.json"
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_COMPARED_BYTES = 1 << 24  # at a time, of a saved head and the embedding


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A checkpoint that is whole: every tensor is there once, in the shape that config.json asks for."""

    folder: Path
    config: BloomConfig
    tensors: dict[str, StoredTensor]  # by canonical name, in the model's order; without a tied head
    quantized: bool  # int8 matrices with the scales of their rows

    @property
    def float_dtype(self) -> str:
        """safetensors' name of the format that the model computed in: F32, F16 or BF16."""
        return self.tensors["ln_f.weight"].dtype if self.quantized else self.tensors[EMBEDDING].dtype


def open_checkpoint(folder: str | Path) -> Checkpoint:
    """Check a folder: configuration, index, every header, file sizes, scales, and that a saved head is the embedding.

    Raises ValueError, naming file or tensor and a remedy, for anything that is not a whole BLOOM checkpoint.
    """
    folder = Path(folder)
    config_json = read_config(folder)
    config, quantized = BloomConfig.from_hf(config_json), is_quantized(config_json)
    stored = [tensor for file in _weight_files(folder) for tensor in read_header(folder / file).values()]
    tensors = check_tensors(config, stored, quantized=quantized)
    for tensor in (tensors[scale_name(name)] for name in tensors if scale_name(name) in tensors):
        check_scales(tensor, _read_bytes(folder, tensor))
    if head := tensors.pop(HEAD, None):
        _check_tied(folder, head, tensors[EMBEDDING])
    return Checkpoint(folder=folder, config=config, tensors=tensors, quantized=quantized)


def load_config(folder: str | Path) -> BloomConfig:
    """The configuration in folder/config.json. Raises ValueError where it is absent, damaged or no BLOOM."""
    return BloomConfig.from_hf(read_config(Path(folder)))


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Stored name -> tensor of one safetensors file. Raises ValueError where it is absent, truncated or damaged."""
    if not path.is_file():
        raise ValueError(f"{path.name} is not in {path.parent}; copy it from the checkpoint's source")
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        end = header_end(prefix, file=path.name, size=size)
        return parse_header(prefix + file.read(end - 8), file=path.name, size=size)


def read_config(folder: Path) -> dict[str, Any]:
    """config.json as it is. Raises ValueError where it is absent or no JSON object."""
    return _read_json(folder / CONFIG_FILE, "copy it from the checkpoint's source")


def _read_bytes(folder: Path, tensor: StoredTensor) -> bytes:
    with (folder / tensor.file).open("rb") as file:
        file.seek(tensor.start)
        return file.read(tensor.end - tensor.start)


def _weight_files(folder: Path) -> list[str]:
    if (folder / SINGLE_FILE).is_file():  # transformers looks here first, too
        return [SINGLE_FILE]
    if (folder / INDEX_FILE).is_file():
        return _shards(folder)
    if pickles := sorted(path.name for path in folder.glob("pytorch_model*.bin")):
        raise ValueError(
            f"{pickles[0]} in {folder} is a pickle, which can run code when it is read, and is refused;"
            f" convert it where you trust it: {conversion_command(folder)}"
        )
    raise ValueError(f"{folder} has neither {SINGLE_FILE} nor {INDEX_FILE}; copy the checkpoint's safetensors files")


def conversion_command(folder: Path) -> str:
    """The shell command that turns a pickle checkpoint into safetensors beside it, with transformers."""
    folder = folder.resolve()  # `.` has no name to put the new folder beside
    target = folder.with_name(folder.name + "-safetensors")
    code = (
        "from transformers import BloomForCausalLM as M; "
        f"M.from_pretrained({str(folder)!r}).save_pretrained({str(target)!r}, safe_serialization=True)"
    )
    return f"python -c {shlex.quote(code)}"


def _shards(folder: Path) -> list[str]:
    weight_map = read_index(folder)
    files = sorted(set(weight_map.values()))
    held = {file: read_header(folder / file) for file in files}
    for tensor, file in weight_map.items():
        if tensor not in held[file]:
            raise ValueError(f"tensor {tensor} is missing in {file}, where {INDEX_FILE} places it; copy both again")
    return files


def read_index(folder: Path) -> dict[str, str]:
    """Stored name -> shard, of a folder's index. Raises ValueError where it is absent, damaged or leads elsewhere."""
    index = _read_json(folder / INDEX_FILE, "copy it from the checkpoint's source")
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{INDEX_FILE} has no weight_map; copy it from the checkpoint's source")
    for tensor, file in weight_map.items():
        # Shards lie beside the index: a name with a path could read, or pass on, any file of this machine.
        if not isinstance(file, str) or Path(file).name != file or "\\" in file or not file.endswith(".safetensors"):
            raise ValueError(f"{INDEX_FILE} places {tensor} in {file!r}; use the name of a .safetensors file beside it")
    return weight_map


def _read_json(path: Path, remedy: str) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path.name} is not in {path.parent}; {remedy}")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} in {path.parent} is no JSON ({error}); {remedy}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} in {path.parent} is no JSON object; {remedy}")
    return content


def _check_tied(folder: Path, head: StoredTensor, embedding: StoredTensor) -> None:
    same = head.dtype == embedding.dtype and _same_bytes(folder, head, embedding)
    if not same:
        raise ValueError(
            f"{head.name} in {head.file} differs from {embedding.name} in {embedding.file}; BLOOM's head is its"
            " embedding: remove lm_head.weight from the checkpoint, or tie the two and export anew"
        )


def _same_bytes(folder: Path, a: StoredTensor, b: StoredTensor) -> bool:
    length = a.end - a.start
    with (folder / a.file).open("rb") as file_a, (folder / b.file).open("rb") as file_b:
        file_a.seek(a.start)
        file_b.seek(b.start)
        chunks = (min(_COMPARED_BYTES, length - done) for done in range(0, length, _COMPARED_BYTES))
        return all(file_a.read(chunk) == file_b.read(chunk) for chunk in chunks)
