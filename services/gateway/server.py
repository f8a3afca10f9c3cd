"""GenerationService over gRPC and OpenAI's API over HTTP, in one process: `python -m services.gateway.server`."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

import uvicorn
from anthesis.channel import open_aio_channel
from anthesis.decoding import Vocabulary
from anthesis.v1 import generation_pb2 as pb
from anthesis.v1 import generation_pb2_grpc as pb_grpc
from anthesis.v1 import inference_pb2, tokenizer_pb2
from starlette.types import ASGIApp

from services.common.auth import Authenticate, OnDenied, RegistryAuthenticator, current_principal, project_metadata
from services.common.logs import set_up_logging
from services.common.server import GrpcServer, wait_for_signal
from services.common.settings import Platform
from services.gateway import access
from services.gateway.config import GatewayConfig
from services.gateway.fine_tuning_service import FineTuning
from services.gateway.generation import Caller, Piece, Pooling, Sampling, Token
from services.gateway.http import build_app
from services.gateway.inference_client import InferenceClient
from services.gateway.licence_client import LicenceClient
from services.gateway.metering import LANGUAGE_HEADER, Meter, set_language
from services.gateway.registry_client import RegistryClient
from services.gateway.routing import Router
from services.gateway.service import GatewayService, OpenModel, ScoredText
from services.gateway.tokenizer_client import Encoding, TokenizerClient
from services.gateway.usage_client import RegistryUsageClient

_FINISH = {
    "STOP": inference_pb2.FINISH_REASON_STOP,
    "LENGTH": inference_pb2.FINISH_REASON_LENGTH,
    "CANCELLED": inference_pb2.FINISH_REASON_CANCELLED,
}


class GenerationServicer(pb_grpc.GenerationServiceServicer):
    def __init__(self, service: GatewayService) -> None:
        self._service = service

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> AsyncIterator[pb.GenerateResponse]:
        sampling, caller = _sampling_from_proto(request.sampling), _caller(request.priority, context)
        model = await self._service.open_for(current_principal(), request.model)
        (prompt_ids,) = await self._service.encode(model, [request.prompt])
        sampling = await self._service.sampling_for(
            model, sampling, bad_words=request.bad_words, ignore_eos=request.ignore_eos
        )
        async with aclosing(self._service.generate(model, prompt_ids, sampling, request.stop, caller)) as pieces:
            async for piece in pieces:
                yield _piece_to_proto(model, piece, len(prompt_ids))

    async def Tokenize(self, request: pb.TokenizeRequest, context: Any) -> pb.TokenizeResponse:
        model = await self._service.open(request.model)
        return _tokenization_to_proto(model, await self._service.tokenize(model, request.text))

    async def Count(self, request: pb.CountRequest, context: Any) -> pb.CountResponse:
        return pb.CountResponse(counts=await self._service.count(request.model, request.texts))

    async def Score(self, request: pb.ScoreRequest, context: Any) -> pb.ScoreResponse:
        caller = _caller(request.priority, context)
        model = await self._service.open_for(current_principal(), request.model)
        items = [(item.context, item.text) for item in request.items]
        scored = await self._service.score_texts(model, items, caller)
        return pb.ScoreResponse(items=map(_scored_to_proto, scored), model_version=model.version)

    async def Embed(self, request: pb.EmbedRequest, context: Any) -> pb.EmbedResponse:
        caller = _caller(request.priority, context)
        model = await self._service.open_for(current_principal(), request.model)
        embedded = await self._service.embed(model, request.texts, _pooling_from_proto(request), caller)
        return pb.EmbedResponse(
            embeddings=[inference_pb2.Embedding(values=vector) for vector in embedded.vectors],
            usage=pb.Usage(prompt_tokens=embedded.num_tokens),
            model_version=model.version,
        )


def _caller(priority: int, context: Any) -> Caller:
    sent = dict(context.invocation_metadata() or ())
    set_language(str(sent.get(LANGUAGE_HEADER, "")))
    return Caller(client=current_principal().key_id, priority=priority, timeout_s=context.time_remaining())


def _sampling_from_proto(sampling: inference_pb2.SamplingParams) -> Sampling:
    """Fields that are not set are left to the worker."""
    given = {field.name: value for field, value in sampling.ListFields()}
    given["stop_ids"] = tuple(sampling.stop_ids)
    given["logit_bias"] = dict(sampling.logit_bias)
    for name in ("bad_words", "stop_sequences"):
        given[name] = tuple(tuple(sequence.ids) for sequence in getattr(sampling, name))
    return Sampling(**given)


def _pooling_from_proto(request: pb.EmbedRequest) -> Pooling:
    kind = "last" if request.pooling == inference_pb2.POOLING_LAST else "mean"
    return Pooling(kind=kind, normalize=request.normalize if request.HasField("normalize") else True)


def _piece_to_proto(model: OpenModel, piece: Piece, num_prompt_tokens: int) -> pb.GenerateResponse:
    response = pb.GenerateResponse(
        text=piece.text,
        tokens=[_token_to_proto(model.vocabulary, placed.token) for placed in piece.tokens],
        choice=piece.choice,
        prompt_tokens=[_token_to_proto(model.vocabulary, token) for token in piece.prompt],
        machine_generated=not piece.prompt,
    )
    if piece.finish:
        response.finish_reason = _FINISH[piece.finish]
        response.usage.prompt_tokens = num_prompt_tokens
        response.usage.completion_tokens = piece.completion_tokens
        response.model_version = model.version
        response.licences.extend(model.resolved.licences)
    return response


def _token_to_proto(vocabulary: Vocabulary, token: Token) -> pb.TextToken:
    return pb.TextToken(
        id=token.id,
        bytes=vocabulary.bytes_of(token.id),
        logprob=token.logprob,
        top_logprobs=[
            pb.TextTokenLogprob(id=token_id, bytes=vocabulary.bytes_of(token_id), logprob=logprob)
            for token_id, logprob in token.top
        ],
    )


def _tokenization_to_proto(model: OpenModel, encoding: Encoding) -> pb.TokenizeResponse:
    return pb.TokenizeResponse(
        ids=encoding.ids,
        tokens=map(model.vocabulary.bytes_of, encoding.ids),
        byte_offsets=[tokenizer_pb2.Span(start=start, end=end) for start, end in encoding.byte_offsets],
        char_offsets=[tokenizer_pb2.Span(start=start, end=end) for start, end in encoding.char_offsets],
        text=model.vocabulary.decode(encoding.ids),
        tokenizer_digest=model.resolved.tokenizer_digest,
    )


def _scored_to_proto(scored: ScoredText) -> pb.ScoredItem:
    return pb.ScoredItem(logprob=scored.logprob, num_tokens=scored.num_tokens, num_bytes=scored.num_bytes)


class HttpServer(uvicorn.Server):
    """uvicorn on a port that is known to be free; signals are left to who drains gRPC as well."""

    def __init__(self, app: ASGIApp, address: str, drain_s: float) -> None:
        super().__init__(
            uvicorn.Config(
                app, lifespan="off", log_config=None, access_log=False, timeout_graceful_shutdown=int(drain_s)
            )
        )
        self._address = address
        self._listening = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._listening.set()

    async def start(self) -> int:
        """Listen; return the bound port. Raises OSError when it is taken."""
        host, _, port = self._address.rpartition(":")
        try:
            listener = socket.create_server((host, int(port)), backlog=2048)
        except OSError as error:
            raise OSError(f"gateway cannot listen for HTTP on {self._address}: {error.strerror}") from error
        self._serving = asyncio.create_task(self.serve([listener]))
        await self._listening.wait()
        return int(listener.getsockname()[1])

    async def stop(self) -> None:
        self.should_exit = True
        await self._serving


class Gateway:
    """Both servers and the channels behind them."""

    def __init__(self, config: GatewayConfig, authenticate: Authenticate | None = None) -> None:
        """Keys are verified by the registry unless `authenticate` does it. Needs a running event loop."""
        on_denied: OnDenied | None = None
        if authenticate is None:
            authenticate = RegistryAuthenticator(config.registry_address, config.service_key)
            on_denied = authenticate.report_denied
        self._channels = [
            open_aio_channel(address, config.service_key, metadata=project_metadata)
            for address in (config.registry_address, config.tokenizer_address)
        ]
        registry = RegistryClient(self._channels[0], config.registry_address)
        tokenizer = TokenizerClient(
            self._channels[1], config.tokenizer_address, max_vocabularies=config.max_vocabularies
        )
        router = Router(registry, ttl_s=config.resolve_ttl_s)
        self._inference = InferenceClient(config.service_key)
        licences = LicenceClient(self._channels[0], config.registry_address, ttl_s=config.acceptance_ttl_s)
        usage = RegistryUsageClient(self._channels[0], config.registry_address)
        self.meter = Meter(usage, every_s=config.usage_every_s)
        service = GatewayService(router, licences, tokenizer, self._inference, self.meter)
        self._grpc = GrpcServer(
            "gateway",
            config.address,
            authenticate=authenticate,
            on_denied=on_denied,
            check_keys_s=config.check_keys_s,
        )
        add, servicer = pb_grpc.add_GenerationServiceServicer_to_server, GenerationServicer(service)
        self._grpc.add(add, servicer, "anthesis.v1.GenerationService", access.GENERATION)
        fine_tuning = FineTuning(config.registry_address, router, licences)
        self.app = build_app(service, router, registry, fine_tuning, authenticate, on_denied, config.check_keys_s)
        self._http = HttpServer(self.app, config.http_address, config.drain_s)
        self._drain_s = config.drain_s

    async def start(self) -> tuple[int, int]:
        """Listen; return the ports of gRPC and HTTP."""
        self._reporting = asyncio.create_task(self.meter.run())
        return await self._grpc.start(), await self._http.start()

    async def stop(self) -> None:
        """Refuse new calls and let those under way end."""
        await asyncio.gather(self._grpc.stop(self._drain_s), self._http.stop())
        await self.meter.stop(self._reporting)
        await self._inference.close()
        for channel in self._channels:
            await channel.close()


async def serve(config: GatewayConfig) -> None:
    gateway = Gateway(config)
    await gateway.start()
    await wait_for_signal()
    await gateway.stop()


def main() -> None:
    set_up_logging("gateway")
    asyncio.run(serve(GatewayConfig.from_platform(Platform.from_env())))


if __name__ == "__main__":
    main()
