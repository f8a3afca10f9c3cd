"""Decode steps captured in CUDA graphs: one launch instead of hundreds. Batches are padded to a captured size.

H = hidden size
"""

from collections.abc import Callable

import torch
from torch import Tensor

from services.inference.attention import StepTensors
from services.inference.step_batch import StepBatch

Compute = Callable[[Tensor, StepTensors], Tensor]


def captured_sizes(max_sequences: int) -> list[int]:
    """Powers of two, and the largest batch itself."""
    powers = [1 << i for i in range(max_sequences.bit_length()) if 1 << i < max_sequences]
    return [*powers, max_sequences]


class DecodeBuffers:
    """A decode step's inputs at addresses that stay: a graph reads where it was captured.

    hidden_size: H and dtype of what the stage before sends; None on the first stage, whose inputs are ids.
    """

    def __init__(
        self, max_sequences: int, max_blocks: int, *, hidden: tuple[int, torch.dtype] | None, device: torch.device
    ) -> None:
        shape = (max_sequences,) if hidden is None else (max_sequences, hidden[0])
        dtype = torch.int64 if hidden is None else hidden[1]
        self.sizes = captured_sizes(max_sequences)
        self._inputs = torch.zeros(shape, dtype=dtype, device=device)
        self._slots = torch.full((max_sequences,), -1, dtype=torch.int64, device=device)
        self._query_starts = torch.arange(max_sequences + 1, dtype=torch.int32, device=device)
        self._context_lens = torch.zeros(max_sequences, dtype=torch.int32, device=device)
        self._block_tables = torch.zeros(max_sequences, max_blocks, dtype=torch.int32, device=device)

    def takes(self, batch: StepBatch) -> bool:
        """Whether every sequence decodes one token, and none is too many."""
        return batch.num_singles == len(batch.context_lens) <= self.sizes[-1]

    def fill(self, batch: StepBatch, received: Tensor | None, block_size: int) -> int:
        """Put a batch in, padded to a captured size, which is returned. Padding is not stored and sees nothing."""
        num = len(batch.context_lens)
        size = next(size for size in self.sizes if size >= num)
        self._inputs[:num] = torch.from_numpy(batch.input_ids) if received is None else received
        self._slots[:num] = torch.from_numpy(batch.slots(block_size))
        self._slots[num:size] = -1
        self._context_lens[:num] = torch.from_numpy(batch.context_lens)
        self._context_lens[num:size] = 0
        self._block_tables[:num, : batch.block_tables.shape[1]] = torch.from_numpy(batch.block_tables)
        return size

    def views(self, size: int) -> tuple[Tensor, StepTensors]:
        """Inputs (size,) or (size, H), and the step, of the first `size` rows."""
        return self._inputs[:size], StepTensors(
            slots=self._slots[:size],
            query_starts=self._query_starts[: size + 1],
            context_lens=self._context_lens[:size],
            block_tables=self._block_tables[:size],
            num_singles=size,
        )


class DecodeGraphs:
    """One graph for each size, captured at once; they share the memory of their intermediates."""

    def __init__(self, compute: Compute, buffers: DecodeBuffers) -> None:
        self._buffers = buffers
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        pool = torch.cuda.graph_pool_handle()
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        for size in reversed(buffers.sizes):  # the largest first: the others find its memory large enough
            inputs, step = buffers.views(size)
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                compute(inputs, step)  # kernels are compiled and libraries set up before the capture
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            # thread_local: NCCL's watchdog thread may ask for its events meanwhile
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                hidden = compute(inputs, step)
            self._graphs[size] = graph, hidden

    def run(self, batch: StepBatch, received: Tensor | None, block_size: int) -> Tensor:
        """(S, H) of a batch that the buffers take."""
        graph, hidden = self._graphs[self._buffers.fill(batch, received, block_size)]
        graph.replay()
        return hidden[: len(batch.context_lens)].clone()  # the next replay writes over it
