"""What the OpenAI routes refuse, and how they say so: OpenAI's statuses and error shape."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio

from tests.support.gateway_backends import MAX_SEQUENCE_TOKENS, USER_KEY, VERSION, Backends, running_gateway

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def backends(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Backends]:
    """One gateway for all: nothing here reaches a worker."""
    async with running_gateway(tmp_path_factory.mktemp("gateway")) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def client(backends: Backends) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{backends.http_url}/v1", api_key=USER_KEY, max_retries=0) as opened:
        yield opened


@pytest_asyncio.fixture(loop_scope="module")
async def http(backends: Backends) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": f"Bearer {USER_KEY}"}
    async with httpx.AsyncClient(base_url=backends.http_url, headers=headers, timeout=30) as opened:
        yield opened


async def refused(http: httpx.AsyncClient, **body: Any) -> tuple[int, dict[str, Any]]:
    answer = await http.post("/v1/completions", json={"model": "demo", "prompt": "Hello", **body})
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return answer.status_code, error


async def test_a_long_prompt_is_refused_with_openais_code(backends: Backends, http) -> None:
    status, error = await refused(http, prompt="é" * MAX_SEQUENCE_TOKENS)
    assert (status, error["code"], error["param"]) == (400, "context_length_exceeded", "prompt")
    assert f"{MAX_SEQUENCE_TOKENS} tokens at most" in error["message"]


async def test_an_unknown_model_is_404_and_raises_the_clients_not_found(http, client) -> None:
    status, error = await refused(http, model="nobody")
    assert (status, error["code"], error["param"]) == (404, "model_not_found", "model")
    with pytest.raises(openai.NotFoundError, match="no model 'nobody'"):
        await client.completions.create(model="nobody", prompt="Hello")


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"temperature": -1}, "temperature", "temperature=-1.0 is out of range; use 0 (greedy) or more"),
        ({"top_p": 2}, "top_p", "top_p=2.0 is out of range"),
        ({"top_k": -1}, "top_k", "top_k=-1 is out of range"),
        ({"top_k": 1 << 32}, "top_k", "top_k=4294967296 is out of range; use 0 (off) to 4294967295"),
        ({"seed": -1}, "seed", "seed=-1 is out of range"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"max_tokens": -1}, "max_tokens", "greater than or equal to 0"),
        ({"max_tokens": 1 << 32}, "max_tokens", "max_tokens=4294967296 is out of range; use 1 to 4294967295"),
        ({"max_tokens": "16"}, "max_tokens", "valid integer"),
        ({"logprobs": 6}, "logprobs", "less than or equal to 5"),
        ({"stop": ["a"] * 5}, "stop", "at most 4"),
        ({"stop": ""}, "stop", "empty string"),
        ({"suffix": "x"}, "suffix", "suffix is not supported"),
        ({"n": 3, "best_of": 2}, "best_of", "best_of=2 is below n=3; raise best_of or leave it out"),
        ({"temperature": 0, "best_of": 2}, "best_of", "best_of=2 with temperature=0: greedy choices are all the same"),
        ({"n": 129}, "n", "less than or equal to 128"),
        ({"best_of": 129}, "best_of", "best_of=129 is out of range; use 1 to 128"),
        ({"frequency_penalty": 2.5}, "frequency_penalty", "frequency_penalty=2.5 is out of range; use -2 to 2"),
        ({"presence_penalty": -3}, "presence_penalty", "presence_penalty=-3.0 is out of range; use -2 to 2"),
        ({"logit_bias": {"5": 101}}, "logit_bias", "logit_bias of id 5 is 101.0, out of range; use -100 to 100"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "logit_bias has the key 'x', which is no token id"),
        ({"logit_bias": {"250700": 1}}, "logit_bias", "id 250700 is not in the vocabulary"),
        ({"min_p": 1.5}, "min_p", "min_p=1.5 is out of range; use 0 (off) to 1"),
        ({"typical_p": 0}, "typical_p", "typical_p=0.0 is out of range; use above 0, at most 1"),
        ({"repetition_penalty": 0}, "repetition_penalty", "repetition_penalty=0.0 is out of range; use above 0"),
        ({"min_tokens": 17}, "min_tokens", "min_tokens=17 is above max_tokens=16; lower it or raise max_tokens"),
        ({"stop_token_ids": [250_700]}, "stop_token_ids", "id 250700 is not in the vocabulary"),
        ({"stop_token_ids": [-1]}, "stop_token_ids", "id -1 is not in the vocabulary"),
        ({"bad_words": ["x", ""]}, "bad_words", "bad_words has an empty text"),
        ({"bad_words": ["x"] * 129}, "bad_words", "bad_words has 129 texts; give at most 64"),
        ({"priority": 101}, "priority", "priority=101 is out of range; use -100 (first) to 100"),
        ({"prompt": []}, "prompt", "empty list"),
        ({"prompt": [["a"]]}, "prompt", "valid integer"),
        ({"prompt": 5}, "prompt", "prompt=5 is not allowed"),
        ({"prompt": [250_700]}, "prompt", "id 250700 is not in the vocabulary"),
        ({"prompt": [-1]}, "prompt", "id -1 is not in the vocabulary"),
        ({"prompt": ["a"] * 65, "n": 2}, "prompt", "more than 128 choices"),
        ({"model": None}, "model", "valid string"),
        ({"mirostat": 1}, "mirostat", "unrecognized request argument: mirostat"),
        ({"stream_options": {"x": 1}}, "stream_options", "unrecognized request argument: stream_options.x"),
    ],
)
async def test_a_bad_request_names_parameter_and_remedy(http, body: dict, param: str, message: str) -> None:
    status, error = await refused(http, **body)
    assert (status, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert message in error["message"]


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"input": []}, "input", "input is an empty list"),
        ({"input": ["a"] * 2049}, "input", "there are 2049 inputs; send at most 2048 at a time"),
        ({"input": [250_700]}, "input", "id 250700 is not in the vocabulary"),
        ({"input": "é" * 200}, "input", f"{MAX_SEQUENCE_TOKENS} tokens at most"),
        ({"encoding_format": "int8"}, "encoding_format", "'float' or 'base64'"),
        ({"dimensions": 64}, "dimensions", "dimensions=64 is not supported"),
        ({"pooling": "max"}, "pooling", "'mean' or 'last'"),
        ({"priority": -200}, "priority", "priority=-200 is out of range"),
        ({"inputs": "a"}, "inputs", "unrecognized request argument: inputs"),
    ],
)
async def test_bad_embeddings_name_parameter_and_remedy(http, body: dict, param: str, message: str) -> None:
    answer = await http.post("/v1/embeddings", json={"model": "demo", "input": "Hello", **body})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert message in error["message"]


@pytest.mark.parametrize(("content", "message"), [(b"{", "not JSON"), (b"", "missing"), (b"[1]", "not allowed")])
async def test_a_body_that_is_no_json_object_is_refused(http, content: bytes, message: str) -> None:
    answer = await http.post("/v1/completions", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


@pytest.mark.parametrize("field", ["model", "prompt", "stop"])
async def test_half_a_surrogate_pair_is_no_text(http, field: str) -> None:
    content = json.dumps({"model": "demo", "prompt": "x", field: "\ud800"})
    answer = await http.post("/v1/completions", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == field


async def test_a_body_without_a_model_says_so(http) -> None:
    answer = await http.post("/v1/completions", json={"prompt": "x"})
    assert answer.json()["error"]["message"] == "model is missing"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "unknown_url"),
        ("POST", "/v1/chat/completions", 404, "unknown_url"),
        ("GET", "/v1/completions", 405, "method_not_allowed"),
        ("GET", "/docs", 404, "unknown_url"),
        ("GET", "/openapi.json", 404, "unknown_url"),
        ("GET", "/v1/models/not/there", 404, "model_not_found"),
    ],
)
async def test_routes_that_are_not_there_answer_in_openais_shape(http, method, path, status, code) -> None:
    answer = await http.request(method, path)
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == code


async def test_models_are_listed_with_aliases_first_and_without_those_that_have_no_weights(client) -> None:
    assert [model.id async for model in client.models.list()] == ["demo", "anthesis/demo"]


@pytest.mark.parametrize("name", ["demo", "anthesis/demo", VERSION])
async def test_a_model_is_found_by_any_of_its_names(client, name: str) -> None:
    model = await client.models.retrieve(name)
    assert (model.id, model.created, model.object) == (name, 1_700_000_000, "model")


async def test_only_health_answers_without_a_key(backends: Backends) -> None:
    async with httpx.AsyncClient(base_url=backends.http_url) as http:
        assert (await http.get("/health")).json() == {"status": "ok"}
        asked = (
            ("GET", "/v1/models"),
            ("POST", "/v1/completions"),
            ("POST", "/v1/embeddings"),
            ("GET", "/x"),
            ("GET", "/docs"),
        )
        for method, path in asked:
            for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic x"}):
                answer = await http.request(method, path, headers=headers)
                assert answer.status_code == 401
                assert answer.json()["error"]["code"] == "invalid_api_key"


async def test_the_client_raises_its_authentication_error_for_a_wrong_key(backends: Backends) -> None:
    async with openai.AsyncOpenAI(base_url=f"{backends.http_url}/v1", api_key="wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError):
            await client.completions.create(model="demo", prompt="Hello")


async def test_a_body_of_too_many_bytes_is_refused(http) -> None:
    answer = await http.post("/v1/completions", json={"model": "demo", "prompt": "x" * (17 << 20)})
    assert answer.status_code == 413
    assert "send at most 16777216" in answer.json()["error"]["message"]


async def test_a_content_length_that_is_no_number_is_a_bad_request(backends: Backends) -> None:
    host, _, port = backends.http_url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {USER_KEY}\r\ncontent-length: x\r\n\r\n"
    writer.write(head.encode())
    assert b" 400 " in await reader.readline()
    writer.close()
