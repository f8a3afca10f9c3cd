"""Large checkpoints in no time, for tests of memory: their numbers mean nothing."""

from pathlib import Path

import torch

from bloom.config import BloomConfig
from bloom.tensor_writer import write_checkpoint
from bloom.tensors import expected_tensors


def write_random_folder(folder: Path, config: BloomConfig) -> Path:
    """A Hugging Face BLOOM folder in bf16."""
    entries = {f"transformer.{name}": ("BF16", shape) for name, shape in expected_tensors(config).items()}
    generator = torch.Generator().manual_seed(0)
    pieces = (torch.rand(shape, generator=generator).to(torch.bfloat16) for _, shape in entries.values())
    write_checkpoint(folder, config.to_hf() | {"torch_dtype": "bfloat16"}, entries, pieces)
    return folder
