"""What is chosen from the settings, the checkpoint and the machine."""

from dataclasses import replace

import pytest
import torch

from bloom.checkpoint import Checkpoint, open_checkpoint
from bloom.quantize import quantize_checkpoint
from services.inference import resources
from services.inference.config import EngineConfig
from services.inference.resources import GIB, cache_bytes, choose_device, choose_dtype, choose_weights
from tests.support.bloom_models import make_hf_folder

CPU, CUDA = "cpu", "cuda"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    folder = tmp_path_factory.mktemp("checkpoints")
    for name in ("float32", "bfloat16", "float16"):
        make_hf_folder(folder / name, dtype=getattr(torch, name))
    quantize_checkpoint(folder / "bfloat16", folder / "int8")
    return {path.name: open_checkpoint(path) for path in folder.iterdir()}


@pytest.mark.skipif(torch.cuda.is_available(), reason="has CUDA")
def test_cuda_is_refused_where_there_is_none():
    assert choose_device(EngineConfig()) == CPU
    with pytest.raises(ValueError, match="finds no CUDA device; use 'auto' or 'cpu'"):
        choose_device(EngineConfig(device="cuda"))


@pytest.mark.parametrize(
    ("stored", "device", "has_bf16", "chosen"),
    [
        ("bfloat16", CPU, True, "bfloat16"),
        ("bfloat16", CPU, False, "float32"),
        ("int8", CPU, True, "bfloat16"),  # what its vectors are stored in
        ("int8", CUDA, False, "bfloat16"),
        ("float32", CPU, True, "float32"),
        ("float16", CPU, True, "float32"),
        ("float16", CUDA, False, "float16"),
    ],
)
def test_the_model_computes_as_stored_where_the_device_can(
    checkpoints, monkeypatch, stored: str, device: str, has_bf16: bool, chosen: str
):
    monkeypatch.setattr(resources, "_cpu_multiplies_bf16", lambda: has_bf16)
    config = EngineConfig(cpu_operators=False)
    assert choose_dtype(config, device, checkpoints[stored]) == chosen
    assert choose_dtype(replace(config, dtype="bfloat16"), device, checkpoints[stored]) == "bfloat16"


@pytest.mark.parametrize(
    ("stored", "chosen"),
    [("bfloat16", "bfloat16"), ("int8", "bfloat16"), ("float32", "float32"), ("float16", "float32")],
)
def test_the_cpu_operators_take_bf16_weights_on_any_processor(checkpoints, monkeypatch, stored: str, chosen: str):
    monkeypatch.setattr(resources, "_operators_load", lambda: True)
    monkeypatch.setattr(resources, "_cpu_multiplies_bf16", lambda: False)
    assert choose_dtype(EngineConfig(), CPU, checkpoints[stored]) == chosen


def test_fp16_is_refused_on_a_cpu(checkpoints):
    assert choose_dtype(EngineConfig(dtype="float16"), CUDA, checkpoints["float32"]) == "float16"
    with pytest.raises(ValueError, match="dtype='float16' needs CUDA; use 'bfloat16', 'float32' or 'auto'"):
        choose_dtype(EngineConfig(dtype="float16"), CPU, checkpoints["float32"])


@pytest.mark.parametrize(
    ("setting", "stored", "chosen"),
    [
        ("auto", "int8", "int8"),
        ("auto", "bfloat16", None),
        ("int8", "bfloat16", "int8"),
        ("int8_dynamic", "bfloat16", "int8_dynamic"),
        ("int8_dynamic", "int8", "int8_dynamic"),
    ],
)
def test_weights_stay_as_stored_unless_asked_to_be_quantized(checkpoints, setting: str, stored: str, chosen):
    assert choose_weights(EngineConfig(weights=setting), checkpoints[stored]) == chosen


def free_of(monkeypatch, num_bytes: int, config: EngineConfig, **situation: int) -> int:
    monkeypatch.setattr(resources, "free_host_bytes", lambda: num_bytes)
    return cache_bytes(config, CPU, **{"step_bytes": 0} | situation)


def test_the_cache_takes_a_fraction_of_what_the_largest_step_leaves_up_to_a_cap(monkeypatch):
    assert free_of(monkeypatch, 3 * GIB, EngineConfig(), step_bytes=2 * GIB) == GIB // 2
    assert free_of(monkeypatch, 3 * GIB, EngineConfig()) == GIB
    assert free_of(monkeypatch, 3 * GIB, EngineConfig(max_kv_bytes=7)) == 7
    assert free_of(monkeypatch, GIB, EngineConfig(), step_bytes=2 * GIB) == 0


def test_ranks_that_take_their_caches_from_the_same_memory_share_it(monkeypatch):
    config = EngineConfig(kv_memory_fraction=1.0, max_kv_bytes=100 * GIB)
    assert free_of(monkeypatch, 8 * GIB, config, step_bytes=GIB, num_sharing=2) == 3 * GIB
