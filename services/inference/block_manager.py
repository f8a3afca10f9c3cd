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
    still hold a prefix that later sequences can use; free blocks are reused least recently released first.
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

    @property
    def num_free(self) -> int:
        """Blocks that no sequence holds, with or without a cached prefix in them."""
        return len(self._free)

    def num_blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def allocate(self, seq: Sequence) -> None:
        """Give `seq` blocks for all its inputs; those found in the prefix cache count as computed.

        Raises OutOfBlocks, changing nothing, when too few are free.
        """
        cached = self._cached_prefix(seq)
        num_new = self.num_blocks_for(seq.num_inputs) - len(cached)
        num_revived = sum(self._references[block] == 0 for block in cached)
        if num_new > self.num_free - num_revived:
            raise OutOfBlocks
        for block in cached:
            if self._references[block] == 0:
                del self._free[block]
            self._references[block] += 1
        seq.block_table.extend(cached)
        seq.block_table.extend(self._take() for _ in range(num_new))
        seq.num_computed = len(cached) * self.block_size
        seq.num_registered = len(cached)
        if seq.num_cached is None:
            seq.num_cached = seq.num_computed

    def append(self, seq: Sequence) -> None:
        """Make sure that `seq` has room for one more token than is computed. Raises OutOfBlocks."""
        if seq.num_computed == len(seq.block_table) * self.block_size:
            if not self._free:
                raise OutOfBlocks
            seq.block_table.append(self._take())

    def register(self, seq: Sequence) -> None:
        """Let later sequences find the full blocks of `seq` that are computed by now."""
        if not self._prefix_caching:
            return
        num_full = seq.num_computed // self.block_size
        self._extend_digests(seq, num_full)
        for index in range(seq.num_registered, num_full):
            digest = seq.block_digests[index]
            if digest not in self._block_of:  # else a twin computed at the same time was first
                block = seq.block_table[index]
                self._block_of[digest] = block
                self._digest_of[block] = digest
        seq.num_registered = max(seq.num_registered, num_full)

    def release(self, seq: Sequence) -> None:
        """Take all blocks back from `seq`; nothing of it counts as computed any more."""
        for block in reversed(seq.block_table):  # the end of a prefix is reused before its beginning
            self._references[block] -= 1
            if self._references[block] == 0:
                self._free[block] = None
                if block not in self._digest_of:
                    self._free.move_to_end(block, last=False)
        del seq.block_table[:]
        seq.num_computed = seq.num_registered = 0

    def _take(self) -> int:
        block, _ = self._free.popitem(last=False)
        digest = self._digest_of.pop(block, None)
        if digest is not None:
            del self._block_of[digest]
        self._references[block] = 1
        return block

    def _cached_prefix(self, seq: Sequence) -> list[int]:
        """Blocks that hold the longest cached prefix; the first input whose logits are needed lies behind it."""
        if not self._prefix_caching or not self._block_of:
            return []
        num_usable = seq.first_logits // self.block_size
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
