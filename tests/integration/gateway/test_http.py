"""OpenAI's completions over real HTTP, with the `openai` client and by hand."""

import asyncio
import base64
import json
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import openai
import pytest
from anthesis.v1 import inference_pb2
from anthesis.v1.tokenizer_pb2 import TokenIds

from tests.support.gateway_backends import USER_KEY, VERSION, Backends, running_gateway

END_ID = 2


@pytest.fixture
async def backends(tmp_path: Path) -> AsyncIterator[Backends]:
    async with running_gateway(tmp_path) as running:
        yield running


@pytest.fixture
async def client(backends: Backends) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{backends.http_url}/v1", api_key=USER_KEY, max_retries=0) as opened:
        yield opened


@pytest.fixture
async def http(backends: Backends) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": f"Bearer {USER_KEY}"}
    async with httpx.AsyncClient(base_url=backends.http_url, headers=headers, timeout=30) as opened:
        yield opened


async def refused(http: httpx.AsyncClient, **body: Any) -> tuple[int, dict[str, Any]]:
    answer = await http.post("/v1/completions", json={"model": "demo", "prompt": "Hello", **body})
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return answer.status_code, error


async def test_a_completion_has_text_reason_usage_and_the_version(backends: Backends, client) -> None:
    backends.script(backends.ids(" world 人"), [END_ID])
    completion = await client.completions.create(model="demo", prompt="Hello")
    (choice,) = completion.choices
    assert choice.text == " world 人"
    assert choice.finish_reason == "stop"
    assert choice.logprobs is None
    assert completion.model == VERSION
    assert completion.object == "text_completion"
    assert completion.id.startswith("cmpl-")
    assert completion.usage.prompt_tokens == len(backends.ids("Hello"))
    assert completion.usage.completion_tokens == len(backends.ids(" world 人")) + 1
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + completion.usage.completion_tokens


async def test_a_stream_gives_the_text_of_the_whole(backends: Backends, client) -> None:
    backends.script(*([token_id] for token_id in backends.byte_ids("é 人")), [END_ID])
    stream = await client.completions.create(
        model="demo", prompt="Hello", stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert [chunk.choices[0].text for chunk in chunks[:-1]] == ["é", " ", "人", ""]
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None, None, None, "stop"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 7
    assert len({chunk.id for chunk in chunks}) == 1


async def test_a_stream_is_events_ended_by_done(backends: Backends, http) -> None:
    backends.script(backends.ids("ok"))
    answer = await http.post("/v1/completions", json={"model": "demo", "prompt": "x", "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    *events, done, end = answer.text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    assert all("usage" not in json.loads(event.removeprefix("data: ")) for event in events)


async def test_defaults_are_openais(backends: Backends, client) -> None:
    backends.script([5])
    await client.completions.create(model="demo", prompt="Hello")
    sampling = backends.worker.requests[0].sampling
    assert sampling.max_tokens == 16
    assert not sampling.HasField("temperature")  # the worker's default is 1, as OpenAI's


async def test_settings_reach_the_worker_also_those_that_openai_lacks(backends: Backends, client) -> None:
    backends.script([5])
    await client.completions.create(
        model="demo",
        prompt="Hello",
        max_tokens=3,
        temperature=0,
        top_p=0.5,
        seed=7,
        user="someone",
        presence_penalty=0.5,
        frequency_penalty=-0.25,
        logit_bias={"7": -100, "8": 1.5},
        extra_body={
            "top_k": 9,
            "repetition_penalty": 1.5,
            "min_p": 0.125,
            "typical_p": 0.75,
            "min_tokens": 2,
            "stop_token_ids": [9, 8],
            "bad_words": ["Hello"],
            "priority": -7,
        },
    )
    (request,) = backends.worker.requests
    assert request.sampling == inference_pb2.SamplingParams(
        max_tokens=3,
        temperature=0,
        top_p=0.5,
        seed=7,
        presence_penalty=0.5,
        frequency_penalty=-0.25,
        logit_bias={7: -100, 8: 1.5},
        top_k=9,
        repetition_penalty=1.5,
        min_p=0.125,
        typical_p=0.75,
        min_tokens=2,
        stop_ids=[9, 8, END_ID],
        bad_words=[TokenIds(ids=backends.ids("Hello")), TokenIds(ids=backends.ids(" Hello"))],
    )
    assert (request.priority, request.client) == (-7, "id")


async def test_ignore_eos_leaves_the_end_token_out_of_the_stop_ids(backends: Backends, client) -> None:
    backends.script(backends.ids("on"), [END_ID], backends.ids(" and on"))
    completion = await client.completions.create(model="demo", prompt="Hello", extra_body={"ignore_eos": True})
    assert completion.choices[0].text == "on and on"
    assert not backends.worker.requests[0].sampling.stop_ids


async def test_it_answers_what_vllms_load_client_posts(backends: Backends, http) -> None:
    """The body of `vllm bench serve` (0.11: async_request_openai_completions) and what it reads of the answer."""
    backends.script(backends.ids("one"), backends.ids(" two"), [END_ID], backends.ids(" three"))
    body = {
        "model": "demo",
        "prompt": backends.ids("Hello"),
        "repetition_penalty": 1.0,
        "max_tokens": 50,
        "logprobs": None,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
        "temperature": 0.0,
    }
    answer = await http.post("/v1/completions", json=body)
    *chunks, done, end = answer.text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    chunks = [json.loads(chunk.removeprefix("data: ")) for chunk in chunks]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks[:-1]) == "one two three"
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["prompt_tokens"] == len(backends.ids("Hello"))
    assert chunks[-1]["usage"]["completion_tokens"] == sum(map(len, backends.worker.script))


@pytest.mark.parametrize("stop", ["END", ["END", "never"]])
async def test_stop_strings_end_the_text(backends: Backends, client, stop) -> None:
    backends.script(backends.ids("one E"), backends.ids("ND two"))
    completion = await client.completions.create(model="demo", prompt="Hello", stop=stop)
    assert completion.choices[0].text == "one "
    assert completion.choices[0].finish_reason == "stop"


async def test_prompts_may_be_texts_or_ids_alone_or_in_lists(backends: Backends, client) -> None:
    backends.script([5])
    hello, other = backends.ids("Hello"), [7, 8]
    for prompt, sent in (("Hello", [hello]), (["Hello", "a"], [hello, backends.ids("a")]), (hello, [hello])):
        completion = await client.completions.create(model="demo", prompt=prompt)
        assert sorted(list(request.prompt_ids) for request in backends.worker.requests) == sorted(sent)
        assert [choice.index for choice in completion.choices] == list(range(len(sent)))
        backends.worker.requests.clear()
    completion = await client.completions.create(model="demo", prompt=[hello, other])
    assert sorted(list(request.prompt_ids) for request in backends.worker.requests) == sorted([hello, other])


async def test_each_prompt_has_n_choices_of_one_call_to_the_worker(backends: Backends, client) -> None:
    backends.script(backends.ids("ok"))
    backends.worker.scripts[1] = [backends.ids("no"), backends.ids("pe")]
    completion = await client.completions.create(model="demo", prompt=["a", "b"], n=3, seed=10, echo=True)
    assert [choice.text for choice in completion.choices] == ["aok", "anope", "aok", "bok", "bnope", "bok"]
    assert [choice.index for choice in completion.choices] == list(range(6))
    assert [(request.sampling.n, request.sampling.seed) for request in backends.worker.requests] == [(3, 10)] * 2
    assert completion.usage.prompt_tokens == len(backends.ids("a")) + len(backends.ids("b"))
    drawn = sum(len(backends.ids(text)) for text in ("ok", "no", "pe", "ok"))
    assert completion.usage.completion_tokens == 2 * drawn


async def test_choices_stream_under_their_index(backends: Backends, client) -> None:
    backends.script(backends.ids("one"), backends.ids(" two"))
    backends.worker.scripts[1] = [backends.ids("other")]
    stream = await client.completions.create(model="demo", prompt="Hello", n=2, stream=True)
    texts, reasons = ["", ""], [None, None]
    async for chunk in stream:
        (choice,) = chunk.choices
        texts[choice.index] += choice.text
        reasons[choice.index] = choice.finish_reason
    assert (texts, reasons) == (["one two", "other"], ["length", "length"])


async def test_the_best_of_several_is_the_workers_choice(backends: Backends, client) -> None:
    backends.script(backends.ids("ok"))
    completion = await client.completions.create(model="demo", prompt="Hello", n=1, best_of=4)
    assert [choice.text for choice in completion.choices] == ["ok"]
    sampling = backends.worker.requests[0].sampling
    assert (sampling.n, sampling.best_of) == (1, 4)


async def test_with_stop_strings_the_gateway_chooses_the_best_by_what_is_left_of_the_text(backends, client) -> None:
    """The worker's choice number i has log-probability -(i + 1), but the scripts below turn that round."""
    backends.script(backends.ids("long and winding"))
    backends.worker.logprob = 1.0  # so that later choices have the higher ones
    backends.worker.scripts[2] = [backends.ids("best END"), backends.ids("never")]
    completion = await client.completions.create(model="demo", prompt="Hello", n=2, best_of=3, stop="END", seed=3)
    assert [choice.text for choice in completion.choices] == ["best ", "long and winding"]
    assert [choice.finish_reason for choice in completion.choices] == ["stop", "length"]
    assert completion.choices[0].logprobs is None
    sampling = backends.worker.requests[0].sampling
    assert (sampling.n, sampling.HasField("best_of"), sampling.logprobs) == (3, False, 0)


async def test_a_stop_string_ends_its_choice_and_the_last_of_them_frees_the_worker(backends, client) -> None:
    backends.worker.pause_after = 2
    backends.script(backends.ids("a END"), backends.ids("b"), backends.ids("c"))
    backends.worker.scripts[1] = [backends.ids("d"), backends.ids(" END"), backends.ids("e")]
    completion = await client.completions.create(model="demo", prompt="Hello", n=2, stop="END")
    assert [choice.text for choice in completion.choices] == ["a ", "d "]
    await asyncio.wait_for(backends.worker.cancelled.wait(), 10)


async def test_logprobs_have_openais_legacy_shape(backends: Backends, client) -> None:
    cut = backends.byte_ids("é")
    backends.script([*backends.ids("ok"), *cut])
    completion = await client.completions.create(model="demo", prompt="Hello", logprobs=2)
    logprobs = completion.choices[0].logprobs
    num_ok = len(backends.ids("ok"))
    assert "".join(logprobs.tokens[:num_ok]) == "ok"
    assert logprobs.tokens[num_ok:] == ["bytes:\\xc3", "bytes:\\xa9"]
    assert logprobs.token_logprobs == [-0.5] * (num_ok + 2)
    assert logprobs.text_offset[-2:] == [2, 2]
    first = logprobs.top_logprobs[0]
    assert first[logprobs.tokens[0]] == -0.5
    assert len(first) == 3


async def test_zero_logprobs_give_the_drawn_token_alone(backends: Backends, client) -> None:
    backends.script([backends.ids("o")[0]])
    completion = await client.completions.create(model="demo", prompt="Hello", logprobs=0)
    assert completion.choices[0].logprobs.top_logprobs == [{"o": -0.5}]


async def test_echo_with_logprobs_scores_the_prompt_and_draws_nothing_when_so_asked(backends, client) -> None:
    prompt = "Hello 人 world"
    ids = backends.ids(prompt)
    completion = await client.completions.create(model="demo", prompt=prompt, echo=True, logprobs=1, max_tokens=0)
    choice = completion.choices[0]
    assert not backends.worker.requests
    assert choice.text == prompt
    assert choice.finish_reason == "length"
    assert choice.logprobs.token_logprobs == [None, *(-token_id / 1024 for token_id in ids[1:])]
    assert choice.logprobs.top_logprobs[0] is None
    likeliest = {backends.vocabulary.tokens[4].decode(): -4 / 1024}
    assert all(top.items() >= likeliest.items() for top in choice.logprobs.top_logprobs[1:])
    assert choice.logprobs.text_offset[0] == 0
    assert [prompt[offset] for offset in choice.logprobs.text_offset] == [
        prompt[span[0]] for span in backends.tokenizer.encode([prompt], with_offsets=True)[0].char_offsets
    ]
    assert completion.usage.completion_tokens == 0


async def test_echo_with_logprobs_on_token_ids_and_one_new_token_is_what_lm_eval_sends(backends, client) -> None:
    context, continuation = backends.ids("Hello"), backends.ids(" world")
    backends.script([backends.ids("!")[0]])
    completion = await client.completions.create(
        model="demo",
        prompt=[context + continuation, context],
        echo=True,
        logprobs=1,
        max_tokens=1,
        temperature=0,
        seed=1234,
    )
    first, second = completion.choices
    assert sum(first.logprobs.token_logprobs[len(context) : -1]) == pytest.approx(-sum(continuation) / 1024)
    assert first.text == "Hello world!"
    assert second.text == "Hello!"
    assert first.logprobs.text_offset[-1] == len("Hello world")
    assert len(backends.worker.requests) == 2  # prompt and output in one call each
    assert not backends.worker.scored


async def test_an_echoed_prompt_has_as_many_alternatives_as_asked_for(backends, client) -> None:
    backends.script(backends.ids("!"))
    completion = await client.completions.create(model="demo", prompt="Hello 人", echo=True, logprobs=3, max_tokens=1)
    prompt_tops = completion.choices[0].logprobs.top_logprobs[:-1]
    assert prompt_tops[0] is None
    assert all(len(top) >= 3 for top in prompt_tops[1:])
    assert backends.worker.requests[0].sampling.prompt_logprobs == 3


async def test_embeddings_come_as_numbers_and_as_base64(backends: Backends, client) -> None:
    """Unless told otherwise the client asks for base64 and decodes it."""
    texts = ["Hello", "a b"]
    expected = [[float(len(backends.ids(text))), float(backends.ids(text)[0])] for text in texts]
    for settings in ({}, {"encoding_format": "float"}, {"encoding_format": "base64"}):
        answer = await client.embeddings.create(model="demo", input=texts, **settings)
        vectors = [item.embedding for item in answer.data]
        if settings.get("encoding_format") == "base64":
            vectors = [list(struct.unpack("<2f", base64.b64decode(vector))) for vector in vectors]
        assert vectors == expected
        assert [item.index for item in answer.data] == [0, 1]
        assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(int(length) for length, _ in expected)
        assert answer.model == VERSION


async def test_ids_are_embedded_alone_and_in_lists(backends: Backends, client) -> None:
    for given, inputs in (("Hello", [backends.ids("Hello")]), ([5, 6], [[5, 6]]), ([[5, 6], [7]], [[5, 6], [7]])):
        await client.embeddings.create(model="demo", input=given, extra_body={"pooling": "last", "priority": 3})
        asked = backends.worker.embedded.pop()
        assert [list(item.ids) for item in asked.inputs] == inputs
        assert (asked.pooling, asked.priority, asked.client) == (inference_pb2.POOLING_LAST, 3, "id")


@pytest.mark.parametrize(
    ("code", "status", "openai_code"),
    [
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 429, "rate_limit_exceeded"),
        (grpc.StatusCode.UNAVAILABLE, 503, "service_unavailable"),
        (grpc.StatusCode.INTERNAL, 500, None),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_the_workers_errors_have_a_status_of_their_own(
    backends: Backends, http, code, status: int, openai_code: str | None, stream: bool
) -> None:
    backends.worker.fail_before = (code, "as told")
    got, error = await refused(http, stream=stream)
    assert (got, error["code"]) == (status, openai_code)
    assert "as told" in error["message"]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/embeddings"])
async def test_a_full_worker_says_when_to_try_again(backends: Backends, http, path: str) -> None:
    backends.worker.fail_before = (grpc.StatusCode.RESOURCE_EXHAUSTED, "256 requests wait already")
    backends.worker.trailing = (("grpc-retry-pushback-ms", "1200"),)
    answer = await http.post(path, json={"model": "demo", "prompt" if "compl" in path else "input": "Hello"})
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "2"  # whole seconds
    assert answer.json()["error"]["message"] == "256 requests wait already"


async def test_no_ready_worker_is_503_with_the_remedy(backends: Backends, http) -> None:
    backends.registry.workers.clear()
    status, error = await refused(http)
    assert status == 503
    assert "anthesis deploy" in error["message"]


async def test_an_error_in_the_middle_of_a_stream_is_its_last_event(backends: Backends, client) -> None:
    backends.script(backends.ids("first"), backends.ids(" second"))
    backends.worker.fail_after = (grpc.StatusCode.UNAVAILABLE, "the engine died")
    stream = await client.completions.create(model="demo", prompt="Hello", stream=True)
    texts = []
    with pytest.raises(openai.APIError, match="the engine died"):
        async for chunk in stream:
            texts.append(chunk.choices[0].text)
    assert texts == ["first", " second"]


async def test_calls_under_way_end_whole_when_the_gateway_is_told_to_stop(backends: Backends, client) -> None:
    backends.worker.pause_after = 1
    backends.script(backends.ids("first"), backends.ids(" second"))
    whole = asyncio.create_task(client.completions.create(model="demo", prompt="Hello"))
    stream = await client.completions.create(model="demo", prompt="Hello", stream=True)
    chunks = aiter(stream)
    texts = [(await anext(chunks)).choices[0].text]
    await asyncio.wait_for(backends.worker.paused.wait(), 10)
    stopping = asyncio.create_task(backends.gateway.stop())
    await asyncio.sleep(0)
    backends.worker.resume.set()
    texts += [chunk.choices[0].text async for chunk in chunks]
    assert texts == ["first", " second"]
    assert (await whole).choices[0].text == "first second"
    await stopping
    with pytest.raises(openai.APIConnectionError):
        await client.completions.create(model="demo", prompt="Hello")


async def test_a_client_that_leaves_a_stream_cancels_every_generation(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as backends:
        backends.worker.pause_after = 1
        backends.script(backends.ids("first"), backends.ids("never"))
        async with openai.AsyncOpenAI(base_url=f"{backends.http_url}/v1", api_key=USER_KEY) as client:
            stream = await client.completions.create(model="demo", prompt="Hello", stream=True)
            assert (await anext(aiter(stream))).choices[0].text == "first"
            await stream.close()
            await asyncio.wait_for(backends.worker.cancelled.wait(), 10)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_before_the_answer_cancels_the_generation(backends, http, stream: bool) -> None:
    backends.worker.pause_after = 0
    backends.script([5])
    body = {"model": "demo", "prompt": "Hello", "stream": stream}
    asking = asyncio.create_task(http.post("/v1/completions", json=body))
    await asyncio.wait_for(backends.worker.paused.wait(), 10)
    asking.cancel()
    await asyncio.wait_for(backends.worker.cancelled.wait(), 10)
