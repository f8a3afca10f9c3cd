"""The model of a run: this rank's part of it, ready to train."""

import dataclasses
import json
from functools import partial

import torch
from torch.utils.checkpoint import checkpoint

from bloom.config import BloomConfig
from bloom.model import BloomModel
from bloom.tensor_parallel import parallelize_for_training
from bloom.weights import load_config, load_model, new_model
from services.trainer.config import RunSpec
from services.trainer.failure import JobFailure
from services.trainer.folder import JobFolder
from services.trainer.lora import add_adapters
from services.trainer.ranks import Ranks

ROW_MULTIPLE = 128  # embedding rows of a new model, as Megatron pads them


def model_config(spec: RunSpec, folder: JobFolder, vocab_size: int) -> BloomConfig:
    """The model's shape, as it is to be exported. vocab_size: of the tokenizer. Raises JobFailure."""
    try:
        if spec.base_files:
            config = load_config(folder.base)
        elif spec.model_config.lstrip().startswith("{"):
            fields = json.loads(spec.model_config)
            if not fields.get("vocab_size"):
                fields["vocab_size"] = -(-vocab_size // ROW_MULTIPLE) * ROW_MULTIPLE
            config = BloomConfig.from_hf(fields)
        else:
            config = BloomConfig.preset(spec.model_config)
    except ValueError as error:
        raise JobFailure("BAD_MODEL", str(error), "config") from error
    if config.vocab_size < vocab_size:
        remedy = "choose another tokenizer, or set vocab_size to 0"
        raise JobFailure("BAD_MODEL", f"vocab_size={config.vocab_size} is below the tokenizer's {vocab_size}; {remedy}")
    return config


def build_model(spec: RunSpec, config: BloomConfig, folder: JobFolder, ranks: Ranks) -> BloomModel:
    """This rank's part of the model as training starts, in fp32. Raises JobFailure."""
    try:
        shard = ranks.shard(config)
    except ValueError as error:
        raise JobFailure("BAD_LAYOUT", f"layout '{spec.config.layout}': {error}", "layout") from error
    if spec.base_files:
        model = load_model(folder.base, dtype=torch.float32, shard=shard)
    else:
        model = new_model(config, spec.config.seed, shard)
    dropout = spec.config.dropout
    model.config = dataclasses.replace(config, hidden_dropout=dropout, attention_dropout=dropout)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    if ranks.tensor_parallel:
        parallelize_for_training(model, shard, ranks.tensor_parallel)
    if spec.config.lora:
        add_adapters(model, spec.config.lora, spec.config.seed, shard)
    for name, parameter in model.named_parameters():
        # What DeepSpeed goes by when it counts each parameter once in the gradient's norm.
        parameter.model_parallel = parameter.tensor_model_parallel = shard.is_cut(config, name)  # type: ignore[attr-defined]
    if spec.config.recompute:
        for block in model.h.children():
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    return model.train()
