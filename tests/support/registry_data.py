"""What a registry's tests put into it: databases with the schema, tiny checkpoints (no torch), tokenizers, datasets."""

import asyncio
import json
import math
import shutil
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path

import pytest
from alembic import command

from bloom.config import BloomConfig
from bloom.tensors import expected_tensors
from services.common.artifacts import ArtifactStore
from services.registry.checkpoints import File
from services.registry.database import Database, alembic_config
from services.registry.licences.builtin import seed_licences
from tests.support.postgres import MISSING, shared_server

TINY = BloomConfig(vocab_size=300, hidden_size=12, n_layer=2, n_head=3)
DATABASES = ("sqlite", "postgresql")


def empty_database(kind: str, folder: Path) -> str:
    """URL of a database without any table. Skips the test where `kind` is not installed."""
    if kind == "sqlite":
        return f"sqlite+aiosqlite:///{folder}/registry.db"
    server = shared_server()
    if server is None:
        pytest.skip(MISSING)
    return server.url(server.create_database())


def fresh_database(kind: str, folder: Path) -> str:
    """URL of a database at the newest revision, with licences alone; copied, which is faster than migrating."""
    if kind == "sqlite":
        shutil.copy(_sqlite_template(), folder / "registry.db")
        return f"sqlite+aiosqlite:///{folder}/registry.db"
    server = shared_server()
    if server is None:
        pytest.skip(MISSING)
    return server.url(server.create_database(template=_postgres_template()))


@lru_cache
def _sqlite_template() -> Path:
    path = Path(tempfile.mkdtemp(prefix="an-")) / "template.db"
    asyncio.run(_migrate_and_seed(f"sqlite+aiosqlite:///{path}"))
    return path


@lru_cache
def _postgres_template() -> str:
    server = shared_server()
    assert server is not None
    name = server.create_database()
    asyncio.run(_migrate_and_seed(server.url(name)))
    return name


async def _migrate_and_seed(url: str) -> None:
    await asyncio.to_thread(command.upgrade, alembic_config(url), "head")
    database = Database(url)
    await seed_licences(database)
    await database.close()


class ManualClock:
    """A clock that tests turn by hand."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


def safetensors_bytes(tensors: dict[str, tuple[int, ...]], dtype: str = "F32") -> bytes:
    """A safetensors file of zeros with `tensors` (name -> shape)."""
    header, position = {}, 0
    for name, shape in tensors.items():
        size = math.prod(shape) * {"F32": 4, "BF16": 2, "F16": 2, "F64": 8}[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + size]}
        position += size
    encoded = json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + bytes(position)


def tokenizer_bytes(num_ids: int = 280) -> bytes:
    """A tokenizer.json with `num_ids` ids; enough of one for the registry, which does not tokenize."""
    vocabulary = {f"token{i}": i for i in range(num_ids - 4)}
    added = [{"id": num_ids - 4 + i, "content": f"<{i}>", "special": True} for i in range(4)]
    return json.dumps({"added_tokens": added, "model": {"type": "BPE", "vocab": vocabulary, "merges": []}}).encode()


@dataclass(frozen=True)
class StoredCheckpoint:
    files: tuple[File, ...]
    tokenizer_digest: str


def store_checkpoint(artifacts: ArtifactStore, config: BloomConfig = TINY, **changed: bytes) -> StoredCheckpoint:
    """Put a checkpoint of zeros into the store. `changed`: other bytes for "config", "weights" or "tokenizer"."""
    tensors = {f"transformer.{name}": shape for name, shape in expected_tensors(config).items()}
    parts = {
        "config": json.dumps(config.to_hf()).encode(),
        "weights": safetensors_bytes(tensors),
        "tokenizer": tokenizer_bytes(),
    } | changed
    files = (
        File(path="config.json", digest=artifacts.write_bytes(parts["config"])),
        File(path="model.safetensors", digest=artifacts.write_bytes(parts["weights"])),
    )
    return StoredCheckpoint(files, artifacts.write_bytes(parts["tokenizer"]))


def text_rows(num_rows: int = 3) -> bytes:
    """A TEXT dataset."""
    rows = [{"text": f"row {i}", "language": ("fr", "sw")[i % 2]} for i in range(num_rows)]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def multitask_rows(num_rows: int = 3) -> bytes:
    """A MULTITASK dataset."""
    return b"".join(b'{"inputs": "in", "targets": "out"}\n' for _ in range(num_rows))
