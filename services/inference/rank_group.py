"""What a rank sends to and gets from its neighbours within a step, over torch.distributed.

T = packed tokens, R = rows whose hidden states are needed, M = of these those with logits,
H = hidden size, V = rows of the head
Rank 0 is in the last stage, where hidden states and logits end: they are used in its process.
"""

import socket
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bloom.config import BloomConfig
from bloom.parallel import Shard
from services.inference.config import EngineConfig
from services.inference.share import Share
from services.inference.step_batch import StepBatch

_COLLECTIVE_TIMEOUT = timedelta(minutes=10)  # between ranks that live: an end is noticed by rank_channel.watch


class RankGroup:
    """Rank `rank` of tensor_parallel * pipeline_parallel. Raises ValueError for a split that the model does not allow.

    Which ranks share layers: those with the same rank // tensor_parallel. The stage before has the next higher ranks.
    """

    def __init__(self, model: BloomConfig, config: EngineConfig, rank: int) -> None:
        # What torch does beside the CPU operators is small, and its threads spin for milliseconds after each of it, on
        # the processors that the operators' threads want. A share that torch computes takes as many as it is given.
        torch.set_num_threads(1)
        self._hidden_size = model.hidden_size
        self._model = model
        self._rank = rank
        self._tp_size = config.tensor_parallel
        self._batch_invariant = config.batch_invariant
        self._num_ranks = config.tensor_parallel * config.pipeline_parallel
        self.shard = Shard.of(
            model,
            tp_rank=rank % config.tensor_parallel,
            tp_size=config.tensor_parallel,
            pp_rank=config.pipeline_parallel - 1 - rank // config.tensor_parallel,
            pp_size=config.pipeline_parallel,
        )

    def connect(self, host: str, port: int, device: str, *, listener: socket.socket | None = None) -> None:
        """Meet the other ranks: NCCL on CUDA, gloo elsewhere. All ranks at once; rank 0 has the listener there."""
        cuda = device == "cuda"
        store = dist.TCPStore(  # type: ignore[attr-defined]
            host,
            port,
            self._num_ranks,
            is_master=listener is not None,
            wait_for_workers=False,
            master_listen_fd=None if listener is None else listener.detach(),
        )
        dist.init_process_group(
            "nccl" if cuda else "gloo",
            store=store,
            rank=self._rank,
            world_size=self._num_ranks,
            timeout=_COLLECTIVE_TIMEOUT,
            device_id=torch.device("cuda", torch.cuda.current_device()) if cuda else None,
        )
        for first in range(0, self._num_ranks, self._tp_size):  # every rank makes every group, in the same order
            stage = dist.new_group(list(range(first, first + self._tp_size)))
            if first <= self._rank < first + self._tp_size:
                self._stage = stage

    def close(self) -> None:
        dist.destroy_process_group()

    def all_reduce(self, x: Any) -> None:
        """Sum an array or a tensor over the ranks that share this stage's layers, in place.

        Libraries add piece after piece, each in an order of its own; where a piece begins depends on the batch.
        """
        x = torch.as_tensor(x)  # of an array: the same memory
        if not self._batch_invariant:
            dist.all_reduce(x, group=self._stage)
            return
        parts = [torch.empty_like(x) for _ in range(self._tp_size)]
        dist.all_gather(parts, x, group=self._stage)
        x.copy_(parts[0])
        for part in parts[1:]:
            x += part

    def empty(self, share: Share, num_rows: int) -> Tensor:
        """To receive hidden states in."""
        dtype = getattr(torch, share.hidden_dtype)
        return torch.empty(num_rows, self._hidden_size, dtype=dtype, device=share.device)

    def forward(self, share: Share, batch: StepBatch) -> Any:
        """This rank's part of a step: (T, H), of the last stage (R, H) after ln_f."""
        received = None
        if not self.shard.is_first():
            received = self.empty(share, len(batch.input_ids))
            dist.recv(received, self._rank + self._tp_size)
        hidden = share.forward(batch, received)
        if not self.shard.is_last(self._model):
            dist.send(torch.as_tensor(hidden).contiguous(), self._rank - self._tp_size)
        return hidden

    def logits(self, share: Share, hidden: Any) -> Any:
        """(M, V) fp32 on rank 0, from its hidden (M, H); the other ranks of its stage give a tensor to receive it in.

        The vocabulary's padding has no logits.
        """
        if self._tp_size == 1:
            return share.logits(hidden)
        hidden = torch.as_tensor(hidden).contiguous()
        dist.broadcast(hidden, 0, group=self._stage)
        part = torch.as_tensor(share.logits(hidden)).contiguous()  # (M, rows of this rank)
        parts = [torch.empty_like(part) for _ in range(self._tp_size)] if self._rank == 0 else None
        dist.gather(part, parts, 0, group=self._stage)
        return None if parts is None else torch.cat(parts, dim=1)[:, : self._model.vocab_size]
