"""Small corpora for tests: documents of ids as shards, and rows of text as files."""

import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from services.trainer.corpus.indexed import ShardWriter
from tests.support.tokenizers import TEXTS


def write_shard(prefix: Path, documents: Sequence[Sequence[int]], dtype: str = "int32") -> Path:
    """Write documents of ids as the shard `prefix`; return that."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    writer = ShardWriter(prefix, np.dtype(dtype))
    for document in documents:
        writer.add(np.array(document, dtype), np.array([len(document)], np.int32))
    writer.close()
    return prefix


def numbered(lengths: Iterable[int], first: int = 0) -> list[list[int]]:
    """Documents of these lengths whose tokens are all different: first, first + 1, …"""
    documents = []
    for length in lengths:
        documents.append(list(range(first, first + length)))
        first += length
    return documents


def texts(count: int, seed: int = 0, words: tuple[int, int] = (5, 60)) -> list[str]:
    """Texts of words from several scripts, with line breaks."""
    rng = random.Random(seed)
    choice = [word for text in TEXTS for word in text.split()]
    return ["\n".join([" ".join(rng.choices(choice, k=rng.randint(*words)))] * rng.randint(1, 2)) for _ in range(count)]


def write_jsonl(path: Path, rows: Iterable[str]) -> Path:
    """Write texts as JSONL rows; return the path."""
    path.write_text("".join(json.dumps({"text": row}, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path
