"""The executor of plain torch: formats of the cache, what it may take of the memory, padding to a captured size."""

from pathlib import Path

import numpy as np
import pytest
import torch

from bloom.parallel import Shard
from bloom.parallelize import Stage
from bloom.weights import load_model
from services.inference.cache_size import CacheSize
from services.inference.config import EngineConfig
from services.inference.decode_graphs import DecodeBuffers, captured_sizes
from services.inference.kv_cache import KVCache
from services.inference.memory import peak_bytes
from services.inference.step_batch import StepBatch
from services.inference.torch_executor import TorchExecutor
from tests.support.bloom_models import hf_logits, make_hf_folder, random_ids
from tests.support.inference_models import TOLERANCE, VOCAB, oracle

IDS = random_ids(40, VOCAB, seed=4)
CPU = torch.device("cpu")
MIB = 1 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hf_folder(tmp_path_factory.mktemp("model"), vocab=VOCAB)


def executor_of(folder: Path, *, num_blocks: int = 12, device: str = "cpu", **config: object) -> TorchExecutor:
    model = load_model(folder, device=device)
    settings = EngineConfig(dtype="float32", threads=1, **config)
    executor = TorchExecutor(Stage(model, Shard.of(model.config)), settings)
    executor.allocate(
        CacheSize(num_blocks=num_blocks, block_size=settings.block_size, max_sequence_tokens=num_blocks * 16)
    )
    return executor


def batch(ids: torch.Tensor, starts: list[int], lens: list[int], tables: list[list[int]]) -> StepBatch:
    return StepBatch(
        input_ids=ids.numpy(),
        query_starts=np.array(starts, dtype=np.int32),
        context_lens=np.array(lens, dtype=np.int32),
        block_tables=np.array(tables, dtype=np.int32),
        num_needed=np.diff(starts).astype(np.int32),
        copies=np.zeros((0, 2), dtype=np.int32),
    )


def error(executor: TorchExecutor, folder: Path) -> float:
    """Over a prompt in two parts and four decodes."""
    wanted, worst = hf_logits(oracle(folder), IDS), 0.0
    for start, end in ((0, 20), (20, 36), (36, 37), (37, 38), (38, 39), (39, 40)):
        hidden = executor.forward(batch(IDS[start:end], [0, end - start], [end], [[7, 2, 5]]))
        worst = max(worst, (executor.logits(hidden) - wanted[start:end]).abs().max().item())
    return worst


@pytest.mark.parametrize(
    ("kv_dtype", "tolerance"), [("auto", TOLERANCE), ("float32", TOLERANCE), ("bfloat16", 0.1), ("int8", 0.2)]
)
def test_logits_equal_transformers_up_to_the_rounding_of_the_cache(folder: Path, kv_dtype: str, tolerance: float):
    executor = executor_of(folder, kv_dtype=kv_dtype)
    assert (tolerance == TOLERANCE) == (error(executor, folder) < TOLERANCE)
    assert error(executor, folder) < tolerance


def test_fp8_is_refused_without_cuda(folder: Path):
    with pytest.raises(ValueError, match=r"kv_dtype='fp8' needs CUDA; use 'int8'"):
        executor_of(folder, kv_dtype="fp8")


@pytest.mark.parametrize("kv_dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("rank", [(0, 1, 0, 1), (1, 2, 0, 1), (0, 3, 1, 2)], ids=str)
def test_a_block_takes_the_bytes_that_sizing_counts(folder: Path, kv_dtype: torch.dtype, rank: tuple[int, ...]):
    config = load_model(folder).config
    shard = Shard.of(config, tp_rank=rank[0], tp_size=rank[1], pp_rank=rank[2], pp_size=rank[3])
    cache = KVCache(config, shard, num_blocks=10, block_size=16, dtype=kv_dtype, device=CPU)
    counted = KVCache.block_bytes(config, shard, block_size=16, dtype=kv_dtype)
    key_norms = 4 * len(range(config.n_head)[shard.heads(config)]) * shard.num_layers  # on CUDA alone
    assert sum(tensor.nbytes for tensor in cache._tensors) == 10 * (counted - key_norms)


@pytest.mark.parametrize("kv_dtype", [torch.float32, torch.int8])
def test_a_copied_block_has_all_that_the_first_one_has(folder: Path, kv_dtype: torch.dtype):
    config = load_model(folder).config
    cache = KVCache(config, Shard.of(config), num_blocks=3, block_size=16, dtype=kv_dtype, device=CPU)
    k, v = torch.randn(2, 16, config.n_head, config.head_dim)
    cache.store(1, torch.arange(16, 32), k, v)
    cache.copy_blocks(np.array([[1, 2]], dtype=np.int32))
    for tensor in cache._tensors:
        assert torch.equal(tensor[:, 1], tensor[:, 2])
        assert tensor[1, 2].any()
        assert not tensor[:, 0].any()


def test_the_peak_is_what_was_taken_and_not_what_was_there_before():
    held = torch.ones(64 * MIB, dtype=torch.uint8)
    peak = peak_bytes(CPU, lambda: torch.ones(96 * MIB, dtype=torch.uint8).max())
    assert 90 * MIB < peak < 140 * MIB
    assert peak_bytes(CPU, lambda: None) < 8 * MIB
    del held


def test_the_cache_has_no_room_that_the_largest_step_takes(folder: Path, monkeypatch: pytest.MonkeyPatch):
    executor = executor_of(folder, max_kv_bytes=1 << 40, kv_memory_fraction=1.0, max_batched_tokens=2048)
    step_bytes = peak_bytes(CPU, executor._largest_step)
    assert step_bytes > 4 * MIB  # 2,048 tokens
    free_bytes = step_bytes + 64 * MIB
    monkeypatch.setattr("services.inference.torch_executor.peak_bytes", lambda device, run: step_bytes)
    monkeypatch.setattr("services.inference.resources.free_host_bytes", lambda: free_bytes)
    block_bytes = KVCache.block_bytes(
        load_model(folder).config, executor._stage.shard, block_size=16, dtype=torch.float32
    )
    assert executor.max_blocks() == 64 * MIB // block_bytes
    assert executor.max_blocks(num_sharing=4) == max(0, free_bytes // 4 - step_bytes) // block_bytes


def test_captured_sizes_are_powers_of_two_and_the_largest_batch():
    assert captured_sizes(1) == [1]
    assert captured_sizes(8) == [1, 2, 4, 8]
    assert captured_sizes(33) == [1, 2, 4, 8, 16, 32, 33]


@pytest.mark.parametrize("batch_invariant", [False, True])
@pytest.mark.parametrize("num", [1, 2, 3, 5])
def test_a_decode_padded_to_a_captured_size_is_the_decode(folder: Path, num: int, batch_invariant: bool):
    """What a graph would replay, computed eagerly from its buffers; a larger batch has used them before."""
    executor = executor_of(folder, batch_invariant=batch_invariant)
    prompts = [random_ids(20 + i, VOCAB, seed=i) for i in range(num)]
    for i, prompt in enumerate(prompts):
        executor.forward(batch(prompt, [0, len(prompt)], [len(prompt)], [[2 * i, 2 * i + 1]]))
    step = batch(
        random_ids(num, VOCAB, seed=9),
        list(range(num + 1)),
        [21 + i for i in range(num)],
        [[2 * i, 2 * i + 1] for i in range(num)],
    )
    buffers = DecodeBuffers(6, 4, hidden=None, device=CPU)
    assert buffers.takes(step)
    buffers._slots.fill_(0)  # what the larger batch left: to be written over or not to be used
    buffers._context_lens.fill_(9)
    buffers._block_tables.fill_(11 if batch_invariant else 99)  # the kernel for prompts looks at a key there
    wanted = executor.forward(step)
    before = [tensor.clone() for tensor in executor._cache._tensors]
    size = buffers.fill(step, None, 16)
    assert size == next(size for size in (1, 2, 4, 6) if size >= num)
    with torch.inference_mode():
        hidden = executor._compute(*buffers.views(size))
    torch.testing.assert_close(hidden[:num], wanted)
    for tensor, untouched in zip(executor._cache._tensors, before, strict=True):
        torch.testing.assert_close(tensor, untouched)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kv_dtype", ["float32", "bfloat16", "int8", "fp8"])
def test_graphs_on_cuda_give_what_the_same_steps_give_without(folder: Path, kv_dtype: str):
    captured, eager = (executor_of(folder, device="cuda", kv_dtype=kv_dtype, max_running=6) for _ in range(2))
    eager._graphs = None
    assert captured._graphs is not None
    for num in (5, 1, 3, 6):  # every one but the last is padded
        tables = [[2 * i, 2 * i + 1] for i in range(num)]
        prompts = random_ids(20 * num, VOCAB, seed=num)
        steps = [
            batch(prompts, [20 * i for i in range(num + 1)], [20] * num, tables),
            batch(random_ids(num, VOCAB, seed=9), list(range(num + 1)), [21] * num, tables),
        ]
        hidden = [[executor.forward(step) for step in steps][-1] for executor in (captured, eager)]
        torch.testing.assert_close(*hidden)


def test_a_batch_with_a_prompt_or_too_many_sequences_is_not_captured():
    buffers = DecodeBuffers(2, 4, hidden=None, device=CPU)
    assert not buffers.takes(batch(random_ids(3, VOCAB), [0, 1, 3], [9, 9], [[0], [1]]))
    assert not buffers.takes(batch(random_ids(3, VOCAB), [0, 1, 2, 3], [9, 9, 9], [[0], [1], [2]]))


def test_a_later_stage_reads_what_it_received():
    buffers = DecodeBuffers(2, 4, hidden=(8, torch.float32), device=CPU)
    received = torch.randn(1, 8)
    assert buffers.fill(batch(random_ids(1, VOCAB), [0, 1], [9], [[0]]), received, 16) == 1
    assert torch.equal(buffers.views(1)[0], received)
