"""The finished model as artifacts: a Hugging Face folder, stored by content."""

import json
import shutil
from pathlib import Path

from bloom.config import BloomConfig
from bloom.model import BloomModel
from bloom.weights import save_model
from services.common.artifacts import ArtifactStore
from services.trainer.config import RunSpec
from services.trainer.folder import JobFolder
from services.trainer.lora import merge_adapters


def export(model: BloomModel, config: BloomConfig, spec: RunSpec, folder: JobFolder) -> None:
    """Write `model` with `config` and its tokenizer to the job's export folder, upload all, name the files.

    Storing twice what is there already changes nothing, so an attempt that dies here is simply repeated.
    """
    merge_adapters(model)
    model.config = config
    shutil.rmtree(folder.export, ignore_errors=True)  # what a killed attempt may have left
    save_model(model, folder.export)
    store = ArtifactStore(spec.artifacts_url, Path(spec.data_dir) / "cache" / "artifacts")
    (folder.export / "tokenizer.json").write_bytes(store.read_bytes(spec.tokenizer_digest))
    files = [(path.name, store.write_file(path)) for path in sorted(folder.export.iterdir())]
    folder.result(spec.fencing_token).write_text(json.dumps(files))
