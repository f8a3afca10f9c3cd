"""Greedy ids of an engine whose model several ranks share equal those of unbatched transformers in fp32."""

from collections.abc import Iterator
from contextlib import closing, contextmanager

import psutil
import pytest

from bloom.cpu import load_library
from services.inference.engine import Engine
from tests.support.bloom_models import assert_discriminates, hf_logits, random_ids
from tests.support.greedy_reference import BLOCK_BYTES, VOCAB, Reference, first_choices, make_reference
from tests.support.inference_models import engine_of, oracle

TP_2, TP_4, PP_2 = {"tensor_parallel": 2}, {"tensor_parallel": 4}, {"pipeline_parallel": 2}
NUM_BLOCKS = 20  # of the tiny cache


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return make_reference(tmp_path_factory.mktemp("model"), n_head=12)  # no power of two, for a rank neither


@contextmanager
def ranks_of(reference: Reference, layout: dict[str, int], **config: object) -> Iterator[Engine]:
    """Prompts go in chunks of at most 48 tokens."""
    if config.get("cpu_operators"):
        load_library()  # compiled here, if it has to be, and not by every rank at once
    settings = layout | {"max_batched_tokens": 48, "max_running": 32} | config
    before = psutil.Process().children()
    with closing(engine_of(reference.folder, num_token_ids=VOCAB, **settings)) as engine:
        assert len(psutil.Process().children()) - len(before) == max(layout.values()) - 1
        yield engine
    assert psutil.Process().children() == before


def test_the_reference_can_tell_right_from_wrong(reference: Reference):
    assert_discriminates(lambda ids: hf_logits(oracle(reference.folder), ids), random_ids(64, VOCAB))
    assert len({tuple(ids) for ids in reference.ids}) > 195


@pytest.mark.parametrize("cpu_operators", [False, True], ids=["torch", "bloom.cpu"])
@pytest.mark.parametrize(
    "layout", [pytest.param(TP_2, id="TP 2"), pytest.param(TP_4, id="TP 4"), pytest.param(PP_2, id="PP 2")]
)
def test_200_prompts_in_batches_and_chunks(reference: Reference, layout: dict[str, int], cpu_operators: bool):
    with ranks_of(reference, layout, cpu_operators=cpu_operators) as engine:
        reference.check_all(first_choices(engine, reference))
        assert engine.stats.num_prefix_hit_tokens > 0


@pytest.mark.parametrize(
    ("layout", "cpu_operators"),
    [pytest.param(TP_2, False, id="TP 2, torch"), pytest.param(PP_2, True, id="PP 2, bloom.cpu")],
)
def test_200_prompts_in_a_cache_so_small_that_sequences_are_preempted(
    reference: Reference, layout: dict[str, int], cpu_operators: bool
):
    block_bytes = BLOCK_BYTES * (4 if cpu_operators else 1)  # bloom.cpu keeps heads of 4 as heads of 16
    share_bytes = NUM_BLOCKS * block_bytes // 2  # each of the two ranks has half of every block
    with ranks_of(reference, layout, cpu_operators=cpu_operators, max_kv_bytes=share_bytes) as engine:
        assert engine.stats.num_blocks <= NUM_BLOCKS
        reference.check_all(first_choices(engine, reference))
        assert engine.stats.num_preemptions > 5


def test_wrong_slopes_of_one_rank_are_noticed(reference: Reference):
    with ranks_of(reference, TP_2) as engine:
        share = engine._executor._share  # type: ignore[attr-defined]
        share._slopes = share._slopes.roll(1)
        with pytest.raises(AssertionError, match="gap"):
            reference.check_all(first_choices(engine, reference, 20))
