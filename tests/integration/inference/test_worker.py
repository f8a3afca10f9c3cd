"""The worker through gRPC, with real engine processes; only the registry is in memory."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
import torch
from anthesis.channel import open_aio_channel
from anthesis.v1 import inference_pb2 as pb
from anthesis.v1.inference_pb2_grpc import InferenceServiceStub
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bloom.quantize import dequantize_checkpoint, quantize_checkpoint
from tests.support.bloom_models import hf_logits, make_hf_folder, random_ids
from tests.support.inference_models import VOCAB, assert_greedy, engine_of, oracle, score, store_version
from tests.support.inference_worker import RunningWorker, running_worker, until

pytestmark = pytest.mark.asyncio(loop_scope="module")
PROMPT = random_ids(20, VOCAB, seed=1).tolist()
ENDLESS = 2000  # tokens: seconds, even with the smallest model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hf_folder(tmp_path_factory.mktemp("model"), vocab=VOCAB, sharded=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def loaded(folder: Path) -> AsyncIterator[RunningWorker]:
    """A worker that serves a@1; tests leave it as they found it."""
    async with running_worker() as worker:
        await worker.load(store_version(worker.store, "a@1", folder))
        yield worker


async def all_blocks_free(worker: RunningWorker) -> bool:
    return all(m.num_free_kv_blocks == m.num_kv_blocks > 0 for m in (await worker.models()).values())


async def failure(call: Any) -> grpc.aio.AioRpcError:
    """What a streaming or unary call raises."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        if hasattr(call, "__aiter__"):
            async for _ in call:
                pass
        else:
            await call
    return caught.value


async def test_it_streams_greedy_ids_as_transformers_has_them(loaded: RunningWorker, folder: Path):
    messages = [message async for message in loaded.generate("a@1", PROMPT, max_tokens=64)]
    ids = [token.id for message in messages for token in message.tokens]
    assert len(ids) == 64
    assert_greedy(folder, PROMPT, ids)
    assert [m.finish_reason for m in messages[:-1]] == [pb.FINISH_REASON_UNSPECIFIED] * (len(messages) - 1)
    assert messages[-1].finish_reason == pb.FINISH_REASON_LENGTH


async def test_settings_that_are_not_given_have_the_documented_defaults(loaded: RunningWorker):
    request = pb.InferenceServiceGenerateRequest(model_version="a@1", prompt_ids=PROMPT)
    runs = [[t.id async for m in loaded.stub.Generate(request) for t in m.tokens] for _ in range(2)]
    assert [len(run) for run in runs] == [64, 64]
    assert runs[0] != runs[1]  # sampled, with a seed drawn for each


async def test_a_seed_gives_the_same_ids_among_other_calls(loaded: RunningWorker):
    alone = await loaded.generated("a@1", PROMPT, temperature=1.0, seed=5, max_tokens=30)
    calls = (
        loaded.generated("a@1", PROMPT, temperature=1.0, seed=seed, max_tokens=30, top_p=1 - 0.01 * abs(seed - 5))
        for seed in range(12)
    )
    together = await asyncio.gather(*calls)
    assert together[5] == alone
    assert len({tuple(ids) for ids in together}) == 12


async def test_a_stop_id_and_log_probabilities_are_reported(loaded: RunningWorker):
    free = await loaded.generated("a@1", PROMPT, max_tokens=10)
    call = loaded.generate("a@1", PROMPT, max_tokens=10, stop_ids=[free[3]], logprobs=2)
    messages = [message async for message in call]
    tokens = [token for message in messages for token in message.tokens]
    assert [token.id for token in tokens] == free[: free.index(free[3]) + 1]
    assert messages[-1].finish_reason == pb.FINISH_REASON_STOP
    for token in tokens:
        assert len(token.top_logprobs) == 2
        assert token.top_logprobs[0].id == token.id
        assert token.logprob == pytest.approx(token.top_logprobs[0].logprob)


async def test_a_prompt_seen_before_is_answered_from_cache(loaded: RunningWorker):
    prompt = random_ids(50, VOCAB, seed=99).tolist()
    cached = []
    for _ in range(2):
        async for message in loaded.generate("a@1", prompt, max_tokens=1):
            cached.append(message.num_cached_tokens)
    assert cached == [0, 48]


async def test_scores_are_those_of_the_engine(loaded: RunningWorker, folder: Path):
    items = [(PROMPT[:cut], PROMPT[cut:]) for cut in range(1, 20)] + [(PROMPT, [])]
    request = pb.InferenceServiceScoreRequest(
        model_version="a@1", items=[pb.ScoreIds(context_ids=c, target_ids=t) for c, t in items]
    )
    answer = await loaded.stub.Score(request)
    assert list(answer.items[-1].logprobs) == []
    for scored, expected in zip(answer.items, score(engine_of(folder), items[:-1]), strict=False):
        assert list(scored.logprobs) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ({"version": "b@7"}, "NOT_FOUND", ["'b@7'", "a@1"]),
        ({"prompt_ids": []}, "INVALID_ARGUMENT", ["prompt_ids is empty"]),
        ({"prompt_ids": [3, VOCAB]}, "INVALID_ARGUMENT", ["211", "0 to 210"]),
        ({"prompt_ids": [5] * 2048}, "INVALID_ARGUMENT", ["2048 ids", "at most 2047"]),
        ({"temperature": -1.0}, "INVALID_ARGUMENT", ["temperature=-1.0", "0 (greedy) or more"]),
        ({"top_p": 1.25}, "INVALID_ARGUMENT", ["top_p=1.25", "at most 1"]),
        ({"max_tokens": 0}, "INVALID_ARGUMENT", ["max_tokens=0", "1 or more"]),
        ({"logprobs": 21}, "INVALID_ARGUMENT", ["logprobs=21", "0 to 20"]),
    ],
)
async def test_a_bad_request_is_refused_with_value_and_remedy(
    loaded: RunningWorker, arguments: dict[str, Any], code: str, words: list[str]
):
    error = await failure(loaded.generate(**({"version": "a@1", "prompt_ids": PROMPT} | arguments)))
    assert error.code().name == code
    assert all(word in (error.details() or "") for word in words), error.details()


async def test_a_score_too_long_names_its_item(loaded: RunningWorker):
    items = [pb.ScoreIds(context_ids=[1], target_ids=[2]), pb.ScoreIds(context_ids=[1], target_ids=[2] * 2048)]
    error = await failure(loaded.stub.Score(pb.InferenceServiceScoreRequest(model_version="a@1", items=items)))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "items[1] has 2049 ids" in (error.details() or "")


async def test_users_may_not_call_a_worker(loaded: RunningWorker):
    async with open_aio_channel(loaded.address, "user-key") as channel:
        stub = InferenceServiceStub(channel)
        error = await failure(stub.GetWorkerStatus(pb.GetWorkerStatusRequest()))
    assert error.code() == grpc.StatusCode.PERMISSION_DENIED


async def test_health_is_serving(loaded: RunningWorker):
    stub = health_pb2_grpc.HealthStub(loaded.channel)
    for name in ("", "anthesis.v1.InferenceService"):
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=name))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_a_cancelled_call_frees_its_blocks(loaded: RunningWorker):
    call = loaded.generate("a@1", PROMPT, max_tokens=ENDLESS)
    await call.read()
    assert not await all_blocks_free(loaded)
    call.cancel()
    await until(lambda: all_blocks_free(loaded), timeout_s=1)
    assert (await loaded.models())["a@1"].num_running == 0


async def test_a_call_past_its_deadline_frees_its_blocks(loaded: RunningWorker):
    request = pb.InferenceServiceGenerateRequest(
        model_version="a@1", prompt_ids=PROMPT, sampling=pb.SamplingParams(max_tokens=ENDLESS)
    )
    error = await failure(loaded.stub.Generate(request, timeout=0.3))
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: all_blocks_free(loaded), timeout_s=1)


async def test_a_lost_connection_frees_the_blocks_of_its_calls(loaded: RunningWorker):
    channel = open_aio_channel(loaded.address, "gateway-key")
    request = pb.InferenceServiceGenerateRequest(
        model_version="a@1", prompt_ids=PROMPT, sampling=pb.SamplingParams(max_tokens=ENDLESS)
    )
    calls = [InferenceServiceStub(channel).Generate(request) for _ in range(4)]
    for call in calls:
        await call.read()
    await channel.close()
    await until(lambda: all_blocks_free(loaded), timeout_s=1)


async def test_cancelling_a_score_frees_its_blocks(loaded: RunningWorker):
    items = [pb.ScoreIds(context_ids=[1], target_ids=random_ids(2000, VOCAB, seed=s).tolist()) for s in range(200)]
    call = loaded.stub.Score(pb.InferenceServiceScoreRequest(model_version="a@1", items=items))

    async def busy() -> bool:
        return (await loaded.models())["a@1"].num_running > 0

    await until(busy)
    call.cancel()
    await until(lambda: all_blocks_free(loaded), timeout_s=2)


async def test_a_dead_engine_fails_its_calls_and_comes_back(loaded: RunningWorker, folder: Path):
    call = loaded.generate("a@1", PROMPT, max_tokens=ENDLESS)
    await call.read()
    dead = loaded.engine_pid("a@1")
    heard = len(loaded.registry.heard)
    os.kill(dead, signal.SIGKILL)
    error = await failure(call)
    assert error.code() == grpc.StatusCode.UNAVAILABLE
    assert "exit code -9" in (error.details() or "")
    meanwhile = await failure(loaded.generate("a@1", PROMPT))
    assert meanwhile.code() == grpc.StatusCode.UNAVAILABLE
    assert (await loaded.models())["a@1"].state == pb.MODEL_LOAD_STATE_LOADING
    await loaded.registry.wait_for(
        lambda states: {"a@1": "LOADING"} in loaded.registry.heard[heard:] and states == {"a@1": "READY"}
    )
    assert loaded.engine_pid("a@1") != dead
    assert_greedy(folder, PROMPT, await loaded.generated("a@1", PROMPT, max_tokens=8))


async def test_it_says_not_serving_until_an_engine_that_died_is_back(loaded: RunningWorker):
    stub, response = health_pb2_grpc.HealthStub(loaded.channel), health_pb2.HealthCheckResponse
    told = stub.Watch(health_pb2.HealthCheckRequest(service="anthesis.v1.InferenceService"), timeout=60)
    assert (await told.read()).status == response.SERVING
    os.kill(loaded.engine_pid("a@1"), signal.SIGKILL)
    assert (await told.read()).status == response.NOT_SERVING
    assert (await failure(loaded.generate("a@1", PROMPT))).code() == grpc.StatusCode.UNAVAILABLE
    assert (await told.read()).status == response.SERVING
    assert len(await loaded.generated("a@1", PROMPT, max_tokens=3)) == 3
    told.cancel()


async def test_a_new_version_is_loaded_while_the_old_one_streams_to_its_end(loaded: RunningWorker, folder: Path):
    first, second = (store_version(loaded.store, name, folder) for name in ("a@1", "a@2"))
    call = loaded.generate("a@1", PROMPT, max_tokens=ENDLESS)
    begun = len((await call.read()).tokens)
    loaded.registry.assigned = [second]
    await loaded.registry.wait_for(lambda states: states == {"a@1": "UNLOADING", "a@2": "READY"})
    assert begun + sum([len(message.tokens) async for message in call]) == ENDLESS
    await loaded.registry.wait_for(lambda states: states == {"a@2": "READY"})
    assert (await failure(loaded.generate("a@1", PROMPT))).code() == grpc.StatusCode.NOT_FOUND
    assert len(await loaded.generated("a@2", PROMPT, max_tokens=3)) == 3
    await loaded.load(first)


async def test_without_the_registry_all_that_is_loaded_stays(loaded: RunningWorker):
    loaded.registry.down = True
    loaded.registry.assigned = []
    heard = len(loaded.registry.heard)
    await loaded.registry.wait_for(lambda _: len(loaded.registry.heard) > heard + 3)
    assert len(await loaded.generated("a@1", PROMPT, max_tokens=3)) == 3
    loaded.registry.assigned = [loaded.worker.version("a@1")._assigned]
    loaded.registry.down = False


async def test_a_version_that_cannot_be_loaded_is_reported_and_the_old_one_serves_on(
    loaded: RunningWorker, folder: Path
):
    good = loaded.worker.version("a@1")._assigned
    shards = [file for file in good.files if "00002" not in file[0]]
    loaded.registry.assigned = [replace(good, name="a@3", files=tuple(shards))]
    await loaded.registry.wait_for(lambda states: states.get("a@3") == "FAILED")
    models = await loaded.models()
    assert "00002" in models["a@3"].error
    assert models["a@1"].state == pb.MODEL_LOAD_STATE_READY
    error = await failure(loaded.generate("a@3", PROMPT))
    assert error.code() == grpc.StatusCode.UNAVAILABLE
    await loaded.load(good)


async def test_versions_in_int8_and_in_floats_are_served_side_by_side(
    loaded: RunningWorker, folder: Path, tmp_path: Path
):
    good = loaded.worker.version("a@1")._assigned
    quantize_checkpoint(folder, tmp_path / "int8")
    dequantize_checkpoint(tmp_path / "int8", tmp_path / "exact")
    await loaded.load(good, store_version(loaded.store, "a-int8@1", tmp_path / "int8"))
    call = loaded.generate("a-int8@1", PROMPT, max_tokens=1, logprobs=0)
    (drawn,) = [token async for message in call for token in message.tokens]
    logprobs = hf_logits(oracle(tmp_path / "exact"), torch.tensor(PROMPT))[-1].log_softmax(-1)
    assert drawn.logprob == pytest.approx(logprobs[drawn.id].item(), abs=0.05)  # the cache is in bf16
    await loaded.load(good)


async def test_a_full_queue_refuses_while_streams_go_on(folder: Path):
    async with running_worker(max_running=1, max_waiting=1, max_batched_tokens=32) as worker:
        await worker.load(store_version(worker.store, "a@1", folder))
        running = worker.generate("a@1", PROMPT, max_tokens=1500)
        await running.read()
        waiting = worker.generate("a@1", PROMPT, max_tokens=2)

        async def queued() -> bool:
            return (await worker.models())["a@1"].num_waiting == 1

        await until(queued)
        error = await failure(worker.generate("a@1", PROMPT))
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        running.cancel()
        assert sum([len(message.tokens) async for message in waiting]) == 2
