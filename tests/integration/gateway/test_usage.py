"""What the gateway reports of real calls, and how it refuses a project that has used what it may."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import grpc
import httpx
import pytest
from anthesis.channel import open_aio_channel
from anthesis.v1 import generation_pb2 as pb
from anthesis.v1.generation_pb2_grpc import GenerationServiceStub

from services.common.server import RETRY_PUSHBACK
from tests.support.gateway_backends import PROJECT_KEY, SERVICE_KEY, USER_KEY, VERSION, Backends, running_gateway


@pytest.fixture
async def backends(tmp_path: Path) -> AsyncIterator[Backends]:
    async with running_gateway(tmp_path) as running:
        yield running


@pytest.fixture
async def stub(backends: Backends) -> AsyncIterator[GenerationServiceStub]:
    async with open_aio_channel(backends.grpc_address, PROJECT_KEY) as channel:
        yield GenerationServiceStub(channel)


@pytest.fixture
async def http(backends: Backends) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": f"Bearer {PROJECT_KEY}"}
    async with httpx.AsyncClient(base_url=backends.http_url, headers=headers, timeout=30) as opened:
        yield opened


async def told(backends: Backends) -> dict[tuple[str, str, str, str], tuple[int, int, int]]:
    await backends.gateway.meter.flush()
    sums: dict[tuple[str, str, str, str], tuple[int, int, int]] = {}
    for row in backends.projects.told:
        key = (row.project, row.principal, row.model_version, row.language)
        before = sums.get(key, (0, 0, 0))
        counts = (row.requests, row.prompt_tokens, row.completion_tokens)
        sums[key] = tuple(map(sum, zip(before, counts, strict=True)))  # type: ignore[assignment]
    return sums


def lab(language: str = "") -> tuple[str, str, str, str]:
    return "lab", PROJECT_KEY, VERSION, language


async def test_the_report_has_the_tokens_that_the_answers_say(backends: Backends, stub, http) -> None:
    backends.script(backends.ids("Hello"), backends.ids(" world"))
    parts = [part async for part in stub.Generate(pb.GenerateRequest(model="demo", prompt="Hello"))]
    usage = parts[-1].usage
    assert await told(backends) == {lab(): (1, usage.prompt_tokens, usage.completion_tokens)}
    body = {"model": "demo", "prompt": ["Hello", "you"], "n": 2}
    answer = await http.post("/v1/completions", json=body, headers={"x-anthesis-language": "fr"})
    used = answer.json()["usage"]
    assert (await told(backends))[lab("fr")] == (1, used["prompt_tokens"], used["completion_tokens"])
    metadata = (("x-anthesis-language", "sw"),)
    embedded = await stub.Embed(pb.EmbedRequest(model="demo", texts=["Hello", "you"]), metadata=metadata)
    assert (await told(backends))[lab("sw")] == (1, embedded.usage.prompt_tokens, 0)
    async with open_aio_channel(backends.grpc_address, USER_KEY) as channel:
        await GenerationServiceStub(channel).Count(pb.CountRequest(model="demo", texts=["Hello"]))
    assert {key[0] for key in await told(backends)} == {"lab"}  # counting tokens is no usage


async def test_a_stream_that_is_left_counts_what_had_come(backends: Backends, stub) -> None:
    backends.script(backends.ids("Hello"), backends.ids(" world"))
    backends.worker.pause_after = 1
    call = stub.Generate(pb.GenerateRequest(model="demo", prompt="Hello"))
    first = await anext(aiter(call))
    call.cancel()
    await backends.worker.cancelled.wait()
    while (await told(backends))[lab()][2] == 0:  # the gateway ends its own side after the worker's
        pass
    assert (await told(backends))[lab()][2] == len(first.tokens)


async def test_who_has_used_what_it_may_is_refused_with_a_delay(backends: Backends, stub, http) -> None:
    backends.script(backends.ids("Hello"))
    backends.projects.allowance.requests_per_minute = 1
    async with aclosing(stub.Generate(pb.GenerateRequest(model="demo", prompt="Hello")).__aiter__()) as parts:
        assert [part async for part in parts]
    with pytest.raises(grpc.aio.AioRpcError, match="project 'lab' may make 1 requests a minute and has") as refused:
        await stub.Embed(pb.EmbedRequest(model="demo", texts=["Hello"]))
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert 0 < int(dict(refused.value.trailing_metadata())[RETRY_PUSHBACK]) <= 60_000
    answer = await http.post("/v1/completions", json={"model": "demo", "prompt": "Hello"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "insufficient_quota")
    assert 0 < int(answer.headers["retry-after"]) <= 60
    assert (await http.get("/v1/models")).status_code == 200  # looking is no request of this kind
    async with httpx.AsyncClient(base_url=backends.http_url, headers={"authorization": f"Bearer {USER_KEY}"}) as other:
        assert (await other.post("/v1/completions", json={"model": "demo", "prompt": "Hello"})).status_code == 200


async def test_a_service_is_counted_for_the_project_that_it_names_and_nobody_else_is(backends: Backends) -> None:
    backends.script(backends.ids("Hello"))
    for key, project in ((SERVICE_KEY, "lab"), (USER_KEY, "")):
        headers = {"authorization": f"Bearer {key}", "x-anthesis-project": "lab"}
        async with httpx.AsyncClient(base_url=backends.http_url, headers=headers) as caller:
            assert (await caller.post("/v1/completions", json={"model": "demo", "prompt": "Hi"})).status_code == 200
        assert (project, key) in {used[:2] for used in await told(backends)}


async def test_a_language_that_is_none_is_refused(http) -> None:
    body = {"model": "demo", "prompt": "Hello"}
    answer = await http.post("/v1/completions", json=body, headers={"x-anthesis-language": "two words"})
    assert answer.status_code == 400
    assert "x-anthesis-language='two words' is not allowed" in answer.json()["error"]["message"]
