"""Greedy ids for 200 prompts equal those of unbatched transformers in fp32, whatever the engine does with them."""

import random

import pytest

from services.inference.block_manager import BlockManager
from services.inference.messages import Abort, Generate
from services.inference.sequence import Sequence
from services.inference.step_batch import StepBatch
from tests.support.bloom_models import assert_discriminates, hf_logits, random_ids
from tests.support.greedy_reference import (
    BLOCK_BYTES,
    NUM_NEW,
    VOCAB,
    Reference,
    first_choices,
    make_reference,
    run,
)
from tests.support.inference_models import TOLERANCE, engine_of, greedy, oracle

EXECUTORS = {"torch": {"cpu_operators": False}, "bloom.cpu": {"cpu_operators": True}}


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return make_reference(tmp_path_factory.mktemp("model"))


@pytest.fixture(params=EXECUTORS)
def executor(request: pytest.FixtureRequest) -> dict[str, object]:
    return EXECUTORS[request.param]


def test_the_reference_can_tell_right_from_wrong(reference: Reference):
    assert_discriminates(lambda ids: hf_logits(oracle(reference.folder), ids), random_ids(64, VOCAB))
    assert len({tuple(ids) for ids in reference.ids}) > 195
    assert sum(len(set(ids)) for ids in reference.ids) > 200 * NUM_NEW * 0.4
    assert sum(gap < TOLERANCE for gaps in reference.gaps for gap in gaps) < 5


@pytest.mark.parametrize(
    "config",
    [
        pytest.param({}, id="32 at once"),
        pytest.param({"max_batched_tokens": 8, "max_running": 7}, id="prompts in chunks of eight tokens and less"),
        pytest.param({"max_running": 1}, id="one after another"),
        pytest.param({"prefix_caching": False}, id="no prefix cache"),
        pytest.param({"max_step_ms": 1}, id="a block of a prompt a step"),
    ],
)
def test_whatever_the_batch_and_the_chunks(
    reference: Reference, executor: dict[str, object], config: dict[str, object]
):
    engine = engine_of(reference.folder, num_token_ids=VOCAB, **executor, **config)
    reference.check_all(first_choices(engine, reference))


def test_whatever_the_prefix_cache_holds(reference: Reference, executor: dict[str, object]):
    engine = engine_of(reference.folder, num_token_ids=VOCAB, **executor, max_kv_bytes=900 * BLOCK_BYTES)
    reference.check_all(first_choices(engine, reference))
    first_hits = engine.stats.num_prefix_hit_tokens
    reference.check_all(first_choices(engine, reference))
    assert first_hits > 3000
    assert engine.stats.num_prefix_hit_tokens - first_hits > 0.6 * sum(map(len, reference.prompts))


def test_whatever_is_preempted(reference: Reference, executor: dict[str, object]):
    engine = engine_of(reference.folder, num_token_ids=VOCAB, **executor, max_kv_bytes=20 * BLOCK_BYTES)
    reference.check_all(first_choices(engine, reference))
    assert engine.stats.num_preemptions > 5


@pytest.mark.parametrize("num_blocks", [600, 20])
def test_whatever_is_forked(reference: Reference, executor: dict[str, object], num_blocks: int):
    engine = engine_of(reference.folder, num_token_ids=VOCAB, **executor, max_kv_bytes=num_blocks * BLOCK_BYTES)
    sampling = greedy(NUM_NEW, n=3, best_of=3)
    outputs = run(engine, [Generate(number, reference.prompts[number], sampling) for number in range(200)])
    assert len(outputs) == 600
    for choice in range(3):
        reference.check_all({number: outputs[number, choice] for number in range(200)})
    assert (engine.stats.num_preemptions > 30) == (num_blocks == 20)


def test_whatever_others_do(reference: Reference, executor: dict[str, object]):
    """Priorities, clients, and neighbours that come with choices and go in the middle."""
    engine = engine_of(reference.folder, num_token_ids=VOCAB, **executor, max_kv_bytes=40 * BLOCK_BYTES)
    rng = random.Random(3)
    outputs: dict[int, list[int]] = {number: [] for number in range(200)}
    left = list(outputs)
    neighbours = 1000
    while left or engine.has_work:
        if left and engine.stats.num_waiting < 20:
            number = left.pop()
            about = {"priority": rng.randint(-2, 2), "client": rng.choice("abc")}
            engine.handle(Generate(number, reference.prompts[number], greedy(NUM_NEW), **about))
            engine.handle(Generate(neighbours, reference.prompts[number], greedy(NUM_NEW, n=2, best_of=2), **about))
            neighbours += 1
        engine.handle(Abort(rng.randrange(1000, 1001 + neighbours - 1000)))
        for event in engine.step():
            if event.request_id < 1000:
                outputs[event.request_id].append(event.id)
    reference.check_all(outputs)
    assert engine.stats.num_free_blocks == engine.stats.num_blocks


def _stale_after_preemption(blocks: BlockManager, seq: Sequence) -> None:
    num_computed = seq.num_computed
    _release(blocks, seq)
    seq.block_digests[:] = seq.block_digests[:1] * len(seq.block_digests)
    seq.num_computed = num_computed


def _any_block_with_these_ids(blocks: BlockManager, seq: Sequence, num_full: int) -> None:
    for index in range(len(seq.block_digests), num_full):
        seq.block_digests.append(bytes(seq.token_ids[index * 16 : index * 16 + 1]))


def _one_key_too_few(chunks: object, copies: object = ()) -> StepBatch:
    batch = _from_chunks(chunks, copies)
    batch.context_lens[:] -= (batch.context_lens > 20) & (batch.query_starts[1:] - batch.query_starts[:-1] == 1)
    return batch


_release, _from_chunks = BlockManager.release, StepBatch.from_chunks


@pytest.mark.parametrize(
    ("owner", "name", "mutant"),
    [
        pytest.param(BlockManager, "take_copies", lambda blocks: [], id="no copy on write"),
        pytest.param(BlockManager, "_extend_digests", _any_block_with_these_ids, id="prefix hits by the first id"),
        pytest.param(BlockManager, "release", _stale_after_preemption, id="digests mixed up by preemption"),
        pytest.param(StepBatch, "from_chunks", staticmethod(_one_key_too_few), id="a key is not read"),
    ],
)
def test_a_planted_error_is_noticed(
    reference: Reference, owner: type, name: str, mutant: object, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(owner, name, mutant)
    engine = engine_of(reference.folder, num_token_ids=VOCAB, max_kv_bytes=16 * BLOCK_BYTES)
    sampling = greedy(NUM_NEW, n=3, best_of=3)
    with pytest.raises((AssertionError, ValueError, IndexError)):
        outputs = run(engine, [Generate(number, reference.prompts[number], sampling) for number in range(40)])
        for choice in range(3):
            reference.check_all({number: outputs[number, choice] for number in range(40)})
