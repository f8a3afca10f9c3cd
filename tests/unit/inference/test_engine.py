"""The engine against transformers, on a model whose outputs are diverse and depend on order (see bloom_models)."""

from pathlib import Path

import pytest
import torch

from bloom.kernels.naive import paged_attention
from services.inference import attention
from services.inference.config import EngineConfig
from services.inference.engine import load_engine
from services.inference.messages import Abort, Generate, Refused, Score, Token
from services.inference.sampling import SamplingParams
from services.inference.step_batch import StepBatch
from tests.support.bloom_models import assert_discriminates, hf_logits, make_hf_folder, random_ids
from tests.support.inference_models import (
    VOCAB,
    assert_greedy,
    engine_of,
    generate,
    greedy,
    oracle,
    run_all,
    score,
)

PROMPTS = [random_ids(length, VOCAB, seed=length).tolist() for length in (1, 2, 15, 16, 17, 33, 50, 90)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hf_folder(tmp_path_factory.mktemp("model"), vocab=VOCAB)


def assert_all_greedy(folder: Path, outputs: list[list[int]]) -> None:
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        assert len(output) == 64
        assert_greedy(folder, prompt, output)


def test_the_model_can_tell_right_from_wrong(folder: Path):
    ids = random_ids(64, VOCAB)
    assert_discriminates(lambda x: hf_logits(oracle(folder), x), ids)


def test_greedy_ids_equal_transformers_own_generation(folder: Path):
    prompt = torch.tensor([PROMPTS[4]])
    expected = oracle(folder).generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=64, do_sample=False, eos_token_id=None
    )
    (output,) = generate(engine_of(folder), [PROMPTS[4]], greedy())
    assert output == expected[0, len(PROMPTS[4]) :].tolist()


@pytest.mark.parametrize(
    "config",
    [
        pytest.param({}, id="all in one batch"),
        pytest.param({"max_batched_tokens": 8, "max_running": 8}, id="prompts in chunks of eight tokens and less"),
        pytest.param({"max_running": 1}, id="one after another"),
        pytest.param({"block_size": 1}, id="blocks of one token"),
        pytest.param({"prefix_caching": False}, id="no prefix cache"),
    ],
)
def test_greedy_ids_do_not_depend_on_batch_chunks_or_blocks(folder: Path, config: dict[str, object]):
    assert_all_greedy(folder, generate(engine_of(folder, **config), PROMPTS, greedy()))


def test_greedy_ids_do_not_depend_on_preemption(folder: Path):
    block_bytes = 2 * 2 * 16 * 48 * 4  # keys and values, 2 layers, 16 tokens, hidden size 48, fp32
    engine = engine_of(folder, max_kv_bytes=14 * block_bytes)
    assert_all_greedy(folder, generate(engine, PROMPTS, greedy()))
    assert engine.stats.num_preemptions > 0


def test_greedy_ids_do_not_depend_on_prefix_hits(folder: Path):
    engine = engine_of(folder)
    first = generate(engine, PROMPTS, greedy())
    events = run_all(engine, [Generate(number, prompt, greedy()) for number, prompt in enumerate(PROMPTS)])
    assert [events[number][-1].num_cached_tokens for number in range(len(PROMPTS))] == [0, 0, 0, 0, 16, 32, 48, 80]
    assert_all_greedy(folder, first)
    assert_all_greedy(folder, [[event.id for event in events[number]] for number in range(len(PROMPTS))])


def test_decodes_whose_contexts_are_long_are_attended_to_in_parts(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(attention, "_MAX_GATHERED", 3 * 90 * 48)
    assert_all_greedy(folder, generate(engine_of(folder), PROMPTS, greedy()))


def test_a_sequence_goes_past_the_training_length(folder: Path):
    prompt = random_ids(2100, VOCAB).tolist()
    engine = engine_of(folder, max_sequence_tokens=2200, max_kv_bytes=8 << 20)
    (output,) = generate(engine, [prompt], greedy())
    assert_greedy(folder, prompt, output)


@pytest.mark.parametrize("mutation", ["slopes", "mask", "slots"])
def test_a_planted_error_is_noticed(folder: Path, mutation: str, monkeypatch: pytest.MonkeyPatch):
    engine = engine_of(folder)
    executor = engine._executor
    if mutation == "slopes":
        executor._slopes = executor._slopes.flip(0)
    elif mutation == "mask":
        right = paged_attention.reversed_alibi
        monkeypatch.setattr(
            paged_attention,
            "reversed_alibi",
            lambda slopes, rows, context: right(slopes, rows, context).roll(-1, dims=1),
        )
    else:
        right_slots = StepBatch.slots
        monkeypatch.setattr(StepBatch, "slots", lambda batch, size: right_slots(batch, size) ^ 1)
    output = generate(engine, PROMPTS, greedy())
    with pytest.raises(AssertionError):
        assert_all_greedy(folder, output)


def test_a_seed_gives_the_same_ids_alone_and_among_others(folder: Path):
    def sampled(prompts: list[list[int]]) -> list[list[int]]:
        return generate(engine_of(folder), prompts, SamplingParams(seed=7, temperature=0.9, top_p=0.95, max_tokens=40))

    alone = [sampled([prompt])[0] for prompt in PROMPTS[:3]]
    assert sampled(PROMPTS)[:3] == alone
    assert len({tuple(output) for output in alone}) == 3


def test_generation_ends_after_a_stop_id_and_reports_it(folder: Path):
    (free,) = generate(engine_of(folder), [PROMPTS[5]], greedy())
    stop_id = free[9]
    events = run_all(engine_of(folder), [Generate(0, PROMPTS[5], greedy(stop_ids=frozenset({stop_id})))])[0]
    assert [event.id for event in events] == free[: free.index(stop_id) + 1]
    assert [event.finish for event in events] == [None] * (len(events) - 1) + ["STOP"]


def test_generation_ends_with_the_longest_sequence_that_the_engine_serves(folder: Path):
    events = run_all(engine_of(folder, max_sequence_tokens=40), [Generate(0, PROMPTS[5], greedy())])[0]
    assert len(events) == 40 - 33
    assert events[-1].finish == "LENGTH"


def test_log_probabilities_are_those_of_transformers(folder: Path):
    prompt = PROMPTS[5]
    events = run_all(engine_of(folder), [Generate(0, prompt, greedy(20, logprobs=4))])[0]
    ids = [event.id for event in events]
    expected = hf_logits(oracle(folder), torch.tensor(prompt + ids))[len(prompt) - 1 : -1].log_softmax(dim=-1)
    for row, event in zip(expected, events, strict=True):
        assert isinstance(event, Token)
        assert event.logprob == pytest.approx(row[event.id].item(), abs=1e-4)
        torch.testing.assert_close(
            torch.tensor([logprob for _, logprob in event.top_logprobs]), row.topk(4).values, atol=1e-4, rtol=0
        )


@pytest.mark.parametrize(
    "config",
    [
        pytest.param({}, id="at once"),
        pytest.param({"max_batched_tokens": 9, "max_running": 4}, id="in chunks"),
        pytest.param({"logits_rows": 3}, id="logits a few rows at a time"),
        pytest.param({"max_kv_bytes": 9 * 2 * 2 * 16 * 48 * 4}, id="with preemption"),
    ],
)
def test_scores_are_those_of_transformers(folder: Path, config: dict[str, object]):
    items = [(prompt[:cut], prompt[cut:]) for prompt in PROMPTS[1:] for cut in (1, len(prompt) // 2 or 1)]
    for (context, target), scored in zip(items, score(engine_of(folder, **config), items), strict=True):
        rows = hf_logits(oracle(folder), torch.tensor(context + target)).log_softmax(dim=-1)
        expected = rows[len(context) - 1 : -1].gather(1, torch.tensor(target)[:, None]).squeeze(1)
        torch.testing.assert_close(torch.tensor(scored), expected, atol=1e-4, rtol=0)


def test_a_scored_context_comes_from_the_prefix_cache_the_second_time(folder: Path):
    engine = engine_of(folder)
    context = PROMPTS[7]
    first = score(engine, [(context, [1, 2, 3])])
    engine.handle(Score(9, context, [1, 2, 3]))
    (chunk,) = engine._scheduler.schedule()
    assert chunk.seq.num_cached == 80
    engine.handle(Abort(9))
    torch.testing.assert_close(torch.tensor(score(engine, [(context, [1, 2, 3])])), torch.tensor(first))


def test_generating_and_scoring_share_a_batch(folder: Path):
    engine = engine_of(folder)
    events = run_all(engine, [Generate(0, PROMPTS[3], greedy()), Score(1, PROMPTS[4][:5], PROMPTS[4][5:])])
    assert_greedy(folder, PROMPTS[3], [event.id for event in events[0]])
    assert len(events[1][0].logprobs) == 12


def test_scoring_what_greedy_generation_gave_finds_it_the_likeliest_throughout(folder: Path):
    engine = engine_of(folder)
    (output,) = generate(engine, [PROMPTS[3]], greedy(12))
    (scored,) = run_all(engine, [Score(1, PROMPTS[3], output)])[1]
    assert [best_id for best_id, _ in scored.best] == output
    assert [logprob for _, logprob in scored.best] == scored.logprobs


def test_the_likeliest_id_is_one_that_could_be_drawn(folder: Path):
    engine = engine_of(folder, num_token_ids=20)
    (scored,) = run_all(engine, [Score(1, [1, 2], [3, 4, 5, 6])])[1]
    assert all(best_id < 20 for best_id, _ in scored.best)


def test_an_aborted_request_frees_its_blocks_before_the_next_step(folder: Path):
    engine = engine_of(folder)
    engine.handle(Generate(0, PROMPTS[7], greedy()))
    engine.step()
    assert engine.stats.num_free_blocks < engine.stats.num_blocks
    engine.handle(Abort(0))
    assert engine.stats.num_free_blocks == engine.stats.num_blocks
    assert not engine.has_work


def test_a_full_queue_refuses_and_leaves_the_others_alone(folder: Path):
    engine = engine_of(folder, max_waiting=1)
    assert engine.handle(Generate(0, PROMPTS[0], greedy())) == []
    (refused,) = engine.handle(Generate(1, PROMPTS[0], greedy()))
    assert isinstance(refused, Refused)
    assert refused.request_id == 1


def test_a_bf16_model_generates_nearly_what_the_fp32_one_does(folder: Path):
    items = [(prompt[:1], prompt[1:]) for prompt in PROMPTS[3:]]
    exact, rounded = (score(engine_of(folder, dtype=dtype), items) for dtype in ("float32", "bfloat16"))
    for a, b in zip(exact, rounded, strict=True):
        assert (torch.tensor(a) - torch.tensor(b)).abs().mean() < 0.2


def test_more_token_ids_than_rows_are_refused(folder: Path):
    with pytest.raises(ValueError, match="212 ids but the model's vocabulary 211 rows"):
        load_engine(folder, EngineConfig(), num_token_ids=212)


def test_a_cache_without_room_for_one_block_names_the_setting(folder: Path):
    with pytest.raises(ValueError, match="ANTHESIS_INFERENCE_MAX_KV_BYTES"):
        engine_of(folder, max_kv_bytes=1000)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_greedy_ids_are_the_same_on_a_gpu(folder: Path):
    assert_all_greedy(folder, generate(engine_of(folder, device="cuda"), PROMPTS, greedy()))
