"""Registry, tokenizer, inference and gateway, as they are run, with a model that transformers made and judges."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import openai
import pytest
import torch
from anthesis.channel import open_aio_channel
from anthesis.v1 import generation_pb2 as pb
from anthesis.v1 import inference_pb2
from anthesis.v1 import registry_pb2 as reg
from anthesis.v1.generation_pb2_grpc import GenerationServiceStub
from anthesis.v1.registry_pb2_grpc import RegistryServiceStub
from tokenizers import Tokenizer

from services.common.artifacts import ArtifactStore
from services.common.settings import ROOT, Platform
from tests.support.bloom_models import make_hf_folder
from tests.support.inference_models import assert_greedy, oracle
from tests.support.inference_worker import until
from tests.support.registry_server import RunningRegistry, platform_env, running_registry
from tests.support.tokenizers import small_tokenizer_json

VERSION = "test/tiny@1"
PROMPT = "Tous les êtres humains"
READY_S = 90


@dataclass(kw_only=True)
class Stack:
    platform: Platform
    key: str
    model_folder: Path
    tokenizer: Tokenizer
    gateway: subprocess.Popen[bytes]

    @property
    def base_url(self) -> str:
        return f"http://{self.platform.gateway_http_address}/v1"

    def client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=self.base_url, api_key=self.key, max_retries=0)

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text).ids


def stored_files(store: ArtifactStore, folder: Path) -> list[reg.ModelFile]:
    return [reg.ModelFile(path=path.name, digest=store.write_file(path)) for path in sorted(folder.iterdir())]


async def register_model(registry: RunningRegistry, folder: Path) -> None:
    stub, store = RegistryServiceStub(registry.channel()), registry.artifacts
    files = stored_files(store, folder)
    tokenizer = store.write_bytes(small_tokenizer_json(512).encode())
    version = reg.ModelVersion(
        model="test/tiny", licence="Apache-2.0", tokenizer_digest=tokenizer, files=files, source="import"
    )
    await stub.CreateModel(reg.CreateModelRequest(model=reg.Model(name="test/tiny", licence="Apache-2.0")))
    await stub.CreateModelVersion(reg.CreateModelVersionRequest(version=version))
    await stub.SetAlias(reg.SetAliasRequest(name="tiny", version=VERSION))
    await stub.CreateDeployment(reg.CreateDeploymentRequest(deployment=reg.Deployment(name="tiny", target="tiny")))


@contextmanager
def service_process(name: str, platform: Platform) -> Iterator[subprocess.Popen[bytes]]:
    env = platform_env(platform) | {"ANTHESIS_INFERENCE_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-m", f"services.{name}.server"], env=env, cwd=ROOT)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    folder = make_hf_folder(tmp_path / "model", vocab=512)
    async with running_registry() as registry, AsyncExitStack() as exits:
        await register_model(registry, folder)
        processes = {
            name: exits.enter_context(service_process(name, registry.platform))
            for name in ("inference", "tokenizer", "gateway")
        }
        stub = RegistryServiceStub(registry.channel("gateway"))

        async def model_is_ready() -> bool:
            assert all(process.poll() is None for process in processes.values()), "a service ended"
            return bool((await stub.ResolveModel(reg.ResolveModelRequest(name="tiny"))).workers)

        await until(model_is_ready, timeout_s=READY_S)
        for address in (registry.platform.tokenizer_address, registry.platform.gateway_address):
            async with grpc.aio.insecure_channel(address) as channel:
                await asyncio.wait_for(channel.channel_ready(), READY_S)
        running = Stack(
            platform=registry.platform,
            key=registry.admin_key,
            model_folder=folder,
            tokenizer=Tokenizer.from_str(small_tokenizer_json(512)),
            gateway=processes["gateway"],
        )
        await until(lambda: http_answers(registry.platform), timeout_s=READY_S)
        yield running


async def http_answers(platform: Platform) -> bool:
    async with httpx.AsyncClient() as http:
        try:
            return (await http.get(f"http://{platform.gateway_http_address}/health")).status_code == 200
        except httpx.TransportError:
            return False


async def test_a_prompt_lives_through_all_four_services(stack: Stack) -> None:
    """One test, for the stack takes seconds to start."""
    await streams_and_whole_answers_agree_with_transformers(stack)
    await scores_agree_with_transformers(stack)
    await embeddings_agree_with_transformers(stack)
    await choices_differ_and_the_first_is_what_one_alone_would_be(stack)
    await errors_come_through(stack)
    await a_stream_under_way_ends_whole_when_the_gateway_is_told_to_stop(stack)


async def streams_and_whole_answers_agree_with_transformers(stack: Stack) -> None:
    async with open_aio_channel(stack.platform.gateway_address, stack.key) as channel, stack.client() as client:
        sampling = inference_pb2.SamplingParams(temperature=0, max_tokens=24)
        request = pb.GenerateRequest(model="tiny", prompt=PROMPT, sampling=sampling)
        responses = [response async for response in GenerationServiceStub(channel).Generate(request)]
        ids = [token.id for response in responses for token in response.tokens]
        text = "".join(response.text for response in responses)
        assert_greedy(stack.model_folder, stack.ids(PROMPT), ids)
        assert responses[-1].model_version == VERSION
        assert responses[-1].usage.completion_tokens == len(ids)
        table = {token_id: token for token, token_id in stack.tokenizer.get_vocab().items()}
        assert text == stack.tokenizer.decode(ids, skip_special_tokens=True), [table[token_id] for token_id in ids]

        settings: dict[str, Any] = {"model": "tiny", "prompt": PROMPT, "temperature": 0, "max_tokens": 24}
        whole = await client.completions.create(**settings)
        stream = await client.completions.create(**settings, stream=True)
        assert whole.choices[0].text == text
        assert "".join([chunk.choices[0].text async for chunk in stream]) == text
        assert [model.id async for model in client.models.list()] == ["tiny", "test/tiny"]


async def scores_agree_with_transformers(stack: Stack) -> None:
    context, text = stack.ids(PROMPT), stack.ids(" naissent libres.")
    logits = oracle(stack.model_folder)(torch.tensor([context + text])).logits[0].log_softmax(-1)
    expected = [logits[len(context) + n - 1, token_id].item() for n, token_id in enumerate(text)]
    highest = [logits[len(context) + n - 1].max().item() for n in range(len(text))]
    async with open_aio_channel(stack.platform.gateway_address, stack.key) as channel, stack.client() as client:
        items = [pb.ScoreItem(context=PROMPT, text=" naissent libres.")]
        answer = await GenerationServiceStub(channel).Score(pb.ScoreRequest(model="tiny", items=items))
        assert answer.items[0].logprob == pytest.approx(sum(expected), abs=1e-3)
        echoed = await client.completions.create(
            model="tiny", prompt=context + text, echo=True, logprobs=1, max_tokens=1, temperature=0
        )
        logprobs = echoed.choices[0].logprobs
        assert logprobs.token_logprobs[len(context) : -1] == pytest.approx(expected, abs=1e-4)
        tops = [max(top.values()) for top in logprobs.top_logprobs[len(context) : -1]]
        assert tops == pytest.approx(highest, abs=1e-4)


async def embeddings_agree_with_transformers(stack: Stack) -> None:
    hidden = oracle(stack.model_folder).transformer(torch.tensor([stack.ids(PROMPT)])).last_hidden_state[0]
    expected = torch.nn.functional.normalize(hidden.mean(dim=0), dim=0).tolist()
    async with open_aio_channel(stack.platform.gateway_address, stack.key) as channel, stack.client() as client:
        answer = await GenerationServiceStub(channel).Embed(pb.EmbedRequest(model="tiny", texts=[PROMPT]))
        assert list(answer.embeddings[0].values) == pytest.approx(expected, abs=1e-4)
        over_http = await client.embeddings.create(model="tiny", input=PROMPT)
        assert over_http.data[0].embedding == pytest.approx(expected, abs=1e-4)


async def choices_differ_and_the_first_is_what_one_alone_would_be(stack: Stack) -> None:
    settings: dict[str, Any] = {"model": "tiny", "prompt": PROMPT, "seed": 5, "max_tokens": 12, "top_p": 0.95}
    async with stack.client() as client:
        one = await client.completions.create(**settings)
        three = await client.completions.create(**settings, n=3)
        best = await client.completions.create(**settings, best_of=3, logprobs=0)
    texts = [choice.text for choice in three.choices]
    assert texts[0] == one.choices[0].text
    assert len(set(texts)) == 3
    assert best.choices[0].text in texts


async def errors_come_through(stack: Stack) -> None:
    async with stack.client() as client:
        with pytest.raises(openai.NotFoundError):
            await client.completions.create(model="nobody", prompt=PROMPT)
        with pytest.raises(openai.BadRequestError, match="2048 tokens at most"):
            await client.completions.create(model="tiny", prompt=[5] * 2048)
    async with httpx.AsyncClient() as http:
        assert (await http.get(f"{stack.base_url}/models")).status_code == 401


async def a_stream_under_way_ends_whole_when_the_gateway_is_told_to_stop(stack: Stack) -> None:
    async with stack.client() as client:
        stream = await client.completions.create(
            model="tiny", prompt=PROMPT, temperature=0, max_tokens=200, stream=True, extra_body={"seed": 1}
        )
        chunks = aiter(stream)
        await anext(chunks)
        stack.gateway.send_signal(signal.SIGTERM)
        reasons = [chunk.choices[0].finish_reason async for chunk in chunks]
    assert reasons[-1] in ("length", "stop")
    assert await asyncio.to_thread(stack.gateway.wait, 30) == 0
