"""The synchronous client over a real server on another loop."""

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from anthesis import AsyncClient, Client, SamplingParams, Settings
from anthesis.errors import InvalidArgumentError
from anthesis.v1 import generation_pb2 as pb
from anthesis.v1.generation_pb2_grpc import GenerationServiceServicer, add_GenerationServiceServicer_to_server


class Gateway(GenerationServiceServicer):
    """Repeats the prompt letter by letter, for ever unless max_tokens is set."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()

    async def Generate(
        self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.GenerateResponse]:
        if not request.prompt:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the prompt is empty")
        try:
            sent = 0
            while sent != request.sampling.max_tokens or not request.sampling.HasField("max_tokens"):
                yield pb.GenerateResponse(text=request.prompt[sent % len(request.prompt)])
                sent += 1
                await asyncio.sleep(0)
            yield pb.GenerateResponse(finish_reason=2, usage=pb.Usage(completion_tokens=sent), model_version="m@1")
        except (asyncio.CancelledError, GeneratorExit):  # cancelled while it waits, or while a message is sent
            self.cancelled.set()
            raise

    async def Count(self, request: pb.CountRequest, context: grpc.aio.ServicerContext) -> pb.CountResponse:
        return pb.CountResponse(counts=[len(text) for text in request.texts])


@pytest.fixture
def gateway() -> Iterator[tuple[Gateway, str]]:
    started, loop, gateway = threading.Event(), asyncio.new_event_loop(), Gateway()
    address = ""

    async def serve() -> grpc.aio.Server:
        nonlocal address
        server = grpc.aio.server()
        add_GenerationServiceServicer_to_server(gateway, server)
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        started.set()
        return server

    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = asyncio.run_coroutine_threadsafe(serve(), loop).result()
    yield gateway, address
    asyncio.run_coroutine_threadsafe(server.stop(0), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture
def client(gateway: tuple[Gateway, str]) -> Iterator[Client]:
    with Client(Settings(api_key="k", gateway_address=gateway[1])) as client:
        yield client


def test_text_streams(client: Client) -> None:
    parts = [part.text for part in client.generate("m", "abc", SamplingParams(max_tokens=4))]

    assert parts == ["a", "b", "c", "a", ""]


def test_a_completion_is_the_whole_stream(client: Client) -> None:
    answer = client.complete("m", "人权", SamplingParams(max_tokens=3))

    assert (answer.text, answer.usage.completion_tokens, answer.model_version) == ("人权人", 3, "m@1")


def test_leaving_the_loop_cancels_the_call(client: Client, gateway: tuple[Gateway, str]) -> None:
    stream = client.generate("m", "abc")
    assert next(stream).text == "a"

    stream.close()

    assert gateway[0].cancelled.wait(10)


def test_an_error_of_a_stream_is_typed(client: Client) -> None:
    with pytest.raises(InvalidArgumentError, match="the prompt is empty"):
        next(client.generate("m", ""))


def test_one_client_serves_many_threads(client: Client) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(lambda i: client.complete("m", "ab", SamplingParams(max_tokens=i)).text, range(40))
        counts = pool.map(lambda i: list(client.count("m", ["x" * i])), range(40))

        assert list(answers) == [("ab" * 20)[:i] for i in range(40)]
        assert list(counts) == [[i] for i in range(40)]


def test_closing_from_a_collected_generator_does_not_wait(client: Client) -> None:
    """The collector may run on the client's own loop, where waiting for that loop would be for ever."""

    async def collect_on_the_loop() -> None:
        held.pop().close()

    held = [client.generate("m", "abc")]
    next(held[0])
    from anthesis.client import _run

    _run(asyncio.wait_for(collect_on_the_loop(), 10))


def test_every_asynchronous_method_has_its_synchronous_twin() -> None:
    settings = Settings(api_key="k")

    async def methods_of_async() -> dict[str, set[str]]:
        async with AsyncClient(settings) as client:
            return public_methods(client)

    with Client(settings) as client:
        assert public_methods(client) == asyncio.run(methods_of_async())


def public_methods(client: object) -> dict[str, set[str]]:
    """Names of the public methods of a client and of each part of it."""
    parts = {"": client} | {
        name: part for name, part in vars(client).items() if not name.startswith("_") and name != "settings"
    }
    return {
        name: {method for method, _ in inspect.getmembers(part, inspect.ismethod) if not method.startswith("_")}
        for name, part in parts.items()
    }
