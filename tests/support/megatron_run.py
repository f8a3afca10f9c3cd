"""A run as BigScience's: DeepSpeed's own PipelineModule and BF16_Optimizer over modules called as Megatron calls them.

Under DeepSpeed's launcher, `--module tests.support.megatron_run FOLDER TP PP DP [LOAD_FOLDER]` trains a few steps and
saves a checkpoint; with LOAD_FOLDER it first loads one, with its optimizer's state. The modules compute no BLOOM: what
is tested is where numbers lie in the files. Source of names and groups: bigscience-workshop/Megatron-DeepSpeed,
megatron/model/gpt_model.py, megatron/optimizer/__init__.py; of UNIVERSAL: its tools/convert_checkpoint.
"""

import sys
from argparse import Namespace
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.pipe import LayerSpec, PipelineModule, TiedLayerSpec
from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology
from torch import Tensor, nn

HIDDEN, HEADS, LAYERS, VOCAB, STEPS = 8, 4, 2, 200, 2
PADDED = 256  # of 2 ranks: 128 rows each
UNIVERSAL = {  # what deepspeed.checkpoint.ds_to_universal has to know
    "universal_checkpoint_version": 0.2,
    "original_vocab_size": VOCAB,
    "padded_vocab_size": PADDED,
    "vocabulary_parameter_patterns": [r"tied_modules\.embed\.word_embeddings\.weight"],
    "pipeline_replicated_parameter_patterns": [r"tied_modules\.embed\.word_embeddings\.weight"],
    "parameter_to_average_patterns": [
        r"tied_modules\.embed\.word_embeddings\.norm\..*",
        r"\d+\.(input|post_attention)_layernorm\..*",
        r"\d+\.self_attention\.dense\.bias",
        r"\d+\.mlp\.dense_4h_to_h\.bias",
        r"\d+\.(weight|bias)",
    ],
    "parameter_with_row_parallelism_patterns": [
        r"\d+\.mlp\.dense_4h_to_h\.weight",
        r"\d+\.self_attention\.dense\.weight",
    ],
}


class Linear(nn.Linear):
    """Cut among `tp` ranks along `dim` of its weight."""

    def __init__(self, inputs: int, outputs: int, dim: int, tp: int) -> None:
        sizes = (inputs, outputs // tp) if dim == 0 else (inputs // tp, outputs)
        super().__init__(*sizes)


class Attention(nn.Module):
    def __init__(self, tp: int) -> None:
        super().__init__()
        self.query_key_value = Linear(HIDDEN, 3 * HIDDEN, 0, tp)
        self.dense = Linear(HIDDEN, HIDDEN, 1, tp)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(self.query_key_value(x)[..., : self.dense.in_features])


class Mlp(nn.Module):
    def __init__(self, tp: int) -> None:
        super().__init__()
        self.dense_h_to_4h = Linear(HIDDEN, 4 * HIDDEN, 0, tp)
        self.dense_4h_to_h = Linear(4 * HIDDEN, HIDDEN, 1, tp)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense_4h_to_h(self.dense_h_to_4h(x))


class Block(nn.Module):
    def __init__(self, tp: int) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(HIDDEN)
        self.self_attention = Attention(tp)
        self.post_attention_layernorm = nn.LayerNorm(HIDDEN)
        self.mlp = Mlp(tp)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attention(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Embedding(nn.Module):
    """The norm is the first stage's alone."""

    def __init__(self, tp: int, with_norm: bool) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(PADDED // tp, HIDDEN)
        if with_norm:
            self.word_embeddings.norm = nn.LayerNorm(HIDDEN)

    @property
    def tied(self) -> Tensor:
        return self.word_embeddings.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.word_embeddings.norm(self.word_embeddings(ids % len(self.tied)))


def _head(embedding: Embedding, x: Tensor) -> Tensor:
    return x @ embedding.tied.T


def _loss(logits: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten() % logits.shape[-1])


def _same(x: Tensor) -> Tensor:
    return x


class Stages(PipelineModule):  # type: ignore[misc]
    def __init__(self, topology: PipeModelDataParallelTopology, tp: int, pp: int) -> None:
        stage = topology.get_coord(dist.get_rank()).pipe
        layers: list[Any] = [
            _same,
            TiedLayerSpec("embed", Embedding, tp, stage == 0, tied_weight_attr="tied"),
            _same,
            *(LayerSpec(Block, tp) for _ in range(LAYERS)),
            _same,
            LayerSpec(nn.LayerNorm, HIDDEN),
            TiedLayerSpec("embed", Embedding, tp, stage == 0, forward_fn=_head, tied_weight_attr="tied"),
            _same,
        ]
        super().__init__(layers, topology=topology, loss_fn=_loss, partition_method="type:Block|Embedding")
        for part in self.modules():
            if isinstance(part, Linear | nn.Embedding):
                part.weight.model_parallel = part.weight.tensor_model_parallel = True


def groups(module: nn.Module) -> list[dict[str, Any]]:
    """As BigScience's _get_params_for_weight_decay_optimization."""
    decayed, kept = [], []
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                (kept if isinstance(part, nn.LayerNorm) or name == "bias" else decayed).append(parameter)
    half = len(decayed) // 2
    return [{"params": decayed[:half]}, {"params": decayed[half:]}, {"params": kept, "weight_decay": 0.0}]


def main(folder: str, tp: int, pp: int, dp: int, load_from: str = "") -> None:
    deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False}
    deepspeed.init_distributed("gloo")
    topology = PipeModelDataParallelTopology(num_pp=pp, num_mp=tp, num_dp=dp)
    coordinates = topology.get_coord(dist.get_rank())
    torch.manual_seed(1000 * coordinates.pipe + coordinates.model)
    module = Stages(topology, tp, pp)
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 2,
        "zero_optimization": {"stage": 1},
        "bf16": {"enabled": True},
        "data_types": {"grad_accum_dtype": "fp32"},
    }
    optimizer = torch.optim.AdamW(groups(module), lr=0.01, betas=(0.9, 0.95), weight_decay=0.1)
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config)
    if load_from:
        path, _ = engine.load_checkpoint(load_from, tag="global_step2")
        assert path, f"nothing was loaded from {load_from}"
        for group in engine.optimizer.param_groups:
            group["lr"] = 0.01  # as Megatron's schedule does
    generator = torch.Generator().manual_seed(coordinates.data)
    for _ in range(STEPS):
        ids = torch.randint(VOCAB, (4, 1, 5), generator=generator)
        engine.train_batch(iter([(ids[0], ids[1]), (ids[2], ids[3])]))
    told = {"iteration": engine.global_steps, "args": Namespace(seed=1), "universal_checkpoint_info": UNIVERSAL}
    engine.save_checkpoint(folder, tag=f"global_step{engine.global_steps}", client_state=told)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]), *sys.argv[5:])
