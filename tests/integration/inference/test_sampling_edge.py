"""What a request may ask of its tokens, through gRPC and a real engine, with transformers as the judge."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
import torch
from anthesis.v1 import inference_pb2 as pb
from anthesis.v1.tokenizer_pb2 import TokenIds

from tests.support.bloom_models import make_hf_folder, random_ids
from tests.support.inference_models import VOCAB, assert_greedy, oracle, store_version
from tests.support.inference_worker import RunningWorker, running_worker, until

pytestmark = pytest.mark.asyncio(loop_scope="module")
PROMPT = random_ids(20, VOCAB, seed=1).tolist()
ENDLESS = 2000  # tokens: seconds, even with the smallest model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hf_folder(tmp_path_factory.mktemp("model"), vocab=VOCAB)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def worker(folder: Path) -> AsyncIterator[RunningWorker]:
    async with running_worker(max_waiting=4, max_running=4) as running:
        await running.load(store_version(running.store, "a@1", folder))
        yield running


async def choices_of(call: Any) -> dict[int, list[pb.GeneratedToken]]:
    tokens: dict[int, list[pb.GeneratedToken]] = {}
    async for message in call:
        tokens.setdefault(message.choice, []).extend(message.tokens)
    return tokens


def ids(tokens: list[pb.GeneratedToken]) -> list[int]:
    return [token.id for token in tokens]


@torch.no_grad()
def hf_logprobs(folder: Path, token_ids: list[int]) -> torch.Tensor:
    """Row i: log-probabilities of what follows token i."""
    return oracle(folder)(torch.tensor([token_ids])).logits[0].log_softmax(dim=-1)


def sequences(*sequence: list[int]) -> list[TokenIds]:
    return [TokenIds(ids=one) for one in sequence]


async def test_choices_stream_each_with_a_seed_of_its_own_and_the_first_with_the_requests(worker: RunningWorker):
    sampling = {"temperature": 1.0, "seed": 11, "max_tokens": 12}
    alone = await worker.generated("a@1", PROMPT, **sampling)
    choices = await choices_of(worker.generate("a@1", PROMPT, **sampling, n=3))
    again = await choices_of(worker.generate("a@1", PROMPT, **sampling, n=3))
    assert ids(choices[0]) == alone
    assert len({tuple(ids(tokens)) for tokens in choices.values()}) == 3
    assert {choice: ids(tokens) for choice, tokens in again.items()} == {
        choice: ids(tokens) for choice, tokens in choices.items()
    }


MIXED: list[dict[str, Any]] = [
    {"seed": 1, "n": 2},
    {"seed": 2, "top_k": 5, "logprobs": 2},
    {"seed": 3, "top_p": 0.8, "repetition_penalty": 1.2},
    {"seed": 4, "min_p": 0.05, "presence_penalty": 1.0, "frequency_penalty": 0.5},
    {"seed": 5, "typical_p": 0.7, "logit_bias": {7: 3.0}},
    {"seed": 6, "bad_words": sequences([7], [8, 9]), "best_of": 3},
    {"seed": 7, "temperature": 0.0, "prompt_logprobs": 1},
]


async def test_a_seed_gives_the_same_ids_whatever_else_is_in_the_batch(worker: RunningWorker):
    def ask(sampling: dict[str, Any]) -> Any:
        return choices_of(worker.generate("a@1", PROMPT, **{"temperature": 1.0, "max_tokens": 20} | sampling))

    alone = [await ask(sampling) for sampling in MIXED]
    together = await asyncio.gather(*map(ask, MIXED))
    for one, among in zip(alone, together, strict=True):
        assert {choice: ids(tokens) for choice, tokens in among.items()} == {
            choice: ids(tokens) for choice, tokens in one.items()
        }


async def test_every_choice_says_once_why_it_ended(worker: RunningWorker):
    reasons: dict[int, list[int]] = {0: [], 1: [], 2: []}
    async for message in worker.generate("a@1", PROMPT, temperature=1.0, seed=2, n=3, max_tokens=5):
        reasons[message.choice].append(message.finish_reason)
    for choice in reasons.values():
        assert [reason for reason in choice if reason] == [pb.FINISH_REASON_LENGTH]
        assert choice[-1]


async def test_the_best_of_several_are_those_with_the_highest_mean_log_probability(worker: RunningWorker):
    sampling = {"temperature": 1.0, "seed": 3, "max_tokens": 8}
    drawn = await choices_of(worker.generate("a@1", PROMPT, **sampling, n=5, logprobs=0))
    ranked = sorted(drawn.values(), key=lambda tokens: sum(token.logprob for token in tokens), reverse=True)
    best = await choices_of(worker.generate("a@1", PROMPT, **sampling, n=2, best_of=5))
    assert [ids(best[0]), ids(best[1])] == [ids(tokens) for tokens in ranked[:2]]
    assert not best[0][0].HasField("logprob")


async def test_prompt_log_probabilities_are_those_of_transformers_and_come_first(worker: RunningWorker, folder: Path):
    for _ in range(2):  # the second time, the prompt's blocks are in the prefix cache
        messages = [m async for m in worker.generate("a@1", PROMPT, max_tokens=3, prompt_logprobs=4, logprobs=4)]
        first, *rest = messages
        expected = hf_logprobs(folder, PROMPT)
        assert [token.id for token in first.prompt_tokens] == PROMPT
        assert not first.prompt_tokens[0].HasField("logprob")
        assert not first.tokens
        for position, token in enumerate(first.prompt_tokens[1:]):
            assert token.logprob == pytest.approx(expected[position, token.id].item(), abs=1e-4)
            values, _ = expected[position].topk(4)
            assert [top.logprob for top in token.top_logprobs] == pytest.approx(values.tolist(), abs=1e-4)
        assert sum(len(message.tokens) for message in rest) == 3


async def test_output_log_probabilities_are_those_of_transformers(worker: RunningWorker, folder: Path):
    call = worker.generate("a@1", PROMPT, temperature=0.8, top_k=20, seed=4, max_tokens=16, logprobs=3)
    (tokens,) = (await choices_of(call)).values()
    expected = hf_logprobs(folder, PROMPT + ids(tokens))[len(PROMPT) - 1 : -1]
    for row, token in zip(expected, tokens, strict=True):
        assert token.logprob == pytest.approx(row[token.id].item(), abs=1e-4)
        assert [top.logprob for top in token.top_logprobs] == pytest.approx(row.topk(3).values.tolist(), abs=1e-4)


async def test_penalized_greedy_ids_are_those_of_transformers(worker: RunningWorker, folder: Path):
    free = await worker.generated("a@1", PROMPT, max_tokens=24)
    settings = {"repetition_penalty": 1.3, "max_new_tokens": 24, "do_sample": False, "eos_token_id": None}
    prompt = torch.tensor([PROMPT])
    expected = (
        oracle(folder)
        .generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            bad_words_ids=[[free[0]], free[1:3]],
            sequence_bias=[[[free[4]], -2.0], [[7], 1.5]],
            **settings,
        )[0, len(PROMPT) :]
        .tolist()
    )
    drawn = await worker.generated(
        "a@1",
        PROMPT,
        max_tokens=24,
        repetition_penalty=1.3,
        bad_words=sequences([free[0]], free[1:3]),
        logit_bias={free[4]: -2.0, 7: 1.5},
    )
    assert drawn == expected
    assert drawn != free


async def test_a_frequency_penalty_makes_ids_differ_more(worker: RunningWorker, folder: Path):
    free = await worker.generated("a@1", PROMPT, max_tokens=60)
    penalized = await worker.generated("a@1", PROMPT, max_tokens=60, frequency_penalty=2.0, presence_penalty=2.0)
    assert_greedy(folder, PROMPT, free)
    assert len(set(penalized)) > len(set(free))


async def test_a_stop_sequence_ends_generation_and_is_reported_but_not_before_min_tokens(worker: RunningWorker):
    free = await worker.generated("a@1", PROMPT, max_tokens=20)
    stop = free[5:8]
    end = next(end for end in range(3, 21) if free[end - 3 : end] == stop)
    messages = [m async for m in worker.generate("a@1", PROMPT, max_tokens=20, stop_sequences=sequences(stop))]
    assert [token.id for message in messages for token in message.tokens] == free[:end]
    assert messages[-1].finish_reason == pb.FINISH_REASON_STOP
    later = await worker.generated("a@1", PROMPT, max_tokens=20, stop_sequences=sequences(stop), min_tokens=12)
    assert later[:12] == free[:12]
    assert len(later) > 12


async def test_a_stop_id_is_not_drawn_before_min_tokens(worker: RunningWorker):
    free = await worker.generated("a@1", PROMPT, max_tokens=10)
    drawn = await worker.generated("a@1", PROMPT, max_tokens=10, stop_ids=[free[0]], min_tokens=4)
    assert len(drawn) >= 4
    assert free[0] not in drawn[:4]


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("normalize", [True, False, None])
async def test_embeddings_are_pooled_hidden_states_of_transformers(
    worker: RunningWorker, folder: Path, pooling: str, normalize: bool | None
):
    inputs = [PROMPT, PROMPT[:1], random_ids(70, VOCAB, seed=5).tolist()]
    request = pb.InferenceServiceEmbedRequest(
        model_version="a@1", inputs=sequences(*inputs), pooling=pb.Pooling.Value(f"POOLING_{pooling.upper()}")
    )
    if normalize is not None:
        request.normalize = normalize
    answer = await worker.stub.Embed(request)
    for token_ids, embedding in zip(inputs, answer.embeddings, strict=True):
        with torch.no_grad():
            hidden = oracle(folder).transformer(torch.tensor([token_ids])).last_hidden_state[0]
        expected = hidden.mean(dim=0) if pooling == "mean" else hidden[-1]
        if normalize is not False:
            expected = expected / expected.norm()
        torch.testing.assert_close(torch.tensor(embedding.values), expected, atol=1e-4, rtol=1e-4)


async def test_scores_of_items_with_one_context_are_those_of_transformers(worker: RunningWorker, folder: Path):
    context = random_ids(40, VOCAB, seed=8).tolist()
    targets = [random_ids(n, VOCAB, seed=n).tolist() for n in range(1, 9)]
    items = [pb.ScoreIds(context_ids=context, target_ids=target) for target in targets]
    answer = await worker.stub.Score(pb.InferenceServiceScoreRequest(model_version="a@1", items=items))
    for target, scored in zip(targets, answer.items, strict=True):
        rows = hf_logprobs(folder, context + target)[len(context) - 1 : -1]
        expected = rows.gather(1, torch.tensor(target)[:, None]).squeeze(1)
        assert list(scored.logprobs) == pytest.approx(expected.tolist(), abs=1e-4)
        assert [best.logprob for best in scored.best] == pytest.approx(rows.max(dim=-1).values.tolist(), abs=1e-4)


ALL = [[token_id] for token_id in range(VOCAB)]


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"n": 3, "best_of": 2, "temperature": 1.0}, "best_of=2 is below n=3; raise best_of or leave it out"),
        ({"best_of": 2}, "best_of=2 with temperature=0: greedy choices are all the same"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens=9 is above max_tokens=8; lower it or raise max_tokens"),
        ({"min_tokens": 65}, "min_tokens=65 is above max_tokens=64"),
        ({"n": 0}, "n=0 is out of range; use 1 to 128"),
        ({"min_p": 1.5}, "min_p=1.5 is out of range; use 0 (off) to 1"),
        ({"typical_p": 0.0}, "typical_p=0.0 is out of range; use above 0, at most 1"),
        ({"presence_penalty": 2.5}, "presence_penalty=2.5 is out of range; use -2.0 to 2.0"),
        ({"frequency_penalty": -3.0}, "frequency_penalty=-3.0 is out of range; use -2.0 to 2.0"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0 is out of range"),
        ({"logit_bias": {VOCAB: 1.0}}, "logit_bias has id 211, outside the vocabulary of a@1; use 0 to 210"),
        ({"logit_bias": {3: 150.0}}, "logit_bias of id 3 is 150.0, out of range; use -100.0 to 100.0"),
        ({"bad_words": sequences([5], [])}, "bad_words[1] has 0 ids; give 1 to 64"),
        ({"bad_words": sequences([5, VOCAB])}, "bad_words has id 211, outside the vocabulary of a@1; use 0 to 210"),
        ({"bad_words": sequences(*ALL)}, "bad_words has 211 sequences; give at most 128"),
        (
            {"bad_words": sequences(*ALL[:100]), "stop_ids": range(100, VOCAB), "min_tokens": 1},
            "ban all 211 ids of a@1; leave one that can be drawn",
        ),
        ({"stop_ids": [VOCAB]}, "stop_ids has id 211, outside the vocabulary of a@1; use 0 to 210"),
        ({"stop_sequences": sequences([])}, "stop_sequences[0] has 0 ids; give 1 to 64"),
        ({"stop_sequences": sequences([VOCAB])}, "stop_sequences has id 211, outside the vocabulary"),
        ({"prompt_logprobs": 21}, "prompt_logprobs=21 is out of range; use 0 to 20"),
    ],
)
async def test_what_cannot_be_meant_is_refused_with_value_and_remedy(
    worker: RunningWorker, sampling: dict, message: str
):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await choices_of(worker.generate("a@1", PROMPT, **sampling))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert message in (caught.value.details() or "")


@pytest.mark.parametrize(
    ("request_fields", "message"),
    [
        ({"priority": 101}, "priority=101 is out of range; use -100 (first) to 100"),
        ({"priority": -101}, "priority=-101 is out of range"),
        ({"client": "x" * 257}, "client has 257 characters; use at most 256"),
    ],
)
async def test_a_place_in_the_queue_that_is_none_is_refused(worker: RunningWorker, request_fields: dict, message: str):
    for call in (
        worker.stub.Score(pb.InferenceServiceScoreRequest(model_version="a@1", **request_fields)),
        worker.stub.Embed(pb.InferenceServiceEmbedRequest(model_version="a@1", **request_fields)),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert message in (caught.value.details() or "")


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([[]], "inputs[0].ids is empty; send at least one id"),
        ([[5], [VOCAB]], "inputs[1].ids has id 211, outside the vocabulary of a@1; use 0 to 210"),
        ([[5] * 2049], "inputs[0] has 2049 ids; a@1 serves 2048 tokens"),
    ],
)
async def test_what_cannot_be_embedded_is_named(worker: RunningWorker, inputs: list[list[int]], message: str):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await worker.stub.Embed(pb.InferenceServiceEmbedRequest(model_version="a@1", inputs=sequences(*inputs)))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert message in (caught.value.details() or "")


async def all_blocks_free(worker: RunningWorker) -> bool:
    return all(m.num_free_kv_blocks == m.num_kv_blocks > 0 for m in (await worker.models()).values())


async def test_cancelling_a_call_frees_the_blocks_of_all_its_choices(worker: RunningWorker):
    call = worker.generate("a@1", PROMPT, temperature=1.0, n=4, max_tokens=ENDLESS)
    await call.read()
    assert not await all_blocks_free(worker)
    call.cancel()
    await until(lambda: all_blocks_free(worker))


async def test_cancelling_embeddings_frees_their_blocks(worker: RunningWorker):
    inputs = sequences(*(random_ids(1500, VOCAB, seed=n).tolist() for n in range(4)))
    call = worker.stub.Embed(pb.InferenceServiceEmbedRequest(model_version="a@1", inputs=inputs))

    async def begun() -> bool:
        return not await all_blocks_free(worker)

    await until(begun)
    call.cancel()
    await until(lambda: all_blocks_free(worker))


async def test_a_full_queue_says_when_to_try_again_and_what_waits_past_its_deadline_is_dropped(worker: RunningWorker):
    """Four run, four wait, one of these for a moment only; the next is refused."""
    running = [worker.generate("a@1", PROMPT, max_tokens=ENDLESS) for _ in range(4)]
    for call in running:
        await call.read()
    request = pb.InferenceServiceGenerateRequest(
        model_version="a@1", prompt_ids=PROMPT, sampling=pb.SamplingParams(temperature=0)
    )
    waiting = [worker.stub.Generate(request, timeout=timeout) for timeout in (0.5, None, None, None)]

    async def four_wait() -> bool:
        return (await worker.models())["a@1"].num_waiting == 4

    await until(four_wait)
    refused = worker.stub.Generate(request)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await choices_of(refused)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "4 requests wait already" in (caught.value.details() or "")
    assert int(dict(caught.value.trailing_metadata())["grpc-retry-pushback-ms"]) > 0
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await choices_of(waiting[0])
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    for call in running:  # unharmed
        assert (await call.read()).tokens
    for call in (*running, *waiting):
        call.cancel()
    await until(lambda: all_blocks_free(worker))


async def test_an_urgent_call_is_begun_before_those_that_wait(worker: RunningWorker):
    running = [worker.generate("a@1", PROMPT, max_tokens=ENDLESS) for _ in range(4)]
    for call in running:
        await call.read()
    ended: list[int] = []

    async def ask(priority: int) -> None:
        sampling = pb.SamplingParams(temperature=0, max_tokens=4)
        request = pb.InferenceServiceGenerateRequest(
            model_version="a@1", prompt_ids=PROMPT, sampling=sampling, priority=priority
        )
        await choices_of(worker.stub.Generate(request))
        ended.append(priority)

    async def wait_for(num: int) -> None:
        async def waiting() -> bool:
            return (await worker.models())["a@1"].num_waiting + len(ended) >= num

        await until(waiting)

    tasks = []
    for number, priority in enumerate((5, 0)):
        tasks.append(asyncio.create_task(ask(priority)))
        await wait_for(number + 1)
    running[0].cancel()
    await asyncio.gather(*tasks)
    assert ended == [0, 5]
    for call in running:
        call.cancel()
    await until(lambda: all_blocks_free(worker))
