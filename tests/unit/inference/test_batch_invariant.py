"""Logits are bitwise the same alone and among 31 neighbours, whose prompts cut this one's into pieces."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import torch

from benchmarks.batch_invariance import logits_alone_and_among_neighbours
from bloom.cpu import CannotBuild, load_library
from services.inference.config import EngineConfig, WorkerConfig
from services.inference.executor import Executor, load_executor
from tests.support.bloom_models import assert_discriminates, hf_logits, make_hf_folder, random_ids
from tests.support.inference_models import VOCAB, oracle

FORMATS = [
    pytest.param({"dtype": "float32"}, id="float32"),
    pytest.param({"dtype": "bfloat16"}, id="bfloat16"),
    pytest.param({"dtype": "bfloat16", "weights": "int8"}, id="int8"),
    pytest.param({"dtype": "bfloat16", "weights": "int8_dynamic", "kv_dtype": "int8"}, id="int8_dynamic"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hf_folder(tmp_path_factory.mktemp("model"), n_head=4, hidden=128, vocab=VOCAB)


@pytest.fixture(scope="module")
def _operators() -> None:
    try:
        load_library()
    except CannotBuild as error:
        pytest.skip(f"no operators: {error}")


@contextmanager
def executor_of(folder: Path, **config: object) -> Iterator[Executor]:
    settings = {"device": "cpu", "batch_invariant": True, "threads": 1, "max_kv_bytes": 8 << 20} | config
    with closing(load_executor(folder, EngineConfig(**settings)).executor) as executor:
        yield executor


def test_the_model_can_tell_right_from_wrong(folder: Path):
    assert_discriminates(lambda ids: hf_logits(oracle(folder), ids), random_ids(64, VOCAB))


@pytest.mark.usefixtures("_operators")
@pytest.mark.parametrize("formats", FORMATS)
def test_by_the_operators_for_cpus(folder: Path, formats: dict[str, str]):
    with executor_of(folder, **formats) as executor:
        alone, among = logits_alone_and_among_neighbours(executor, vocab=VOCAB, prompt_tokens=60)
    assert len(set(alone.argmax(dim=-1).tolist())) > 10
    assert torch.equal(alone, among)


def test_not_by_plain_torch_so_the_comparison_can_fail(folder: Path):
    with executor_of(folder, cpu_operators=False, batch_invariant=False, dtype="float32") as executor:
        alone, among = logits_alone_and_among_neighbours(executor, vocab=VOCAB, prompt_tokens=60)
    torch.testing.assert_close(alone, among, rtol=0, atol=1e-4)
    assert not torch.equal(alone, among)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("formats", FORMATS)
def test_by_the_kernels_for_cuda(folder: Path, formats: dict[str, str]):
    with executor_of(folder, device="cuda", **formats) as executor:
        alone, among = logits_alone_and_among_neighbours(executor, vocab=VOCAB, prompt_tokens=60)
    assert torch.equal(alone, among)


@pytest.mark.parametrize("setting", [{"cpu_operators": False}, {"block_size": 32}], ids=str)
def test_plain_torch_on_a_cpu_cannot_promise_it_and_says_what_can(folder: Path, setting: dict[str, object]):
    with (
        pytest.raises(ValueError, match=r"batch_invariant=True, but .*: cpu_operators=True .*block_size=16"),
        executor_of(folder, **setting),
    ):
        pass


def test_the_environment_switches_it_on():
    assert WorkerConfig.from_env({"ANTHESIS_INFERENCE_BATCH_INVARIANT": "true"}).engine.batch_invariant
    assert not WorkerConfig.from_env({}).engine.batch_invariant
    with pytest.raises(ValueError, match="ANTHESIS_INFERENCE_BATCH_INVARIANT='yes' cannot be read"):
        WorkerConfig.from_env({"ANTHESIS_INFERENCE_BATCH_INVARIANT": "yes"})
