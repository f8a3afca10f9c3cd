"""CpuModel against transformers, and what its results may not depend on."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bloom.cpu import CannotBuild, CpuModel, load_library
from bloom.cpu.compile import supported_levels
from bloom.parallel import Shard
from bloom.tensor_reader import TensorReader
from tests.support.bloom_models import hf_logits, make_hf_folder, make_hf_model, random_ids

try:
    load_library()
except CannotBuild as error:
    pytest.skip(f"no operators: {error}", allow_module_level=True)

VOCAB, LENGTH, BLOCKS = 211, 150, 24
FORMATS = [("float32", "float32"), ("bfloat16", "bfloat16"), ("int8", "bfloat16"), ("int8_dynamic", "int8")]
SHAPES = {"6 heads of 8": (6, 48), "4 heads of 64": (4, 256), "2 heads of 80": (2, 160), "3 heads of 20": (3, 60)}


@pytest.fixture(scope="module", params=SHAPES.values(), ids=SHAPES.keys())
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    n_head, hidden = request.param
    return make_hf_folder(tmp_path_factory.mktemp("model"), n_head=n_head, hidden=hidden, vocab=VOCAB)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hf_folder(tmp_path_factory.mktemp("small"), vocab=VOCAB)


def open_model(folder: Path, weights: str = "float32", cache: str = "float32", **options: object) -> CpuModel:
    with TensorReader(folder) as reader:
        model = CpuModel(reader, weights=weights, **options)
    model.allocate_cache(BLOCKS * 40, dtype=cache)
    return model


def table(sequence: int) -> np.ndarray:
    """Blocks of a sequence, out of order."""
    order = np.random.default_rng(7).permutation(BLOCKS * 40).astype(np.int32)
    return order[sequence * BLOCKS : (sequence + 1) * BLOCKS]


def run(model: CpuModel, steps: list[dict[int, tuple[Tensor, int]]]) -> dict[int, Tensor]:
    """Logits of every sequence over steps {sequence: (ids, keys in the cache before)}."""
    logits: dict[int, list[Tensor]] = {}
    for step in steps:
        ids = torch.cat([ids for ids, _ in step.values()]).numpy()
        starts = np.cumsum([0, *(len(ids) for ids, _ in step.values())], dtype=np.int32)
        lens = np.array([before + len(ids) for ids, before in step.values()], dtype=np.int32)
        hidden = model.forward(ids, starts, lens, np.stack([table(seq) for seq in step]))
        rows = torch.from_numpy(model.logits(hidden).copy())
        for seq, part in zip(step, rows.split(np.diff(starts).tolist()), strict=True):
            logits.setdefault(seq, []).append(part)
    return {seq: torch.cat(parts) for seq, parts in logits.items()}


def in_chunks(ids: Tensor, *sizes: int, sequence: int = 0) -> list[dict[int, tuple[Tensor, int]]]:
    ends = np.cumsum(sizes).tolist()
    assert ends[-1] == len(ids)
    return [{sequence: (ids[end - size : end], end - size)} for end, size in zip(ends, sizes, strict=True)]


def oracle(folder: Path) -> Tensor:
    from transformers import BloomForCausalLM

    return hf_logits(BloomForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), random_ids(LENGTH, VOCAB))


@pytest.mark.parametrize("level", supported_levels())
def test_logits_in_fp32_are_those_of_transformers(folder: Path, level: str):
    model = open_model(folder, level=level, threads=2)
    got = run(model, in_chunks(random_ids(LENGTH, VOCAB), 100, 1, 1, 37, 11))[0]
    torch.testing.assert_close(got, oracle(folder), atol=1e-4, rtol=0)


@pytest.mark.parametrize("level", supported_levels())
@pytest.mark.parametrize(("weights", "cache", "bound"), [(*FORMATS[1], 2e-4), (*FORMATS[2], 2e-3), (*FORMATS[3], 4e-3)])
def test_narrow_formats_are_near(folder: Path, level: str, weights: str, cache: str, bound: float):
    model = open_model(folder, weights, cache, level=level, threads=2)
    got = run(model, in_chunks(random_ids(LENGTH, VOCAB), 100, 50))[0].log_softmax(dim=-1)
    wanted = oracle(folder).log_softmax(dim=-1)
    assert (wanted.exp() * (wanted - got)).sum(dim=-1).mean() < bound  # Kullback-Leibler, nats per token


@pytest.mark.parametrize("planted", ["slopes", "mask", "norm", "bias"])
def test_a_planted_error_is_noticed(small: Path, planted: str):
    model = open_model(small)
    if planted == "slopes":
        slopes = torch.tensor(Shard.of(model.config).slopes(model.config)).flip(0).contiguous()
        model._model.slopes = slopes.data_ptr()
    elif planted == "norm":
        model._model.epsilon = 1e-2
    elif planted == "bias":
        model._model.layer[1].dense.bias = None
    ids = random_ids(LENGTH, VOCAB)
    steps = in_chunks(ids, 100, 50)
    if planted == "mask":  # the last token's key is one place too far
        steps = [{0: (ids[:100], 0)}, {0: (ids[100:], 101)}]
    difference = (run(model, steps)[0] - oracle(small)).abs().max()
    assert difference > 1e-3


@pytest.mark.parametrize("level", supported_levels())
@pytest.mark.parametrize(("weights", "cache"), FORMATS)
def test_logits_are_bitwise_the_same_alone_and_among_31_neighbours(small: Path, level: str, weights: str, cache: str):
    model = open_model(small, weights, cache, level=level, threads=2)
    ids = random_ids(LENGTH, VOCAB)
    alone = run(model, [*in_chunks(ids[:100], 100), *({0: (ids[i : i + 1], i)} for i in range(100, LENGTH))])[0]
    neighbours = {seq: random_ids(LENGTH, VOCAB, seed=seq) for seq in range(1, 32)}
    steps = [{0: (ids[:100], 0)} | {seq: (other[: 3 * seq], 0) for seq, other in neighbours.items()}]
    for i in range(100, LENGTH):
        others = {seq: (other, 3 * seq + i - 100) for seq, other in neighbours.items() if 3 * seq + i - 100 < LENGTH}
        step = {seq: (other[before : before + 1], before) for seq, (other, before) in others.items()}
        steps.append({0: (ids[i : i + 1], i)} | step)
    assert torch.equal(run(model, steps)[0], alone)


@pytest.mark.parametrize(("weights", "cache"), FORMATS)
def test_logits_are_bitwise_the_same_however_a_prompt_is_cut(small: Path, weights: str, cache: str):
    model = open_model(small, weights, cache, threads=2)
    ids = random_ids(LENGTH, VOCAB)
    whole = run(model, in_chunks(ids, LENGTH))[0]
    assert torch.equal(run(model, in_chunks(ids, 1, 15, 16, 17, 40, 1, 60))[0], whole)


@pytest.mark.parametrize("tokens", [1, 7, 64, 500])
def test_a_step_is_bitwise_the_same_computed_in_pieces(small: Path, tokens: int, monkeypatch: pytest.MonkeyPatch):
    model = open_model(small, threads=2)
    sequences = {seq: random_ids(LENGTH, VOCAB, seed=seq) for seq in range(5)}
    steps = [
        {seq: (ids[: 10 + 20 * seq], 0) for seq, ids in sequences.items()},
        {seq: (ids[10 + 20 * seq :], 10 + 20 * seq) for seq, ids in sequences.items()},
    ]
    whole = run(model, steps)
    monkeypatch.setattr("bloom.cpu.model._PIECE_TOKENS", tokens)
    cut = run(model, steps)
    assert all(torch.equal(cut[seq], whole[seq]) for seq in sequences)


@pytest.mark.parametrize("tokens", [9, 64, 512])
@pytest.mark.parametrize(("weights", "cache"), FORMATS)
def test_hidden_states_that_are_not_needed_are_left_out_and_change_nothing(
    small: Path, weights: str, cache: str, tokens: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("bloom.cpu.model._PIECE_TOKENS", tokens)
    ids = torch.cat([random_ids(LENGTH, VOCAB, seed=seq)[:length] for seq, length in enumerate((1, 30, 70, 12))])
    starts = np.array([0, 1, 31, 101, 113], dtype=np.int32)
    tables = np.stack([table(seq) for seq in range(4)])
    needed = np.array([1, 1, 40, 0], dtype=np.int32)
    rows = np.concatenate([np.arange(end - count, end) for end, count in zip(starts[1:], needed, strict=True)])
    followers, one_each = np.array([3, 1, 4, 1]), np.arange(5, dtype=np.int32)

    def states(num_needed: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        model = open_model(small, weights, cache, threads=2)
        first = model.forward(ids.numpy(), starts, np.diff(starts), tables, num_needed=num_needed).copy()
        return first, model.forward(followers, one_each, np.diff(starts) + 1, tables)

    (all_rows, next_rows), (needed_rows, next_of_needed) = states(None), states(needed)
    assert np.array_equal(needed_rows, all_rows[rows])
    assert np.array_equal(next_of_needed, next_rows)  # their keys and values are in the cache all the same


def test_a_step_of_which_nothing_is_needed_gives_no_rows(small: Path):
    model, ids = open_model(small, threads=2), random_ids(20, VOCAB).numpy()
    starts, lens = np.array([0, 20], dtype=np.int32), np.array([20], dtype=np.int32)
    hidden = model.forward(ids, starts, lens, table(0)[None], num_needed=np.zeros(1, dtype=np.int32))
    assert hidden.shape == (0, model.config.hidden_size)


@pytest.mark.parametrize(("weights", "cache"), FORMATS)
def test_logits_are_bitwise_the_same_on_any_number_of_threads(small: Path, weights: str, cache: str):
    steps = in_chunks(random_ids(LENGTH, VOCAB), 149, 1)
    one, three = (run(open_model(small, weights, cache, threads=threads), steps)[0] for threads in (1, 3))
    assert torch.equal(one, three)


@pytest.mark.parametrize("cache", ["float32", "bfloat16", "int8"])
def test_what_lay_in_the_cache_before_does_not_matter(small: Path, cache: str):
    import ctypes

    steps = in_chunks(random_ids(LENGTH, VOCAB), 130, 20)
    clean = run(open_model(small, cache=cache), steps)[0]
    poisoned = open_model(small, cache=cache)
    address, size = poisoned._mapped[-1]
    ctypes.memset(address, 0xFF, size)  # NaN in fp32 and bf16
    poisoned._key_norms[:] = np.nan
    assert torch.equal(run(poisoned, steps)[0], clean)


def test_a_copied_block_is_a_block_of_its_own(small: Path):
    model = open_model(small)
    ids, other = random_ids(40, VOCAB), random_ids(40, VOCAB, seed=1)
    expected = run(model, in_chunks(ids, 36, 4))[0][-4:]
    run(model, [{0: (ids[:36], 0)}])
    model.copy_blocks(np.stack([table(0)[:3], table(1)[:3]], axis=1))
    run(model, [{1: (other[:4], 36)}])  # goes on in its own copies
    assert torch.equal(run(model, [{0: (ids[36:], 36)}])[0], expected)
    run(model, [{0: (other[:4], 36)}])
    assert torch.equal(run(model, [{1: (ids[36:], 36)}])[1], expected)


@pytest.mark.parametrize(("tp_size", "pp_size"), [(2, 1), (3, 1), (1, 2), (2, 2)])
def test_shares_of_a_model_give_what_the_whole_gives(tmp_path: Path, tp_size: int, pp_size: int):
    folder = make_hf_folder(tmp_path / "model", n_head=6, hidden=48, n_layer=3, vocab=VOCAB)
    ids = random_ids(LENGTH, VOCAB).numpy()
    got = run_shares(folder, ids, tp_size, pp_size)
    torch.testing.assert_close(got, oracle(folder), atol=1e-4, rtol=0)


def run_shares(folder: Path, ids: np.ndarray, tp_size: int, pp_size: int) -> Tensor:
    """Every tensor-parallel rank in a thread, stage after stage; the logits of all of them, side by side."""
    meet, lock = threading.Barrier(tp_size), threading.Lock()
    total: list[np.ndarray] = []

    def all_reduce(x: np.ndarray) -> None:
        with lock:
            total.append(x.copy())
        meet.wait()
        x[:] = np.sum(total, axis=0)
        if meet.wait() == 0:
            total.clear()
        meet.wait()

    logits: list[Tensor] = [torch.empty(0)] * tp_size
    config = TensorReader(folder).checkpoint.config

    def rank(tp_rank: int) -> None:
        x = None
        for pp_rank in range(pp_size):
            shard = Shard.of(config, tp_rank=tp_rank, tp_size=tp_size, pp_rank=pp_rank, pp_size=pp_size)
            model = open_model(folder, shard=shard, all_reduce=all_reduce if tp_size > 1 else None)
            starts, lens = np.array([0, len(ids)], dtype=np.int32), np.array([len(ids)], dtype=np.int32)
            x = model.forward(ids, starts, lens, table(0)[None], x)
        logits[tp_rank] = torch.from_numpy(model.logits(x))

    threads = [threading.Thread(target=rank, args=(i,)) for i in range(tp_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return torch.cat(logits, dim=1)[:, : config.vocab_size]


def test_int8_weights_are_those_of_bloom_quantize(small: Path, tmp_path: Path):
    from bloom.quantize import quantize_checkpoint

    quantize_checkpoint(small, tmp_path / "int8")
    steps = in_chunks(random_ids(LENGTH, VOCAB), LENGTH)
    on_load, ahead = (run(open_model(f, "int8"), steps)[0] for f in (small, tmp_path / "int8"))
    assert torch.equal(on_load, ahead)
    back = run(open_model(tmp_path / "int8", "float32"), steps)[0]  # without rounded activations
    torch.testing.assert_close(back, ahead, atol=2e-2, rtol=0)


def test_weights_that_are_not_finite_are_refused_in_int8(tmp_path: Path):
    model = make_hf_model(vocab=VOCAB)
    with torch.no_grad():
        model.transformer.h[1].mlp.dense_h_to_4h.weight[5, 7] = torch.nan
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"h\.1\.mlp\.dense_h_to_4h\.weight has a weight that is not finite"):
        open_model(tmp_path, "int8")


def test_a_model_that_says_nothing_is_not_an_oracle():
    """The perturbed model's outputs depend on its prefix: a test above that passes has compared something."""
    ids = random_ids(LENGTH, VOCAB)
    logits = hf_logits(make_hf_model(vocab=VOCAB), ids)
    assert len(set(logits.argmax(dim=-1).tolist())) > 20


def test_a_level_that_the_processor_lacks_is_refused():
    with pytest.raises(ValueError, match=r"level='avx9' does not run here; choose of .*generic"):
        load_library("avx9")
