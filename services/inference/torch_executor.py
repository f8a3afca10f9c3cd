"""The executor that torch gives: BloomModel with paged attention, by kernels on CUDA, in plain torch elsewhere.

T = packed tokens, R = rows whose hidden states are needed, M = of these those with logits,
H = hidden size, V = rows of this rank's head
"""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bloom.batch_invariant import to_batch_invariant
from bloom.int8 import Int8Weights
from bloom.parallel import Shard
from bloom.parallelize import AllReduce, Stage
from bloom.weights import load_model
from services.inference.attention import PagedAttention, StepTensors
from services.inference.cache_size import CacheSize, choose_kv_dtype, max_sequence_tokens
from services.inference.config import EngineConfig
from services.inference.decode_graphs import DecodeBuffers, DecodeGraphs
from services.inference.kv_cache import FORMATS, KVCache
from services.inference.memory import peak_bytes
from services.inference.resources import cache_bytes
from services.inference.step_batch import StepBatch

_LOGITS_COPIES = 4  # fp32 (rows, vocabulary) that sampling and gathering hold at once


def load_torch_share(
    model_dir: Path,
    config: EngineConfig,
    shard: Shard,
    all_reduce: AllReduce | None,
    *,
    device: str,
    dtype: str,
    int8: Int8Weights | None,
) -> "TorchExecutor":
    """Read this rank's part of a Hugging Face BLOOM folder. Raises ValueError, naming file, tensor or setting."""
    torch.set_num_threads(config.threads)
    bloom = load_model(model_dir, dtype=getattr(torch, dtype), device=device, shard=shard, weights=int8)
    if config.batch_invariant:
        to_batch_invariant(bloom)
    return TorchExecutor(Stage(bloom, shard, all_reduce), config)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class TorchExecutor:
    """An Executor where its shard is the whole model, else one rank's Share. `allocate` comes before any step."""

    def __init__(self, stage: Stage, config: EngineConfig) -> None:
        self.hidden_dtype, self.device = _name(stage.dtype), stage.device.type
        self._device = stage.device
        self._stage = stage
        self._config = config
        self._model_config = stage.model.config
        self._kv_dtype = FORMATS[choose_kv_dtype(config, self.device, self.hidden_dtype)]
        slopes = stage.shard.slopes(self._model_config)
        self._slopes = torch.tensor(slopes, dtype=torch.float32, device=self._device)
        self._graphs: DecodeGraphs | None = None

    def max_blocks(self, *, num_sharing: int = 1) -> int:
        """Blocks there is room for beside the largest step, which is run to see what it takes.

        num_sharing: ranks that ask the same of the same memory at this moment, this one included.
        """
        step_bytes = peak_bytes(self._device, self._largest_step)
        free_bytes = cache_bytes(self._config, self.device, step_bytes=step_bytes, num_sharing=num_sharing)
        return free_bytes // KVCache.block_bytes(
            self._model_config, self._stage.shard, block_size=self._config.block_size, dtype=self._kv_dtype
        )

    @torch.inference_mode()
    def allocate(self, size: CacheSize) -> None:
        self._cache = self._new_cache(self._stage.shard, size.num_blocks)
        if self.device == "cuda":
            self._buffers = DecodeBuffers(
                self._config.max_running,
                -(-size.max_sequence_tokens // size.block_size),
                hidden=None if self._stage.shard.is_first() else (self._model_config.hidden_size, self._stage.dtype),
                device=self._device,
            )
            self._graphs = DecodeGraphs(self._compute, self._buffers)

    @torch.inference_mode()
    def forward(self, batch: StepBatch, received: Tensor | None = None) -> Tensor:
        """(T, H), on the last stage (R, H). `received`: (T, H) of the stage before; None for the first."""
        self._cache.copy_blocks(batch.copies)
        block_size = self._config.block_size
        if self._graphs is not None and self._buffers.takes(batch):
            hidden = self._graphs.run(batch, received, block_size)
        else:
            inputs = torch.from_numpy(batch.input_ids).to(self._device) if received is None else received
            hidden = self._compute(inputs, StepTensors.of(batch, block_size, self._device))
        rows = batch.needed_rows
        if not self._stage.shard.is_last(self._model_config) or len(rows) == len(hidden):
            return hidden
        return hidden[torch.from_numpy(rows).to(self._device)]

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """(M, V) fp32."""
        return self._stage.logits(hidden).float()

    def close(self) -> None:
        pass

    def _compute(self, inputs: Tensor, step: StepTensors) -> Tensor:
        config = self._config
        attention = PagedAttention(
            self._cache,
            self._slopes,
            step,
            alibi_tolerance=config.alibi_tolerance,
            batch_invariant=config.batch_invariant,
        )
        return self._stage.forward(inputs, attention)

    def _new_cache(self, shard: Shard, num_blocks: int) -> KVCache:
        return KVCache(
            self._model_config,
            shard,
            num_blocks=num_blocks,
            block_size=self._config.block_size,
            dtype=self._kv_dtype,
            device=self._device,
        )

    @torch.inference_mode()
    def _largest_step(self) -> None:
        """All sequences at their longest, one of them with a chunk of all tokens that are left, and the logits of all.

        One layer is run, as the next uses its memory again; and all blocks are one, as what lies in them is no matter.
        """
        config, model, stage = self._config, self._model_config, copy.copy(self._stage)
        stage.blocks = stage.blocks[:1]
        num_tokens = config.max_batched_tokens
        longest = max(max_sequence_tokens(model, config), num_tokens)
        batch = StepBatch(
            input_ids=np.zeros(num_tokens, dtype=np.int64),
            query_starts=np.array([*range(config.max_running), num_tokens], dtype=np.int32),
            context_lens=np.full(config.max_running, longest, dtype=np.int32),
            block_tables=np.zeros((config.max_running, -(-longest // config.block_size)), np.int32),
            num_needed=np.zeros(config.max_running, dtype=np.int32),
            copies=np.zeros((0, 2), dtype=np.int32),
        )
        cache = self._new_cache(replace(stage.shard, last_layer=stage.shard.first_layer), num_blocks=1)
        step = StepTensors.of(batch, config.block_size, self._device)
        inputs = torch.zeros(num_tokens, model.hidden_size, dtype=stage.dtype, device=self._device)
        if stage.shard.is_first():
            inputs = torch.from_numpy(batch.input_ids).to(self._device)
        hidden = stage.forward(inputs, PagedAttention(cache, self._slopes, step))
        if stage.shard.is_last(model):
            rows = max(config.max_running, config.logits_rows)
            logits = self.logits(hidden[:rows])
            torch.zeros(_LOGITS_COPIES, len(logits), model.vocab_size, device=self._device).add_(1)
