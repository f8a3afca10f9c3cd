"""What the gateway asks about licences, and how its answers tell whose words they are."""

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import httpx
import openai
import pytest
from anthesis import AsyncClient, Settings
from anthesis.channel import open_aio_channel
from anthesis.v1 import generation_pb2 as pb
from anthesis.v1.generation_pb2_grpc import GenerationServiceStub

from tests.support.gateway_backends import SERVICE_KEY, USER_KEY, VERSION, Backends, running_gateway

WORDS = "'user-key' has first to accept what anthesis/demo@1 is under. Licence bigscience-rail-1.0 forbids, …"
LICENCES = ["apache-2.0", "mit"]


@pytest.fixture
async def backends(tmp_path: Path) -> AsyncIterator[Backends]:
    async with running_gateway(tmp_path) as running:
        running.script(running.ids(" world"))
        yield running


@pytest.fixture
async def http(backends: Backends) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": f"Bearer {USER_KEY}"}
    async with httpx.AsyncClient(base_url=backends.http_url, headers=headers, timeout=30) as opened:
        yield opened


@pytest.fixture
async def client(backends: Backends) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{backends.http_url}/v1", api_key=USER_KEY, max_retries=0) as opened:
        yield opened


async def generate(backends: Backends, key: str = USER_KEY, **request) -> list[pb.GenerateResponse]:
    async with open_aio_channel(backends.grpc_address, key) as channel:
        call = GenerationServiceStub(channel).Generate(pb.GenerateRequest(model="demo", prompt="Hello", **request))
        return [response async for response in call]


async def test_who_has_not_accepted_computes_nothing_over_grpc_and_is_told_how_to(backends: Backends) -> None:
    backends.licences.refused[USER_KEY] = WORDS
    async with open_aio_channel(backends.grpc_address, USER_KEY) as channel:
        stub = GenerationServiceStub(channel)
        item = pb.ScoreItem(context="a", text="b")
        for call in (
            stub.Generate(pb.GenerateRequest(model="demo", prompt="Hello")).read(),
            stub.Score(pb.ScoreRequest(model="demo", items=[item])),
            stub.Embed(pb.EmbedRequest(model="demo", texts=["a"])),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call
            assert (refused.value.code(), refused.value.details()) == (grpc.StatusCode.FAILED_PRECONDITION, WORDS)
        assert (await stub.Tokenize(pb.TokenizeRequest(model="demo", text="Hello"))).ids
        assert (await stub.Count(pb.CountRequest(model="demo", texts=["Hello"]))).counts
    assert backends.worker.requests == backends.worker.scored == backends.worker.embedded == []


async def test_a_service_asks_for_whoever_it_serves_and_accepts_nothing_itself(backends: Backends) -> None:
    backends.licences.refused[SERVICE_KEY] = WORDS
    headers = {"authorization": f"Bearer {SERVICE_KEY}"}
    async with httpx.AsyncClient(base_url=backends.http_url, headers=headers) as http:
        answer = await http.post("/v1/completions", json={"model": "demo", "prompt": "Hello"})
    assert answer.status_code == 200
    assert backends.licences.asked == []


async def test_the_openai_client_gets_a_403_with_a_code_of_its_own(backends: Backends, client, http) -> None:
    backends.licences.refused[USER_KEY] = WORDS
    for stream in (False, True):
        with pytest.raises(openai.PermissionDeniedError) as refused:
            await client.completions.create(model="demo", prompt="Hello", stream=stream)
        assert (refused.value.code, refused.value.param) == ("licence_not_accepted", "model")
        assert WORDS in refused.value.message
    with pytest.raises(openai.PermissionDeniedError):
        await client.embeddings.create(model="demo", input="Hello")
    answer = await http.post("/v1/completions", json={"model": "demo", "prompt": "Hello"})
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (answer.status_code, error["message"]) == (403, WORDS)
    assert backends.worker.requests == backends.worker.embedded == []


async def test_an_acceptance_counts_at_once_and_is_remembered(backends: Backends, client) -> None:
    backends.licences.refused[USER_KEY] = WORDS
    for _ in range(2):
        with pytest.raises(openai.PermissionDeniedError):
            await client.completions.create(model="demo", prompt="Hello")
    assert backends.licences.asked == [(USER_KEY, VERSION)] * 2  # a refusal is asked for anew
    del backends.licences.refused[USER_KEY]
    for _ in range(3):
        assert (await client.completions.create(model="demo", prompt="Hello")).choices[0].text == " world"
    assert len(await generate(backends)) > 0
    assert backends.licences.asked == [(USER_KEY, VERSION)] * 3


async def test_messages_say_that_text_is_machine_generated_and_the_last_under_which_licences(backends) -> None:
    responses = await generate(backends, sampling={"prompt_logprobs": 0, "logprobs": 0})
    prompt, *drawn = responses
    assert prompt.prompt_tokens
    assert not prompt.machine_generated
    assert all(response.machine_generated for response in drawn)
    assert list(drawn[-1].licences) == LICENCES
    async with AsyncClient(Settings(api_key=USER_KEY, gateway_address=backends.grpc_address)) as sdk:
        completion = await sdk.complete("demo", "Hello")
    assert (completion.machine_generated, list(completion.licences)) == (True, LICENCES)


async def test_headers_say_so_on_the_openai_routes(backends: Backends, http, client) -> None:
    for stream in (False, True):
        answer = await http.post("/v1/completions", json={"model": "demo", "prompt": "Hello", "stream": stream})
        assert answer.headers["x-anthesis-machine-generated"] == "true"
        assert answer.headers["x-anthesis-licences"] == "apache-2.0, mit"
    raw = await client.completions.with_raw_response.create(model="demo", prompt="Hello")
    assert raw.headers["x-anthesis-machine-generated"] == "true"
    assert raw.parse().choices[0].text == " world"
    embedded = await http.post("/v1/embeddings", json={"model": "demo", "input": "Hello"})
    assert embedded.headers["x-anthesis-licences"] == "apache-2.0, mit"
    assert "x-anthesis-machine-generated" not in embedded.headers
