"""The SDK and the command over a real gateway, whose workers draw what a test says."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from anthesis import AsyncClient, SamplingParams, ScoreItem, Settings, TokenIds
from anthesis.errors import DeadlineExceededError, InvalidArgumentError, ResourceExhaustedError
from anthesis.v1 import inference_pb2

from services.common.settings import ROOT
from tests.support.gateway_backends import USER_KEY, VERSION, Backends, running_gateway

END_ID = 2


@pytest.fixture
async def backends(tmp_path: Path) -> AsyncIterator[Backends]:
    async with running_gateway(tmp_path) as running:
        yield running


@pytest.fixture
async def client(backends: Backends) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(Settings(api_key=USER_KEY, gateway_address=backends.grpc_address)) as opened:
        yield opened


async def anthesis(backends: Backends, *args: object) -> subprocess.CompletedProcess[str]:
    env = {"ANTHESIS_GATEWAY_ADDRESS": backends.grpc_address, "ANTHESIS_API_KEY": USER_KEY, "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-m", "anthesis.cli", *map(str, args)]
    return await asyncio.to_thread(
        subprocess.run, command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=60
    )


async def test_all_that_can_be_asked_of_a_generation_reaches_the_worker(backends: Backends, client: AsyncClient):
    backends.script(backends.ids("ok"))
    sampling = SamplingParams(
        temperature=0.5,
        min_p=0.25,
        typical_p=0.5,
        presence_penalty=1,
        frequency_penalty=-1,
        logit_bias={7: 1.5},
        stop_sequences=[TokenIds(ids=[7, 8])],
        min_tokens=1,
        n=2,
        best_of=3,
        prompt_logprobs=1,
    )
    answers = await client.choices(
        "demo", "Hello 人", sampling, bad_words=["no"], ignore_eos=True, priority=-5, stop=[], timeout_s=30
    )
    sampling.bad_words.extend(TokenIds(ids=backends.ids(text)) for text in ("no", " no"))
    (request,) = backends.worker.requests
    assert request.sampling == sampling
    assert (request.priority, request.client) == (-5, "id")
    assert 0 < backends.worker.seconds_left[0] < 31  # grpc-timeout is rounded up on its way
    assert [answer.text for answer in answers] == ["ok", "ok"]
    assert b"".join(token.bytes for token in answers[0].prompt_tokens).decode() == "Hello 人"
    assert answers[1].prompt_tokens[1].logprob < 0


async def test_choices_come_apart_and_complete_gives_the_first(backends: Backends, client: AsyncClient):
    backends.script(backends.ids("one"), backends.ids(" two"))
    backends.worker.scripts[1] = [backends.ids("other"), [END_ID]]
    sampling = SamplingParams(n=2)
    first, second = await client.choices("demo", "Hello", sampling)
    assert (first.text, second.text) == ("one two", "other")
    assert second.finish_reason == inference_pb2.FINISH_REASON_STOP
    assert second.usage.completion_tokens == len(backends.ids("other")) + 1
    assert (await client.complete("demo", "Hello", sampling)).text == "one two"


async def test_texts_are_embedded(backends: Backends, client: AsyncClient):
    answer = await client.embed("demo", ["Hello", "a"], pooling="last", normalize=False, priority=4)
    assert [embedding.values[0] for embedding in answer.embeddings] == [len(backends.ids("Hello")), 1]
    (asked,) = backends.worker.embedded
    assert (asked.pooling, asked.normalize, asked.priority) == (inference_pb2.POOLING_LAST, False, 4)


async def test_a_score_may_be_urgent(backends: Backends, client: AsyncClient):
    await client.score("demo", [ScoreItem(context="a", text="b")], priority=-1)
    assert backends.worker.scored[0].priority == -1


async def test_a_full_worker_says_when_to_try_again(backends: Backends, client: AsyncClient):
    backends.worker.fail_before = (grpc.StatusCode.RESOURCE_EXHAUSTED, "256 requests wait already")
    backends.worker.trailing = (("grpc-retry-pushback-ms", "1500"),)
    for call in (client.complete("demo", "Hello"), client.embed("demo", ["Hello"])):
        with pytest.raises(ResourceExhaustedError, match="256 requests wait") as caught:
            await call
        assert caught.value.retry_after_s == 1.5


async def test_a_generation_past_its_time_is_cancelled(backends: Backends, client: AsyncClient):
    backends.worker.pause_after = 0
    backends.script([5])
    with pytest.raises(DeadlineExceededError):
        await client.complete("demo", "Hello", timeout_s=0.5)
    await asyncio.wait_for(backends.worker.cancelled.wait(), 10)


async def test_what_contradicts_itself_is_refused_with_value_and_remedy(backends: Backends, client: AsyncClient):
    with pytest.raises(InvalidArgumentError, match="best_of=2 is below n=3; raise best_of or leave it out"):
        await client.complete("demo", "Hello", SamplingParams(n=3, best_of=2))
    assert not backends.worker.requests


async def test_the_command_sends_every_option(backends: Backends):
    backends.script(backends.ids("ok"))
    done = await anthesis(
        backends,
        *("generate", "demo", "Hello", "--min-p", 0.25, "--typical-p", 0.5, "--presence-penalty", 1),
        *("--frequency-penalty", -1, "--logit-bias", "7=1.5", "--logit-bias", "8=-100", "--bad-word", "no"),
        *("--n", 2, "--best-of", 3, "--min-tokens", 1, "--ignore-eos", "--priority", 7),
    )
    assert done.stdout == "[1] ok\n[2] ok\n", done.stderr
    (request,) = backends.worker.requests
    assert request.sampling == inference_pb2.SamplingParams(
        min_p=0.25,
        typical_p=0.5,
        presence_penalty=1,
        frequency_penalty=-1,
        logit_bias={7: 1.5, 8: -100},
        bad_words=[TokenIds(ids=backends.ids(text)) for text in ("no", " no")],
        n=2,
        best_of=3,
        min_tokens=1,
        max_tokens=64,
    )
    assert request.priority == 7


async def test_the_command_embeds_and_prints_json(backends: Backends):
    done = await anthesis(backends, "embed", "demo", "Hello", "a", "--no-normalize")
    answer = json.loads(done.stdout)
    assert [vector[0] for vector in answer["embeddings"]] == [len(backends.ids("Hello")), 1]
    assert (answer["model_version"], answer["usage"]["prompt_tokens"]) == (VERSION, len(backends.ids("Hello")) + 1)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--logit-bias", "x"), "'x' is not ID=BIAS"),
        (("--n", 0), "greater than or equal to 1"),
        (("--n", 3, "--best-of", 2), "best_of=2 is below n=3; raise best_of or leave it out"),
        (("--min-tokens", 65), "min_tokens=65 is above max_tokens=64; lower it or raise max_tokens"),
        (("--logit-bias", "5=101"), "logit_bias of id 5 is 101.0, out of range; use -100 to 100"),
        (("--logit-bias", "600=1"), "id 600 is not in the vocabulary"),
        (("--bad-word", ""), "bad_words has an empty text"),
    ],
)
async def test_the_command_refuses_what_cannot_be_meant(backends: Backends, args: tuple[object, ...], message: str):
    done = await anthesis(backends, "generate", "demo", "Hello", *args)
    assert done.returncode != 0
    assert message in " ".join(done.stderr.replace("│", " ").split())
    assert not backends.worker.requests
