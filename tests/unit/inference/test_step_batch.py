"""A step's arrays against what they mean, token by token."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from services.inference.rank_channel import Forward
from services.inference.scheduler import Chunk
from services.inference.sequence import Embedding, Scoring
from services.inference.step_batch import StepBatch

BLOCK_SIZE = 4


@st.composite
def chunks(draw: st.DrawFn) -> list[Chunk]:
    """Single tokens first, as the scheduler gives them; blocks of any number, in any order."""
    drawn = []
    for number in range(draw(st.integers(1, 6))):
        length = draw(st.integers(1, 30))
        ids = draw(st.lists(st.integers(0, 250_000), min_size=length, max_size=length))
        num_context = draw(st.integers(0, length))
        if num_context:
            seq = Scoring(number, ids[:num_context], [*ids[num_context:], 7])
        else:
            seq = Embedding(number, ids, draw(st.sampled_from(["mean", "last"])), normalize=False)
        seq.num_computed = draw(st.integers(0, length - 1))
        num_blocks = -(-length // BLOCK_SIZE) + draw(st.integers(0, 2))
        seq.block_table.extend(draw(st.lists(st.integers(0, 10_000), min_size=num_blocks, max_size=num_blocks)))
        drawn.append(Chunk(seq, draw(st.integers(1, length - seq.num_computed))))
    return sorted(drawn, key=lambda chunk: chunk.num_tokens > 1)


@given(chunks())
def test_a_batch_says_of_every_token_its_id_its_sequence_and_its_slot(chunks: list[Chunk]):
    batch = StepBatch.from_chunks(chunks)
    slots = batch.slots(BLOCK_SIZE)
    index, needed = 0, []
    for row, (seq, num_tokens) in enumerate(chunks):
        assert batch.query_starts[row] == index
        assert batch.context_lens[row] == seq.num_computed + num_tokens
        assert batch.block_tables[row, : len(seq.block_table)].tolist() == seq.block_table.tolist()
        for position in range(seq.num_computed, seq.num_computed + num_tokens):
            assert batch.input_ids[index] == seq.token_ids[position]
            assert slots[index] == seq.block_table[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE
            if position >= seq.first_needed:
                needed.append(index)
            index += 1
    assert batch.query_starts[-1] == len(batch.input_ids) == len(slots) == index
    assert batch.needed_rows.tolist() == needed
    assert batch.num_needed.sum() == len(needed)
    assert batch.num_singles == sum(chunk.num_tokens == 1 for chunk in chunks)


@given(chunks(), st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), max_size=3))
def test_a_batch_reaches_other_ranks_unchanged(chunks: list[Chunk], copies: list[tuple[int, int]]):
    batch = StepBatch.from_chunks(chunks, copies)
    arrived = Forward.of(batch).batch()
    for name in StepBatch.__slots__:
        sent, received = getattr(batch, name), getattr(arrived, name)
        assert sent.dtype == received.dtype
        assert np.array_equal(sent, received)
    assert arrived.copies.tolist() == [list(pair) for pair in copies]


def test_the_formats_are_those_that_kernels_and_operators_take():
    seq = Embedding(0, [5, 6], "last", normalize=False)
    seq.block_table.append(3)
    batch = StepBatch.from_chunks([Chunk(seq, 2)])
    assert batch.input_ids.dtype == np.int64
    assert {getattr(batch, name).dtype for name in StepBatch.__slots__ if name != "input_ids"} == {np.dtype(np.int32)}
    assert batch.copies.shape == (0, 2)
