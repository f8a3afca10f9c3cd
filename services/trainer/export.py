"""The finished model as artifacts: a Hugging Face folder, stored by content."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from bloom.adapter import Adapter, merged_pieces, write_adapter
from bloom.config import BloomConfig
from bloom.tensor_reader import TensorReader, row_pieces
from bloom.tensor_writer import STORED_DTYPES, write_checkpoint
from bloom.tensors import expected_tensors
from services.trainer.config import LoraConfig, RunSpec
from services.trainer.folder import JobFolder
from services.trainer.precision import DTYPES
from services.trainer.provenance import TRAINING_FILE, training_json
from services.trainer.retention import finished
from services.trainer.saved_state import VALUE, SavedState

ADAPTER_FOLDER = "adapter"  # beside the merged weights: as peft keeps it


def export(config: BloomConfig, spec: RunSpec, folder: JobFolder) -> None:
    """Write the newest checkpoint's weights with `config` and the tokenizer to the job's export folder, upload all.

    Storing twice what is there already changes nothing, so an attempt that dies here is simply repeated.
    """
    saved = SavedState(finished(folder.checkpoints)[0])
    shutil.rmtree(folder.export, ignore_errors=True)  # what a killed attempt may have left
    if spec.config.lora:
        adapter = _export_adapter(saved, spec.config.lora, folder.export / ADAPTER_FOLDER)
        with TensorReader(folder.base) as reader:
            _write(folder.export, config, spec, merged_pieces(reader, adapter))
    else:
        _write(folder.export, config, spec, _trained(config, saved))
    store = spec.store()
    (folder.export / "tokenizer.json").write_bytes(store.read_bytes(spec.tokenizer_digest))
    (folder.export / TRAINING_FILE).write_text(training_json(folder))
    paths = sorted(path for path in folder.export.rglob("*") if path.is_file())
    files = [(str(path.relative_to(folder.export)), store.write_file(path)) for path in paths]
    folder.result(spec.fencing_token).write_text(json.dumps(files))


def _write(target: Path, config: BloomConfig, spec: RunSpec, pieces: Iterator[Tensor]) -> None:
    dtype = DTYPES[spec.config.precision]
    with_dtype = config.to_hf() | {"torch_dtype": str(dtype).removeprefix("torch.")}
    shapes = expected_tensors(config)
    entries = {f"transformer.{name}": (STORED_DTYPES[dtype], shape) for name, shape in shapes.items()}
    write_checkpoint(target, with_dtype, entries, (piece.to(dtype) for piece in pieces))


def _trained(config: BloomConfig, saved: SavedState) -> Iterator[Tensor]:
    for name, shape in expected_tensors(config).items():
        columns = shape[1] if len(shape) == 2 else 1
        for rows in row_pieces(shape):
            yield saved.read(name, VALUE, ((rows.start, rows.stop), (0, columns)))


def _export_adapter(saved: SavedState, lora: LoraConfig, target: Path) -> Adapter:
    names = sorted({name.rpartition(".")[0] for name in saved.names()})
    layers = {layer: (saved.read(f"{layer}.lora_a"), saved.read(f"{layer}.lora_b")) for layer in names}
    # Its base is the version that the job names: what peft puts here is a place on somebody's machine.
    write_adapter(target, layers, rank=lora.rank, alpha=lora.alpha, dropout=lora.dropout, base="")
    if lora.base_weights:
        from services.trainer.nf4 import as_kept  # bitsandbytes takes seconds to import

        return Adapter(lora.alpha / lora.rank, layers, beside=as_kept)
    return Adapter(lora.alpha / lora.rank, layers)
