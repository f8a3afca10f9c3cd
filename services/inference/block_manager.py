"""Who owns which block of the paged key-value cache.

Source: Kwon et al. 2023, PagedAttention; content-hashed prefix blocks as in vLLM's automatic prefix caching.
"""

import hashlib
from collections import OrderedDict

from services.inference.sequence import Sequence


class OutOfBlocks(Exception):
    """Not enough free blocks: the scheduler preempts a sequence or waits."""


class BlockManager:
    """Hands out `num_blocks` blocks of `block_size` tokens each.

    A block is held by the sequences in whose table it stands (its reference count) or it is free. A free block may
    still hold a prefix that later sequences can use; free blocks are reused least recently released first. Only full
    blocks are ever shared, so nobody writes to a block that another reads.
    """

    def __init__(self, num_blocks: int, block_size: int, *, prefix_caching: bool = True) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"num_blocks={num_blocks} and block_size={block_size} must be at least 1")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._prefix_caching = prefix_caching
        self._references = [0] * num_blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))  # next to be reused first
        self._digest_of: dict[int, bytes] = {}  # block -> content hash, and back
        self._block_of: dict[bytes, int] = {}
        self._computing: dict[bytes, Sequence] = {}  # content hash -> who will have computed such a block soon
        self._copies: list[tuple[int, int]] = []

    @property
    def num_free(self) -> int:
        """Blocks that no sequence holds, with or without a cached prefix in them."""
        return len(self._free)

    def num_blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def num_needed(self, seq: Sequence) -> int:
        """How many free blocks `allocate` would take, counting those that hold a prefix of `seq`."""
        shared = sum(self._references[block] > 0 for block in self._cached_prefix(seq))
        return self.num_blocks_for(seq.num_inputs) - shared

    def allocate(self, seq: Sequence) -> None:
        """Give `seq` blocks for all its inputs; those found in the prefix cache count as computed.

        Raises OutOfBlocks, changing nothing, when too few are free.
        """
        if self.num_needed(seq) > self.num_free:
            raise OutOfBlocks
        cached = self._cached_prefix(seq)
        for block in cached:
            if self._references[block] == 0:
                del self._free[block]
            self._references[block] += 1
        num_new = self.num_blocks_for(seq.num_inputs) - len(cached)
        seq.block_table.extend(cached)
        seq.block_table.extend(self._take() for _ in range(num_new))
        seq.num_computed = len(cached) * self.block_size
        seq.num_registered = len(cached)
        if seq.num_cached is None:
            seq.num_cached = seq.num_computed
        self._announce(seq)

    def append(self, seq: Sequence) -> None:
        """Make sure that `seq` has room for one more token than is computed. Raises OutOfBlocks."""
        if seq.num_computed == len(seq.block_table) * self.block_size:
            if not self._free:
                raise OutOfBlocks
            seq.block_table.append(self._take())

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """Let `child`, which has the same tokens, go on from what `parent` has computed.

        Full blocks are shared. Both write to the last, partly filled one in the next step, so `child` gets a copy of
        it: see `take_copies`. Raises OutOfBlocks, changing nothing, when none is free.
        """
        num_full, partly = divmod(parent.num_computed, self.block_size)
        if partly and not self._free:
            raise OutOfBlocks
        for block in parent.block_table[:num_full]:
            self._references[block] += 1
        child.block_table.extend(parent.block_table[:num_full])
        if partly:
            child.block_table.append(self._take())
            self._copies.append((parent.block_table[num_full], child.block_table[num_full]))
        child.num_computed = parent.num_computed
        child.num_registered = min(parent.num_registered, num_full)

    def take_copies(self) -> list[tuple[int, int]]:
        """(source, target) blocks to be copied before anything else in the next step, in any order.

        Either may be free again, or another's, by then: its content is written only after the copy. Forks are made
        between two steps, all before anything of that step is released, so no block is a source and a target.
        """
        copies, self._copies = self._copies, []
        return copies

    def register(self, seq: Sequence) -> None:
        """Let later sequences find the full blocks of `seq` that are computed by now."""
        num_full = seq.num_computed // self.block_size
        if not self._prefix_caching or num_full <= seq.num_registered:
            return
        self._extend_digests(seq, num_full)
        for index in range(seq.num_registered, num_full):
            digest = seq.block_digests[index]
            if digest not in self._block_of:  # else a twin computed at the same time was first
                block = seq.block_table[index]
                self._block_of[digest] = block
                self._digest_of[block] = digest
            if self._computing.get(digest) is seq:
                del self._computing[digest]
        seq.num_registered = num_full

    def computing_for(self, seq: Sequence) -> Sequence | None:
        """Who computes, at present, the first block that `seq` lacks: `seq` will find it in the cache soon."""
        if seq.awaited is not None and (owner := self._computing.get(seq.awaited)) is not None:
            return owner  # still: this is asked in every step
        index = len(self._cached_prefix(seq))
        if not self._computing or index >= seq.first_needed // self.block_size:
            return None
        self._extend_digests(seq, index + 1)
        seq.awaited = seq.block_digests[index]
        return self._computing.get(seq.awaited)

    def release(self, seq: Sequence) -> None:
        """Take all blocks back from `seq`; nothing of it counts as computed any more."""
        for block in reversed(seq.block_table):  # the end of a prefix is reused before its beginning
            self._references[block] -= 1
            if self._references[block] == 0:
                self._free[block] = None
                if block not in self._digest_of:
                    self._free.move_to_end(block, last=False)
        for digest in seq.block_digests[seq.num_registered :]:
            if self._computing.get(digest) is seq:
                del self._computing[digest]
        del seq.block_table[:]
        seq.num_computed = seq.num_registered = 0

    def _take(self) -> int:
        block, _ = self._free.popitem(last=False)
        digest = self._digest_of.pop(block, None)
        if digest is not None:
            del self._block_of[digest]
        self._references[block] = 1
        return block

    def _announce(self, seq: Sequence) -> None:
        """Let sequences that begin alike know that they need not compute what `seq` is about to."""
        if self._prefix_caching:
            num_full = seq.num_inputs // self.block_size
            self._extend_digests(seq, num_full)
            for digest in seq.block_digests[seq.num_registered : num_full]:
                self._computing.setdefault(digest, seq)

    def _cached_prefix(self, seq: Sequence) -> list[int]:
        """Blocks that hold the longest cached prefix; the first input whose hidden state is needed lies behind it."""
        if not self._prefix_caching or not self._block_of:
            return []
        num_usable = seq.first_needed // self.block_size
        blocks: list[int] = []
        for index in range(num_usable):
            self._extend_digests(seq, index + 1)
            block = self._block_of.get(seq.block_digests[index])
            if block is None:
                break
            blocks.append(block)
        return blocks

    def _extend_digests(self, seq: Sequence, num_full: int) -> None:
        """Hash blocks up to `num_full`: each over its parent's hash and its own ids, so equal means equal prefix."""
        digests = seq.block_digests
        for index in range(len(digests), num_full):
            start = index * self.block_size
            content = seq.token_ids[start : start + self.block_size].tobytes()
            parent = digests[-1] if digests else b""
            digests.append(hashlib.blake2b(parent + content, digest_size=16).digest())
