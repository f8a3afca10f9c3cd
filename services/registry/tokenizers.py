"""How many ids a tokenizer.json has. Read as JSON: the registry needs no tokenizer library.

Blocking (it reads the artifact store): async callers use a thread.
"""

import json
from functools import lru_cache
from typing import Any

from services.common.artifacts import ArtifactStore, check_digest
from services.common.errors import InvalidArgument

MAX_BYTES = 256 << 20


def check_fits(artifacts: ArtifactStore, digest: str, rows: int) -> None:
    """Raise InvalidArgument when the tokenizer has ids beyond the `rows` of the model's embedding."""
    size = vocabulary_size(artifacts, digest)
    if size > rows:
        raise InvalidArgument(
            f"tokenizer {digest} has {size} ids, the model's embedding {rows} rows; "
            "give the tokenizer that the model was trained with"
        )


def vocabulary_size(artifacts: ArtifactStore, digest: str) -> int:
    """Greatest id + 1 of the tokenizer.json stored under `digest`.

    Raises NotFound when it is not in the store, InvalidArgument when it is no tokenizer.json.
    """
    if not digest:
        raise InvalidArgument("tokenizer_digest is empty; upload the model's tokenizer.json and give its digest")
    check_digest(digest)
    if artifacts.size(digest) > MAX_BYTES:
        raise InvalidArgument(f"artifact {digest} is too large for a tokenizer.json; give the digest of one")
    return _read_size(artifacts, digest)


@lru_cache(maxsize=1024)  # what is under a digest never changes, and a BLOOM's takes a tenth of a second to read
def _read_size(artifacts: ArtifactStore, digest: str) -> int:
    try:
        ids = _ids(json.loads(artifacts.read_bytes(digest)))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InvalidArgument(f"artifact {digest} is no Hugging Face tokenizer.json; give the digest of one") from None
    if not ids:
        raise InvalidArgument(f"tokenizer {digest} has no tokens; give the digest of a trained tokenizer.json")
    return max(ids) + 1


def _ids(tokenizer: dict[str, Any]) -> list[int]:
    """Ids of the model's vocabulary (a table for BPE and WordPiece, a list for Unigram) and of the added tokens."""
    vocabulary = tokenizer["model"]["vocab"]
    ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else list(range(len(vocabulary)))
    ids += [token["id"] for token in tokenizer.get("added_tokens") or ()]
    if not all(type(token_id) is int and token_id >= 0 for token_id in ids):
        raise ValueError("an id is no number")
    return ids
