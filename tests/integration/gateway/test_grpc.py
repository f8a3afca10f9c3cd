"""GenerationService: text in, text out, over real gRPC through a real tokenizer service."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from anthesis.channel import open_aio_channel
from anthesis.v1 import generation_pb2 as pb
from anthesis.v1 import inference_pb2
from anthesis.v1.generation_pb2_grpc import GenerationServiceStub
from anthesis.v1.tokenizer_pb2 import TokenIds

from services.tokenizer.loaded import LoadedTokenizer
from tests.support.gateway_backends import MAX_SEQUENCE_TOKENS, USER_KEY, VERSION, Backends, running_gateway

STOP, LENGTH = inference_pb2.FINISH_REASON_STOP, inference_pb2.FINISH_REASON_LENGTH
END_ID = 2


@pytest.fixture
async def backends(tmp_path: Path) -> AsyncIterator[Backends]:
    async with running_gateway(tmp_path) as running:
        yield running


@pytest.fixture
async def stub(backends: Backends) -> AsyncIterator[GenerationServiceStub]:
    async with open_aio_channel(backends.grpc_address, USER_KEY) as channel:
        yield GenerationServiceStub(channel)


async def generate(stub, prompt: str = "Hello", **request) -> list[pb.GenerateResponse]:
    return [response async for response in stub.Generate(pb.GenerateRequest(model="demo", prompt=prompt, **request))]


async def error_of(work) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await work
    return caught.value.code(), caught.value.details() or ""


async def test_text_streams_as_it_is_drawn_and_the_last_message_tells_the_rest(backends: Backends, stub) -> None:
    backends.script(backends.ids(" world"), backends.ids("! 人"), [END_ID])
    responses = await generate(stub)
    assert [response.text for response in responses] == [" world", "! 人", ""]
    last = responses[-1]
    assert last.finish_reason == STOP
    assert last.model_version == VERSION
    assert last.usage.prompt_tokens == len(backends.ids("Hello"))
    assert last.usage.completion_tokens == sum(len(response.tokens) for response in responses)
    assert not any(response.finish_reason for response in responses[:-1])
    assert list(backends.worker.requests[0].prompt_ids) == backends.ids("Hello")


async def test_a_character_is_never_split_between_messages(backends: Backends, stub) -> None:
    text = "é人😀"
    backends.script(*([token_id] for token_id in backends.byte_ids(text)))
    responses = await generate(stub)
    assert [response.text for response in responses if response.text] == list(text)
    for response in responses:
        assert b"".join(token.bytes for token in response.tokens).decode() == response.text


async def test_generation_ends_before_a_stop_string_that_tokens_cut_and_the_worker_is_freed(backends, stub) -> None:
    backends.worker.pause_after = 3
    backends.script(backends.ids("one E"), backends.ids("N"), backends.ids("D two"), backends.ids(" three"))
    responses = await generate(stub, stop=["END"])
    assert "".join(response.text for response in responses) == "one "
    assert responses[-1].finish_reason == STOP
    await asyncio.wait_for(backends.worker.cancelled.wait(), 10)


async def test_what_might_have_been_a_stop_string_is_passed_on_at_the_end(backends: Backends, stub) -> None:
    backends.script(backends.ids("the E"), backends.ids("N"))
    responses = await generate(stub, stop=["END"])
    assert "".join(response.text for response in responses) == "the EN"
    assert responses[-1].finish_reason == LENGTH


async def test_sampling_reaches_the_worker_with_the_end_token_among_the_stop_ids(backends: Backends, stub) -> None:
    backends.script([5])
    sampling = inference_pb2.SamplingParams(
        temperature=0, top_k=7, top_p=0.5, repetition_penalty=1.5, seed=2**63, max_tokens=3, stop_ids=[9], logprobs=2
    )
    await generate(stub, sampling=sampling)
    sampling.stop_ids.append(END_ID)
    assert backends.worker.requests[0].sampling == sampling


async def test_every_setting_reaches_the_worker(backends: Backends, stub) -> None:
    backends.script([5])
    sampling = inference_pb2.SamplingParams(
        min_p=0.25,
        typical_p=0.5,
        presence_penalty=-1,
        frequency_penalty=1,
        logit_bias={7: 2.5, 8: -100},
        bad_words=[TokenIds(ids=[7, 8])],
        stop_sequences=[TokenIds(ids=[9, 9])],
        min_tokens=2,
        n=2,
        best_of=3,
        prompt_logprobs=0,
    )
    await generate(stub, sampling=sampling, bad_words=["Hello"], ignore_eos=True, priority=9)
    for text in ("Hello", " Hello"):
        sampling.bad_words.append(TokenIds(ids=backends.ids(text)))
    (request,) = backends.worker.requests
    assert request.sampling == sampling
    assert (request.priority, request.client) == (9, "id")


async def test_choices_stream_each_with_its_own_text_reason_and_usage(backends: Backends, stub) -> None:
    backends.script(backends.ids("one"), backends.ids(" two"))
    backends.worker.scripts[1] = [backends.ids("é")[:1], backends.ids("other"), [END_ID]]
    responses = await generate(stub, sampling=inference_pb2.SamplingParams(n=2))
    texts = {choice: "".join(r.text for r in responses if r.choice == choice) for choice in (0, 1)}
    last = {r.choice: r for r in responses if r.finish_reason}
    assert texts[0] == "one two"
    assert texts[1].endswith("other")
    assert [last[choice].finish_reason for choice in (0, 1)] == [LENGTH, STOP]
    assert last[0].usage.completion_tokens == len(backends.ids("one")) + len(backends.ids(" two"))
    assert all(r.usage.prompt_tokens == len(backends.ids("Hello")) for r in last.values())


async def test_the_prompts_log_probabilities_come_in_a_message_of_their_own(backends: Backends, stub) -> None:
    backends.script(backends.ids("ok"))
    first, *rest = await generate(stub, prompt="Hello 人", sampling=inference_pb2.SamplingParams(prompt_logprobs=2))
    assert b"".join(token.bytes for token in first.prompt_tokens).decode() == "Hello 人"
    assert not first.prompt_tokens[0].HasField("logprob")
    assert first.prompt_tokens[1].logprob == -first.prompt_tokens[1].id / 1024
    assert [top.bytes for top in first.prompt_tokens[1].top_logprobs] == list(backends.vocabulary.tokens[10:12])
    assert not any(response.prompt_tokens for response in rest)


async def test_the_callers_deadline_reaches_the_worker_and_passes_as_such(backends: Backends, stub) -> None:
    backends.worker.pause_after = 1
    backends.script(backends.ids("first"), backends.ids("never"))
    call = stub.Generate(pb.GenerateRequest(model="demo", prompt="Hello"), timeout=2)
    code, _ = await error_of(read_all(call))
    assert code == grpc.StatusCode.DEADLINE_EXCEEDED
    (seconds,) = backends.worker.seconds_left
    assert 0 < seconds < 3  # grpc-timeout is rounded up on its way
    await asyncio.wait_for(backends.worker.cancelled.wait(), 10)


async def read_all(call) -> list:
    return [response async for response in call]


async def test_a_full_worker_says_when_to_try_again(backends: Backends, stub) -> None:
    backends.worker.fail_before = (grpc.StatusCode.RESOURCE_EXHAUSTED, "256 requests wait already")
    backends.worker.trailing = (("grpc-retry-pushback-ms", "1200"),)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await generate(stub)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert dict(caught.value.trailing_metadata())["grpc-retry-pushback-ms"] == "1200"


async def test_another_worker_answers_when_the_first_is_full(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, num_workers=2) as backends:
        backends.script(backends.ids("fine"))
        backends.workers[0].fail_before = (grpc.StatusCode.RESOURCE_EXHAUSTED, "256 requests wait already")
        async with open_aio_channel(backends.grpc_address, USER_KEY) as channel:
            responses = await generate(GenerationServiceStub(channel))
        assert responses[-1].text == "fine"


async def test_texts_are_embedded_by_one_call_to_the_worker(backends: Backends, stub) -> None:
    request = pb.EmbedRequest(model="demo", texts=["Hello", ""], pooling=inference_pb2.POOLING_LAST, normalize=False)
    answer = await stub.Embed(request)
    hello = backends.ids("Hello")
    assert [list(embedding.values) for embedding in answer.embeddings] == [[len(hello), hello[0]], [1, 1]]
    assert answer.usage.prompt_tokens == len(hello) + 1
    assert answer.model_version == VERSION
    (asked,) = backends.worker.embedded
    assert (asked.pooling, asked.normalize, asked.client) == (inference_pb2.POOLING_LAST, False, "id")


async def test_embeddings_are_means_of_length_one_unless_told_otherwise(backends: Backends, stub) -> None:
    await stub.Embed(pb.EmbedRequest(model="demo", texts=["a"]))
    (asked,) = backends.worker.embedded
    assert (asked.pooling, asked.normalize) == (inference_pb2.POOLING_MEAN, True)
    assert not (await stub.Embed(pb.EmbedRequest(model="demo"))).embeddings
    assert len(backends.worker.embedded) == 1


@pytest.mark.parametrize(
    ("texts", "message"),
    [(["é" * 100], f"{VERSION} serves sequences of {MAX_SEQUENCE_TOKENS} tokens"), (["a"] * 2049, "at most 2048")],
)
async def test_texts_that_cannot_be_embedded_are_refused(backends: Backends, stub, texts, message: str) -> None:
    code, details = await error_of(stub.Embed(pb.EmbedRequest(model="demo", texts=texts)))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert message in details
    assert not backends.worker.embedded


async def test_what_is_unset_stays_unset(backends: Backends, stub) -> None:
    backends.script([5])
    await generate(stub)
    assert backends.worker.requests[0].sampling == inference_pb2.SamplingParams(stop_ids=[END_ID])


async def test_log_probabilities_come_with_the_tokens_when_asked_for(backends: Backends, stub) -> None:
    backends.script(backends.ids("ok"))
    (with_logprobs,) = await generate(stub, sampling=inference_pb2.SamplingParams(logprobs=2))
    (without,) = await generate(stub)
    token = with_logprobs.tokens[0]
    assert token.logprob == -0.5
    assert [(top.id, top.logprob) for top in token.top_logprobs] == [(10, -1.0), (11, -2.0)]
    assert token.top_logprobs[0].bytes == backends.vocabulary.tokens[10]
    assert not without.tokens[0].HasField("logprob")


async def test_an_empty_prompt_becomes_the_begin_token(backends: Backends, stub) -> None:
    backends.script([5])
    await generate(stub, prompt="")
    assert list(backends.worker.requests[0].prompt_ids) == [1]


async def test_a_prompt_that_spells_the_end_token_is_text(backends: Backends, stub) -> None:
    backends.script([5])
    await generate(stub, prompt="</s>")
    assert END_ID not in backends.worker.requests[0].prompt_ids


async def test_a_client_that_goes_away_cancels_the_generation(backends: Backends, stub) -> None:
    backends.worker.pause_after = 1
    backends.script(backends.ids("first"), backends.ids("never"))
    call = stub.Generate(pb.GenerateRequest(model="demo", prompt="Hello"))
    assert (await call.read()).text == "first"
    call.cancel()
    await asyncio.wait_for(backends.worker.cancelled.wait(), 10)


async def test_a_client_that_goes_away_before_the_first_token_cancels_too(backends: Backends, stub) -> None:
    backends.worker.pause_after = 0
    backends.script([5])
    call = stub.Generate(pb.GenerateRequest(model="demo", prompt="Hello"))
    reading = asyncio.ensure_future(call.read())
    await asyncio.wait_for(backends.worker.paused.wait(), 10)
    call.cancel()
    await asyncio.wait_for(backends.worker.cancelled.wait(), 10)
    await asyncio.gather(reading, return_exceptions=True)


async def test_a_prompt_longer_than_the_model_serves_is_refused_before_a_worker_is_asked(backends, stub) -> None:
    code, details = await error_of(generate(stub, prompt="é" * MAX_SEQUENCE_TOKENS * 2))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert f"{VERSION} serves sequences of {MAX_SEQUENCE_TOKENS} tokens" in details
    assert not backends.worker.requests


async def test_an_unknown_model_is_not_found(stub) -> None:
    code, details = await error_of(generate_from(stub, "nobody"))
    assert code == grpc.StatusCode.NOT_FOUND
    assert "no model 'nobody'" in details


async def generate_from(stub, model: str) -> None:
    async for _ in stub.Generate(pb.GenerateRequest(model=model, prompt="Hello")):
        pass


async def test_an_empty_model_name_is_refused(stub) -> None:
    assert (await error_of(generate_from(stub, "")))[0] == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"temperature": -1}, "temperature=-1.0 is out of range; use 0 (greedy) or more"),
        ({"top_p": 0}, "top_p=0.0 is out of range; use above 0, at most 1"),
        ({"max_tokens": 0}, "max_tokens=0 is out of range; use 1 to 4294967295"),
        ({"logprobs": 21}, "logprobs=21 is out of range; use 0 to 20"),
        ({"prompt_logprobs": 21}, "prompt_logprobs=21 is out of range; use 0 to 20"),
        ({"n": 3, "best_of": 2}, "best_of=2 is below n=3; raise best_of or leave it out"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens=9 is above max_tokens=8; lower it or raise max_tokens"),
        ({"frequency_penalty": 3}, "frequency_penalty=3.0 is out of range; use -2 to 2"),
        ({"stop_ids": [600]}, "stop ids: id 600 is not in the vocabulary, whose ids are 0 to 511"),
        ({"logit_bias": {600: 1}}, "logit bias: id 600 is not in the vocabulary, whose ids are 0 to 511"),
        ({"bad_words": [TokenIds(ids=[600])]}, "bad words: id 600 is not in the vocabulary, whose ids are 0 to 511"),
    ],
)
async def test_a_parameter_out_of_range_is_named(stub, sampling: dict, message: str) -> None:
    code, details = await error_of(generate(stub, sampling=inference_pb2.SamplingParams(**sampling)))
    assert (code, details) == (grpc.StatusCode.INVALID_ARGUMENT, message)


@pytest.mark.parametrize("stop", [[""], ["x"] * 17])
async def test_stop_strings_that_cannot_work_are_refused(stub, stop: list[str]) -> None:
    assert (await error_of(generate(stub, stop=stop)))[0] == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_version_on_no_worker_is_unavailable_with_the_remedy(backends: Backends, stub) -> None:
    backends.registry.workers.clear()
    code, details = await error_of(generate(stub))
    assert code == grpc.StatusCode.UNAVAILABLE
    assert f"`anthesis deploy {VERSION}`" in details


@pytest.mark.parametrize(
    ("code", "details"),
    [
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full: 256 requests wait"),
        (grpc.StatusCode.INVALID_ARGUMENT, "id 900 is outside the vocabulary"),
    ],
)
async def test_the_workers_refusals_are_passed_on(backends: Backends, stub, code, details: str) -> None:
    backends.worker.fail_before = (code, details)
    assert await error_of(generate(stub)) == (code, details)


async def test_an_engine_that_dies_in_the_middle_is_unavailable_and_named(backends: Backends, stub) -> None:
    backends.script([5], [6])
    backends.worker.fail_after = (grpc.StatusCode.UNAVAILABLE, "the engine died")
    code, details = await error_of(generate(stub))
    assert code == grpc.StatusCode.UNAVAILABLE
    assert "inference worker worker-0" in details
    assert "the engine died" in details


@pytest.mark.parametrize(
    ("server", "named"),
    [("registry", "the registry at"), ("tokenizer", "the tokenizer service at"), ("worker-0", "inference worker")],
)
async def test_a_service_that_is_down_is_named(backends: Backends, stub, server: str, named: str) -> None:
    await backends.servers[server].stop(0)
    code, details = await error_of(generate(stub))
    assert code == grpc.StatusCode.UNAVAILABLE
    assert named in details


async def test_another_worker_answers_when_the_first_is_down(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, num_workers=2) as backends:
        await backends.servers["worker-0"].stop(0)
        backends.script(backends.ids("fine"))
        async with open_aio_channel(backends.grpc_address, USER_KEY) as channel:
            responses = await generate(GenerationServiceStub(channel))
        assert responses[-1].text == "fine"
        assert len(backends.workers[1].requests) == 1


async def test_a_worker_that_fails_after_its_first_token_is_not_replaced(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, num_workers=2) as backends:
        backends.script([5])
        backends.workers[0].fail_after = (grpc.StatusCode.UNAVAILABLE, "the engine died")
        async with open_aio_channel(backends.grpc_address, USER_KEY) as channel:
            assert (await error_of(generate(GenerationServiceStub(channel))))[0] == grpc.StatusCode.UNAVAILABLE
        assert not backends.workers[1].requests


async def test_a_model_is_resolved_once_in_a_while(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, resolve_ttl_s=60) as backends:
        backends.script([5])
        async with open_aio_channel(backends.grpc_address, USER_KEY) as channel:
            stub = GenerationServiceStub(channel)
            await asyncio.gather(*(generate(stub) for _ in range(8)))
        assert backends.registry.num_resolved == 1


async def test_tokenize_shows_ids_bytes_offsets_and_the_text_back(backends: Backends, stub) -> None:
    text = "Hello 𓀀</s>"
    answer = await stub.Tokenize(pb.TokenizeRequest(model="demo", text=text))
    assert list(answer.ids) == backends.ids(text)
    assert b"".join(answer.tokens) == text.encode()
    assert [text.encode()[span.start : span.end] for span in answer.byte_offsets] == list(answer.tokens)
    assert len(answer.char_offsets) == len(answer.ids)
    assert answer.text == text
    assert answer.tokenizer_digest == backends.tokenizer.digest


async def test_count_needs_no_worker(backends: Backends, stub) -> None:
    backends.registry.workers.clear()
    answer = await stub.Count(pb.CountRequest(model="demo", texts=["Hello", "", "é"]))
    assert list(answer.counts) == [len(backends.ids(text)) for text in ("Hello", "", "é")]


async def test_score_encodes_context_and_text_apart(backends: Backends, stub) -> None:
    items = [pb.ScoreItem(context="Hello", text=" é"), pb.ScoreItem(text="ab"), pb.ScoreItem(context="x", text="")]
    answer = await stub.Score(pb.ScoreRequest(model="demo", items=items))
    asked = [(list(item.context_ids), list(item.target_ids)) for item in backends.worker.scored[0].items]
    assert asked == [(backends.ids("Hello"), backends.ids(" é")), ([1], backends.ids("ab"))]
    assert [item.num_bytes for item in answer.items] == [3, 2, 0]
    assert [item.num_tokens for item in answer.items] == [len(backends.ids(" é")), len(backends.ids("ab")), 0]
    assert [item.logprob for item in answer.items] == pytest.approx(
        [-sum(backends.ids(" é")) / 1024, -sum(backends.ids("ab")) / 1024, 0.0]
    )
    assert answer.model_version == VERSION


async def test_a_scored_item_that_is_too_long_is_named(stub) -> None:
    items = [pb.ScoreItem(text="ok"), pb.ScoreItem(context="a", text="é" * 100)]
    code, details = await error_of(stub.Score(pb.ScoreRequest(model="demo", items=items)))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "items[1] has" in details


async def test_a_tokenizer_that_is_not_byte_level_cannot_generate(backends: Backends, stub) -> None:
    from tokenizers import Tokenizer, models

    other = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1})).to_str().encode()
    backends.registry.version.tokenizer_digest = backends.store.write_bytes(other)
    assert LoadedTokenizer("d", other)
    assert (await error_of(generate(stub)))[0] == grpc.StatusCode.FAILED_PRECONDITION


async def test_without_a_key_nothing_answers(backends: Backends) -> None:
    async with grpc.aio.insecure_channel(backends.grpc_address) as channel:
        code, details = await error_of(GenerationServiceStub(channel).Count(pb.CountRequest(model="demo")))
    assert code == grpc.StatusCode.UNAUTHENTICATED
    assert "authorization: Bearer" in details
