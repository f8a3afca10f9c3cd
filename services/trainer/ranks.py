"""Where this process stands among the ranks of its run."""

from dataclasses import dataclass
from typing import Any

from deepspeed.runtime.pipe.topology import PipelineParallelGrid, PipeModelDataParallelTopology

from bloom.config import BloomConfig
from bloom.parallel import Shard
from bloom.tensor_parallel import TensorParallel
from services.trainer.config import TrainConfig


@dataclass(frozen=True, slots=True)
class Ranks:
    """DeepSpeed's grid of stages, replicas and tensor-parallel ranks, and what of it the run asks."""

    grid: Any  # PipelineParallelGrid: also what DeepSpeed takes as its `mpu`
    tp_rank: int
    pp_rank: int
    dp_rank: int
    tensor_parallel: TensorParallel | None  # None: each rank has whole layers

    @classmethod
    def of(cls, config: TrainConfig) -> "Ranks":
        """Make the groups; collective over all ranks.

        Tensor-parallel ranks are neighbours, then come replicas, then stages: what talks most lies closest.
        """
        layout = config.layout
        grid = PipelineParallelGrid(PipeModelDataParallelTopology(num_pp=layout.pp, num_mp=layout.tp, num_dp=layout.dp))
        # Wherever tokens divide: the same bytes travel, and norms, dropout and the residual are computed once.
        sequence = config.micro_batch * config.sequence_length % layout.tp == 0
        return cls(
            grid=grid,
            tp_rank=grid.get_slice_parallel_rank(),
            pp_rank=grid.get_stage_id(),
            dp_rank=grid.get_data_parallel_rank(),
            tensor_parallel=TensorParallel(grid.get_slice_parallel_group(), sequence) if layout.tp > 1 else None,
        )

    def shard(self, config: BloomConfig) -> Shard:
        """This rank's part of the model."""
        return Shard.of(
            config,
            tp_rank=self.tp_rank,
            tp_size=self.grid.get_slice_parallel_world_size(),
            pp_rank=self.pp_rank,
            pp_size=self.grid.get_pipe_parallel_world_size(),
        )
