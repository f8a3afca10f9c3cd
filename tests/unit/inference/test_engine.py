"""The engine against transformers, on a model whose outputs are diverse and depend on order (see bloom_models)."""

import time
from pathlib import Path
from statistics import fmean

import pytest
import torch

from bloom.kernels.naive import paged_attention
from services.inference import attention
from services.inference.config import EngineConfig
from services.inference.engine import load_engine
from services.inference.messages import Abort, Embed, Generate, PromptLogprobs, Refused, Score, Token
from services.inference.sampling import SamplingParams, choice_seed
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
    engine = engine_of(folder, max_running=1, max_waiting=1)
    for number in range(2):
        assert engine.handle(Generate(number, PROMPTS[3], greedy())) == []
    (refused,) = engine.handle(Generate(2, PROMPTS[0], greedy()))
    assert isinstance(refused, Refused)
    assert (refused.request_id, refused.status) == (2, "RESOURCE_EXHAUSTED")
    assert refused.retry_delay_s > 0
    events = []
    while engine.has_work:
        events += engine.step()
    for number in range(2):
        assert_greedy(folder, PROMPTS[3], [event.id for event in events if event.request_id == number])


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


def test_choices_differ_and_each_is_as_it_would_be_alone(folder: Path):
    prompt, settings = PROMPTS[5], {"temperature": 0.9, "max_tokens": 30}
    events = run_all(engine_of(folder), [Generate(0, prompt, SamplingParams(seed=5, n=3, best_of=3, **settings))])[0]
    choices = [[event.id for event in events if event.choice == choice] for choice in range(3)]
    alone = [
        generate(engine_of(folder), [prompt], SamplingParams(seed=choice_seed(5, choice), **settings))[0]
        for choice in range(3)
    ]
    assert choices == alone
    assert len({tuple(choice) for choice in choices}) == 3
    assert [event.finish for event in events].count("LENGTH") == 3


@pytest.mark.parametrize("blocks", [85, 8])
def test_of_many_choices_the_likeliest_are_reported_best_first(folder: Path, blocks: int):
    prompt, settings = PROMPTS[5], {"temperature": 1.5, "max_tokens": 20, "logprobs": 2}
    engine = engine_of(folder, max_kv_bytes=blocks * 2 * 2 * 16 * 48 * 4)
    sampling = SamplingParams(seed=5, n=2, best_of=6, **settings)
    events = run_all(engine, [Generate(0, prompt, sampling), Generate(1, PROMPTS[3], greedy())])[0]
    alone = [
        run_all(engine_of(folder), [Generate(0, prompt, SamplingParams(seed=choice_seed(5, choice), **settings))])[0]
        for choice in range(6)
    ]
    best = sorted(alone, key=lambda tokens: fmean(token.logprob for token in tokens), reverse=True)[:2]
    for choice in range(2):
        tokens = [event for event in events if event.choice == choice]
        assert [token.id for token in tokens] == [token.id for token in best[choice]]
        assert [token.logprob for token in tokens] == pytest.approx([t.logprob for t in best[choice]], abs=1e-4)
        assert tokens[-1].finish == "LENGTH"


def test_a_dropped_request_leaves_no_choices_behind(folder: Path):
    engine = engine_of(folder)
    engine.handle(Generate(0, PROMPTS[5], SamplingParams(seed=5, n=1, best_of=4)))
    engine.step()
    engine.handle(Abort(0))
    assert not engine.has_work
    assert not engine._results._best_of
    assert engine.stats.num_free_blocks == engine.stats.num_blocks


@pytest.mark.parametrize(
    "config",
    [
        pytest.param({}, id="at once"),
        pytest.param({"max_batched_tokens": 9, "max_running": 4}, id="in chunks"),
        pytest.param({"logits_rows": 3}, id="logits a few rows at a time"),
        pytest.param({"max_kv_bytes": 10 * 2 * 2 * 16 * 48 * 4}, id="with preemption"),
    ],
)
def test_prompt_log_probabilities_are_those_of_transformers(folder: Path, config: dict[str, object]):
    engine = engine_of(folder, **config)
    for _ in range(2):  # the second time the prefix cache has the prompts: no row may be hidden by it
        events = run_all(
            engine, [Generate(number, prompt, greedy(8, prompt_logprobs=3)) for number, prompt in enumerate(PROMPTS)]
        )
        for number, prompt in enumerate(PROMPTS):
            if len(prompt) == 1:
                assert all(isinstance(event, Token) for event in events[number])
                continue
            told, *tokens = events[number]
            assert isinstance(told, PromptLogprobs)
            rows = hf_logits(oracle(folder), torch.tensor(prompt)).log_softmax(dim=-1)[:-1]
            expected = rows.gather(1, torch.tensor(prompt[1:])[:, None]).squeeze(1)
            torch.testing.assert_close(torch.tensor(told.logprobs), expected, atol=1e-4, rtol=0)
            likeliest = torch.tensor([[logprob for _, logprob in row] for row in told.top_logprobs])
            torch.testing.assert_close(likeliest, rows.topk(3).values, atol=1e-4, rtol=0)
            assert_greedy(folder, prompt, [event.id for event in tokens])


@torch.no_grad()
def hidden_states(folder: Path, ids: list[int]) -> torch.Tensor:
    """After ln_f, by transformers: (S, H)."""
    return oracle(folder).transformer(torch.tensor([ids])).last_hidden_state[0]


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize(
    "config",
    [
        pytest.param({}, id="at once"),
        pytest.param({"max_batched_tokens": 9, "max_running": 4}, id="in chunks"),
        pytest.param({"max_kv_bytes": 9 * 2 * 2 * 16 * 48 * 4}, id="with little cache"),
    ],
)
def test_embeddings_are_the_pooled_states_of_transformers(folder: Path, pooling: str, config: dict[str, object]):
    engine = engine_of(folder, **config)
    for normalize in (False, True):  # the second time the prefix cache has them
        requests = [Embed(number, prompt, pooling, normalize) for number, prompt in enumerate(PROMPTS)]
        streams = [Generate(100 + number, prompt, greedy(20)) for number, prompt in enumerate(PROMPTS[3:6])]
        events = run_all(engine, [*streams, *requests])
        for number, prompt in enumerate(PROMPTS):
            states = hidden_states(folder, prompt)
            expected = states.mean(dim=0) if pooling == "mean" else states[-1]
            if normalize:
                expected = expected / expected.norm()
            (embedded,) = events[number]
            torch.testing.assert_close(torch.tensor(embedded.values), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("started", [False, True])
def test_a_request_past_its_deadline_is_told_so_and_others_go_on(folder: Path, started: bool):
    engine = engine_of(folder)
    clock = [time.monotonic()]
    engine._clock = engine._scheduler._clock = lambda: clock[0]
    engine.handle(Generate(0, PROMPTS[7], greedy(), deadline_s=2.0))
    engine.handle(Generate(1, PROMPTS[3], greedy(4)))
    if started:
        engine.step()
    clock[0] += 2.0
    refused, *tokens = engine.step()
    assert isinstance(refused, Refused)
    assert (refused.request_id, refused.status) == (0, "DEADLINE_EXCEEDED")
    assert {token.request_id for token in tokens} == {1}
    while engine.has_work:
        engine.step()
    assert engine.stats.num_free_blocks == engine.stats.num_blocks


def test_an_engine_with_nothing_but_expired_requests_answers_them_in_one_step(folder: Path):
    engine = engine_of(folder, max_running=1)
    for number in range(3):
        engine.handle(Generate(number, PROMPTS[3], greedy(), deadline_s=0.0))
    assert [event.request_id for event in engine.step()] == [0, 1, 2]
    assert not engine.has_work


def test_items_scored_at_the_same_moment_compute_their_context_once(folder: Path):
    engine = engine_of(folder)
    context = PROMPTS[7]
    targets = [[1, 2, 3], [4, 5], [6]]
    together = score(engine, [(context, target) for target in targets])
    assert engine.stats.num_prefix_hit_tokens == 2 * 80
    for target, logprobs in zip(targets, together, strict=True):
        (alone,) = score(engine_of(folder), [(context, target)])
        torch.testing.assert_close(torch.tensor(logprobs), torch.tensor(alone), atol=1e-5, rtol=0)


def test_a_generation_that_the_cache_can_never_hold_ends_where_the_cache_does(folder: Path):
    engine = engine_of(folder, max_kv_bytes=4 * 2 * 2 * 16 * 48 * 4)
    most = engine.stats.num_blocks * 16
    events = run_all(engine, [Generate(0, PROMPTS[1], greedy(1000))])[0]
    assert len(events) == most - 2
    (refused,) = engine.handle(Score(1, PROMPTS[7], PROMPTS[7]))
    assert isinstance(refused, Refused)
    assert refused.status == "INVALID_ARGUMENT"
    assert f"at most {most}" in refused.error


def test_the_statistics_tell_what_happened(folder: Path):
    engine = engine_of(folder)
    generate(engine, PROMPTS[:4], greedy(8))
    generate(engine, PROMPTS[:4], greedy(8))
    stats = engine.stats
    assert stats.num_prompt_tokens == 2 * sum(map(len, PROMPTS[:4]))
    assert stats.num_prefix_hit_tokens == 0  # the longest prompt's one block has the row that is needed
    assert stats.step_s > 0
    assert stats.tokens_per_s > 0
