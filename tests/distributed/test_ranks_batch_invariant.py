"""Tensor-parallel ranks add up in one order: logits are bitwise the same alone and among 31 neighbours."""

from contextlib import closing
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.batch_invariance import logits_alone_and_among_neighbours
from bloom.cpu import CannotBuild, load_library
from services.inference.config import EngineConfig
from services.inference.executor import load_executor
from tests.support.bloom_models import make_hf_folder
from tests.support.inference_models import VOCAB


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        load_library()
    except CannotBuild as error:
        pytest.skip(f"no operators: {error}")
    return make_hf_folder(tmp_path_factory.mktemp("model"), n_head=4, hidden=64, vocab=VOCAB)


def logits_of_ranks(folder: Path, **settings: object) -> tuple[Tensor, Tensor]:
    config = EngineConfig(device="cpu", dtype="float32", threads=1, max_kv_bytes=4 << 20, **settings)
    with closing(load_executor(folder, config).executor) as executor:
        return logits_alone_and_among_neighbours(executor, vocab=VOCAB, prompt_tokens=40)


@pytest.mark.parametrize("layout", [{"tensor_parallel": 4}, {"tensor_parallel": 2, "pipeline_parallel": 2}], ids=str)
def test_alone_and_among_neighbours(folder: Path, layout: dict[str, int]):
    alone, among = logits_of_ranks(folder, batch_invariant=True, **layout)
    assert torch.equal(alone, among)


def test_the_order_of_the_library_depends_on_the_batch(folder: Path):
    alone, among = logits_of_ranks(folder, batch_invariant=False, tensor_parallel=4)
    torch.testing.assert_close(alone, among, rtol=0, atol=1e-4)
    assert not torch.equal(alone, among)
