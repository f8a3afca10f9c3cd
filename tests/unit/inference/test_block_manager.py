import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.inference.block_manager import BlockManager, OutOfBlocks
from services.inference.sampling import SamplingParams
from services.inference.sequence import Generation, Scoring, Sequence

GREEDY = SamplingParams(seed=0, temperature=0.0)


def generation(token_ids: list[int], request_id: int = 0) -> Generation:
    return Generation(request_id, token_ids, GREEDY, 1 << 30)


def compute_all(blocks: BlockManager, seq: Sequence) -> None:
    seq.num_computed = seq.num_inputs
    blocks.register(seq)


def test_a_released_sequence_returns_every_block():
    blocks = BlockManager(num_blocks=4, block_size=16)
    seq = generation(list(range(40)))  # needs 3 blocks
    blocks.allocate(seq)
    assert blocks.num_free == 1
    blocks.release(seq)
    assert blocks.num_free == 4
    assert len(seq.block_table) == 0


def test_allocating_more_than_is_free_raises_and_changes_nothing():
    blocks = BlockManager(num_blocks=2, block_size=4)
    seq = generation(list(range(9)))
    with pytest.raises(OutOfBlocks):
        blocks.allocate(seq)
    assert blocks.num_free == 2
    assert len(seq.block_table) == 0


def test_a_full_last_block_gets_a_neighbour_when_a_token_is_appended():
    blocks = BlockManager(num_blocks=2, block_size=4)
    seq = generation([1, 2, 3, 4])
    blocks.allocate(seq)
    compute_all(blocks, seq)
    blocks.append(seq)
    assert len(seq.block_table) == 2
    blocks.append(seq)  # there is room now
    assert len(seq.block_table) == 2


def test_appending_without_a_free_block_raises():
    blocks = BlockManager(num_blocks=1, block_size=4)
    seq = generation([1, 2, 3, 4])
    blocks.allocate(seq)
    compute_all(blocks, seq)
    with pytest.raises(OutOfBlocks):
        blocks.append(seq)


def test_an_equal_prefix_is_shared_and_counted_as_cached():
    blocks = BlockManager(num_blocks=8, block_size=4)
    first, second = generation([*range(8), 90]), generation([*range(8), 91])
    blocks.allocate(first)
    compute_all(blocks, first)
    blocks.allocate(second)
    assert second.num_cached == second.num_computed == 8
    assert second.block_table[:2] == first.block_table[:2]
    assert second.block_table[2] != first.block_table[2]


def test_the_last_token_is_always_computed_even_when_all_of_the_prompt_is_cached():
    blocks = BlockManager(num_blocks=8, block_size=4)
    first, second = generation(list(range(8))), generation(list(range(8)))
    blocks.allocate(first)
    compute_all(blocks, first)
    blocks.allocate(second)
    assert second.num_cached == 4


def test_a_scored_sequence_takes_nothing_from_the_cache_beyond_its_first_target():
    blocks = BlockManager(num_blocks=8, block_size=4)
    first, scored = generation(list(range(12))), Scoring(1, list(range(5)), list(range(5, 12)))
    blocks.allocate(first)
    compute_all(blocks, first)
    blocks.allocate(scored)
    assert scored.num_cached == 4  # logits of position 4 are needed: block 1 is computed again


def test_equal_blocks_after_different_prefixes_are_not_shared():
    blocks = BlockManager(num_blocks=8, block_size=4)
    first, second = generation([1, 1, 1, 1, 7, 7, 7, 7, 9]), generation([2, 2, 2, 2, 7, 7, 7, 7, 9])
    blocks.allocate(first)
    compute_all(blocks, first)
    blocks.allocate(second)
    assert second.num_cached == 0


def test_a_prefix_survives_its_sequence_until_its_blocks_are_needed():
    blocks = BlockManager(num_blocks=3, block_size=4)
    prompt = [*range(8), 9]
    first = generation(prompt)
    blocks.allocate(first)
    compute_all(blocks, first)
    blocks.release(first)
    again = generation(prompt)
    blocks.allocate(again)
    assert again.num_cached == 8
    blocks.release(again)
    other = generation([50] * 9)  # takes all three
    blocks.allocate(other)
    blocks.release(other)
    evicted = generation(prompt)
    blocks.allocate(evicted)
    assert evicted.num_cached == 0


def test_the_least_recently_released_prefix_is_evicted_first():
    blocks = BlockManager(num_blocks=4, block_size=4)
    old, new = generation([1, 1, 1, 1, 5]), generation([2, 2, 2, 2, 5])
    for seq in (old, new):
        blocks.allocate(seq)
        compute_all(blocks, seq)
    blocks.release(old)
    blocks.release(new)
    filler = generation([3] * 9)  # three blocks: the two without a prefix, then the oldest with one
    blocks.allocate(filler)
    blocks.release(filler)
    again = generation([2, 2, 2, 2, 6])
    blocks.allocate(again)
    assert again.num_cached == 4


def test_without_prefix_caching_nothing_is_shared():
    blocks = BlockManager(num_blocks=8, block_size=4, prefix_caching=False)
    first, second = generation(list(range(9))), generation(list(range(9)))
    blocks.allocate(first)
    compute_all(blocks, first)
    blocks.allocate(second)
    assert second.num_cached == 0


class Ownership(RuleBasedStateMachine):
    """Random life of sequences over few distinct tokens, so that prefixes meet often."""

    NUM_BLOCKS, BLOCK_SIZE = 12, 3

    def __init__(self) -> None:
        super().__init__()
        self.blocks = BlockManager(self.NUM_BLOCKS, self.BLOCK_SIZE)
        self.held: list[Sequence] = []
        self.content: dict[int, tuple[int, ...]] = {}  # block -> the prefix whose keys and values it would hold

    @rule(prompt=st.lists(st.integers(0, 1), min_size=1, max_size=14), scored=st.booleans())
    def allocate(self, prompt: list[int], scored: bool) -> None:
        seq = Scoring(0, prompt, [0, 1]) if scored else generation(prompt)
        try:
            self.blocks.allocate(seq)
        except OutOfBlocks:
            assert not seq.block_table
            return
        self.held.append(seq)
        for index in range(seq.num_computed // self.BLOCK_SIZE):
            prefix = tuple(seq.token_ids[: (index + 1) * self.BLOCK_SIZE])
            assert self.content[seq.block_table[index]] == prefix, "a cached block holds another prefix"

    @precondition(lambda self: self.held)
    @rule(data=st.data(), num_tokens=st.integers(1, 9))
    def compute(self, data: st.DataObject, num_tokens: int) -> None:
        seq = data.draw(st.sampled_from(self.held))
        num_tokens = min(num_tokens, seq.num_pending)
        if not num_tokens:
            return
        try:
            self.blocks.append(seq)
        except OutOfBlocks:
            return
        for position in range(seq.num_computed, seq.num_computed + num_tokens):
            block = seq.block_table[position // self.BLOCK_SIZE]
            owners = sum(block in other.block_table for other in self.held)
            assert owners == 1, "a shared block is written to"
            self.content[block] = tuple(seq.token_ids[: position + 1])
        seq.num_computed += num_tokens
        self.blocks.register(seq)
        if isinstance(seq, Generation) and seq.num_pending == 0:
            seq.append(data.draw(st.integers(0, 1)))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        seq = data.draw(st.sampled_from(self.held))
        self.held.remove(seq)
        self.blocks.release(seq)

    @invariant()
    def a_block_is_free_or_has_as_many_references_as_owners(self) -> None:
        owned = [block for seq in self.held for block in seq.block_table]
        free = list(self.blocks._free)
        assert self.blocks._references == [owned.count(block) for block in range(self.NUM_BLOCKS)]
        assert sorted({*owned, *free}) == list(range(self.NUM_BLOCKS))
        assert len(free) + len(set(owned)) == self.NUM_BLOCKS

    def teardown(self) -> None:
        for seq in self.held:
            self.blocks.release(seq)
        assert self.blocks.num_free == self.NUM_BLOCKS


TestOwnership = Ownership.TestCase
TestOwnership.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
