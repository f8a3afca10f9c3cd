"""Which pieces of text make up which shard."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

from services.trainer.corpus.texts import PIECE_BYTES, Piece

Pieces = tuple[Piece, ...]  # what a worker encodes at a time
Item = TypeVar("Item")


def cut_shards(pieces: Sequence[Piece], shard_bytes: int) -> list[list[Pieces]]:
    """Neighbouring pieces gathered into what a worker takes at a time, and that into shards."""
    sized = [(piece, piece.num_bytes) for piece in pieces]
    gathered = [tuple(group) for group in _gathered(sized, min(PIECE_BYTES, shard_bytes))]
    return list(_gathered([(group, sum(piece.num_bytes for piece in group)) for group in gathered], shard_bytes))


def _gathered(sized: Sequence[tuple[Item, int]], limit: int) -> Iterator[list[Item]]:
    """Neighbours together, until they reach `limit`."""
    group: list[Item] = []
    total = 0
    for item, size in sized:
        group.append(item)
        total += size
        if total >= limit:
            yield group
            group, total = [], 0
    if group:
        yield group
