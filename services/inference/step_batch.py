"""What one step computes, as arrays: the engine makes it, every rank gets it.

T = packed tokens, S = sequences, C = blocks to copy, R = rows whose hidden states are needed
"""

from collections.abc import Sequence as Items
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.inference.scheduler import Chunk


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StepBatch:
    """Sequences packed one after another, those with a single token first."""

    input_ids: NDArray[np.int64]  # (T,)
    query_starts: NDArray[np.int32]  # (S + 1,) sequence i has tokens query_starts[i] to query_starts[i + 1]
    context_lens: NDArray[np.int32]  # (S,) keys that each sequence has after the step
    block_tables: NDArray[np.int32]  # (S, max_blocks); 0 behind a sequence's blocks
    num_needed: NDArray[np.int32]  # (S,) of how many tokens, a sequence's last ones, hidden states are needed
    copies: NDArray[np.int32]  # (C, 2) blocks: source, target; done before anything else (copy-on-write)

    @classmethod
    def from_chunks(cls, chunks: list[Chunk], copies: Items[tuple[int, int]] = ()) -> "StepBatch":
        """The scheduler's choice, read before it is told that the step is done."""
        num_tokens = [chunk.num_tokens for chunk in chunks]
        starts = np.array([chunk.seq.num_computed for chunk in chunks], dtype=np.int32)
        tables = [chunk.seq.block_table for chunk in chunks]
        num_blocks = np.array([len(table) for table in tables], dtype=np.int32)
        block_tables = np.zeros((len(chunks), num_blocks.max()), dtype=np.int32)
        filled = np.arange(block_tables.shape[1], dtype=np.int32) < num_blocks[:, None]
        block_tables[filled] = np.frombuffer(b"".join(tables), dtype=np.int32)  # row by row, as a mask is read
        ids = (seq.token_ids[seq.num_computed : seq.num_computed + count] for seq, count in chunks)
        return cls(
            input_ids=np.frombuffer(bytearray().join(ids), dtype=np.int64),  # writable, as torch wants it
            query_starts=np.cumsum([0, *num_tokens], dtype=np.int32),
            context_lens=starts + np.array(num_tokens, dtype=np.int32),
            block_tables=block_tables,
            num_needed=np.array([_num_needed(chunk) for chunk in chunks], dtype=np.int32),
            copies=np.array(copies, dtype=np.int32).reshape(-1, 2),
        )

    @property
    def num_singles(self) -> int:
        """How many sequences, the first ones, have one token in this step."""
        several = np.flatnonzero(np.diff(self.query_starts) > 1)
        return int(several[0]) if len(several) else len(self.context_lens)

    @property
    def needed_rows(self) -> NDArray[np.int64]:
        """(R,) ascending, of the T packed ones."""
        num_tokens = np.diff(self.query_starts)
        from_end = np.repeat(self.query_starts[1:], num_tokens) - np.arange(len(self.input_ids))
        return np.flatnonzero(from_end <= np.repeat(self.num_needed, num_tokens))

    def slots(self, block_size: int) -> NDArray[np.int64]:
        """(T,) where each token's key and value go: block * block_size + offset."""
        row = np.repeat(np.arange(len(self.context_lens)), np.diff(self.query_starts))
        first = self.context_lens - self.query_starts[1:]  # position of a sequence's token minus its packed index
        positions = np.arange(len(self.input_ids)) + first[row]
        blocks = self.block_tables[row, positions // block_size].astype(np.int64)
        slots: NDArray[np.int64] = blocks * block_size + positions % block_size
        return slots


def _num_needed(chunk: Chunk) -> int:
    """The inputs of a chunk from the sequence's first needed one on; asked before the chunk counts as computed."""
    seq, num_tokens = chunk
    return min(num_tokens, max(0, seq.num_computed + num_tokens - seq.first_needed))
