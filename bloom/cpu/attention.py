"""Paged attention alone, by the operator that CpuModel's steps use: for tests and measurements.

T = tokens of a step, S = sequences, N = heads, D = head dimension
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .library import KINDS, Cache, Step, load_library


class PagedAttention:
    """Causal ALiBi attention of one layer over a cache of its own. dtype: "float32", "bfloat16" or "int8".

    tolerance: the share of the softmax's mass that chunks of 64 keys may be left out for; 0: none are. The bound is
    proved in src/attention.h. `chunks` and `chunks_read` count, over heads and rows, the chunks behind a query's own
    and those of them that were read.
    """

    def __init__(
        self, slopes: Tensor, head_dim: int, num_blocks: int, *, dtype: str, tolerance: float = 0.0, threads: int = 1
    ) -> None:
        self._c = load_library().c
        self._context = self._c.bloom_open(threads)
        self._slopes = slopes.float().contiguous()
        self.tolerance = tolerance
        self._cache = Cache(num_blocks=num_blocks, kind=KINDS[dtype], heads=len(slopes), head_dim=head_dim)
        self.data = torch.zeros(num_blocks, self._c.bloom_block_bytes(self._cache), dtype=torch.uint8)
        self.key_norms = torch.zeros(num_blocks, len(slopes))
        self._cache.data, self._cache.key_norms = self.data.data_ptr(), self.key_norms.data_ptr()
        self.chunks = self.chunks_read = 0

    def __call__(
        self,
        qkv: Tensor,
        query_starts: NDArray[np.int32],
        context_lens: NDArray[np.int32],
        block_tables: NDArray[np.int32],
    ) -> Tensor:
        """(T, N, D) fp32 from qkv (T, N, 3, D) fp32, q not scaled. The step's keys and values go to the cache first."""
        qkv, tables = qkv.contiguous(), np.ascontiguousarray(block_tables)
        out = torch.empty_like(qkv[:, :, 0])
        step = Step(
            tokens=len(qkv),
            sequences=len(context_lens),
            table_stride=tables.shape[1],
            query_starts=query_starts.ctypes.data,
            context_lens=context_lens.ctypes.data,
            block_tables=tables.ctypes.data,
        )
        arguments = self._cache, self._slopes.data_ptr(), self.tolerance, step, qkv.data_ptr(), out.data_ptr()
        self._c.bloom_attend(self._context, *arguments)
        self.chunks += step.chunks
        self.chunks_read += step.chunks_read
        return out

    def close(self) -> None:
        """Give back the threads."""
        if self._context:
            self._c.bloom_close(self._context)
            self._context = None
