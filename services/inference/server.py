"""The inference worker's gRPC server: `python -m services.inference.server`. Protobuf in and out."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
from anthesis.v1 import inference_pb2 as pb
from anthesis.v1 import inference_pb2_grpc

from services.common.access import Access, Permission
from services.common.artifacts import ArtifactStore
from services.common.auth import Authenticate, OnDenied, RegistryAuthenticator
from services.common.logs import set_up_logging
from services.common.server import GrpcServer, wait_for_signal
from services.common.settings import Platform
from services.inference.caller import Caller
from services.inference.config import WorkerConfig
from services.inference.loaded_version import VersionStatus
from services.inference.messages import Event, PromptLogprobs, Scored, Token
from services.inference.registry_client import RegistryClient
from services.inference.sampling import MAX_SEED, SamplingParams
from services.inference.service import InferenceService
from services.inference.worker import Worker

SERVICE = "anthesis.v1.InferenceService"
ACCESS: Access = dict.fromkeys(("Generate", "Score", "Embed", "GetWorkerStatus"), Permission.INTERNAL)
DRAIN_S = 30.0  # for the calls under way when the worker is told to stop
_Context = grpc.aio.ServicerContext[Any, Any]


class InferenceServicer(inference_pb2_grpc.InferenceServiceServicer):
    def __init__(self, service: InferenceService) -> None:
        self._service = service

    async def Generate(
        self, request: pb.InferenceServiceGenerateRequest, context: _Context
    ) -> AsyncIterator[pb.InferenceServiceGenerateResponse]:
        sampling, caller = sampling_from_proto(request.sampling), caller_of(request, context)
        call = self._service.generate(request.model_version, request.prompt_ids, sampling, caller)
        # Cancelled, disconnected, past its deadline: the blocks are freed, whatever this generator waits for.
        context.add_done_callback(lambda _: call.close())  # type: ignore[arg-type]
        async for events in call:  # several where they came while the last message was written
            for response in generated_to_proto(request.prompt_ids, events):
                yield response

    async def Score(
        self, request: pb.InferenceServiceScoreRequest, context: _Context
    ) -> pb.InferenceServiceScoreResponse:
        items = [(item.context_ids, item.target_ids) for item in request.items]
        scored = await self._service.score(request.model_version, items, caller_of(request, context))
        return pb.InferenceServiceScoreResponse(items=map(scored_to_proto, scored))

    async def Embed(
        self, request: pb.InferenceServiceEmbedRequest, context: _Context
    ) -> pb.InferenceServiceEmbedResponse:
        vectors = await self._service.embed(
            request.model_version,
            [item.ids for item in request.inputs],
            "last" if request.pooling == pb.POOLING_LAST else "mean",
            normalize=request.normalize if request.HasField("normalize") else True,
            caller=caller_of(request, context),
        )
        return pb.InferenceServiceEmbedResponse(embeddings=[pb.Embedding(values=vector) for vector in vectors])

    async def GetWorkerStatus(
        self, request: pb.GetWorkerStatusRequest, context: _Context
    ) -> pb.GetWorkerStatusResponse:
        return pb.GetWorkerStatusResponse(
            worker_id=self._service.worker_id,
            device=self._service.device,
            models=[status_to_proto(status) for status in self._service.statuses()],
        )


def caller_of(request: Any, context: _Context) -> Caller:
    return Caller(priority=request.priority, client=request.client, deadline_s=context.time_remaining())


def sampling_from_proto(message: pb.SamplingParams) -> SamplingParams:
    """Fields that are not set get the defaults of `SamplingParams`; the seed is drawn, `best_of` is `n`."""
    given = {field.name: value for field, value in message.ListFields()}
    given.setdefault("seed", secrets.randbelow(MAX_SEED + 1))
    given.setdefault("best_of", given.get("n", 1))
    given["logit_bias"] = dict(message.logit_bias)
    given["stop_ids"] = frozenset(message.stop_ids)
    for name in ("bad_words", "stop_sequences"):
        given[name] = tuple(tuple(sequence.ids) for sequence in getattr(message, name))
    return SamplingParams(**given)


def generated_to_proto(prompt_ids: Sequence[int], events: list[Event]) -> list[pb.InferenceServiceGenerateResponse]:
    """A message for each choice that has new tokens, after one for the prompt's log-probabilities."""
    responses = [prompt_to_proto(prompt_ids, event) for event in events if isinstance(event, PromptLogprobs)]
    by_choice: dict[int, list[Token]] = {}
    for event in events:
        if isinstance(event, Token):
            by_choice.setdefault(event.choice, []).append(event)
    return responses + [choice_to_proto(choice, tokens) for choice, tokens in by_choice.items()]


def choice_to_proto(choice: int, tokens: list[Token]) -> pb.InferenceServiceGenerateResponse:
    response = pb.InferenceServiceGenerateResponse(
        choice=choice, tokens=[token_to_proto(token.id, token.logprob, token.top_logprobs) for token in tokens]
    )
    if tokens[-1].finish is not None:
        response.finish_reason = pb.FinishReason.Value(f"FINISH_REASON_{tokens[-1].finish}")
        response.num_cached_tokens = tokens[-1].num_cached_tokens
    return response


def prompt_to_proto(prompt_ids: Sequence[int], scored: PromptLogprobs) -> pb.InferenceServiceGenerateResponse:
    rest = zip(prompt_ids[1:], scored.logprobs, scored.top_logprobs, strict=True)
    tokens = [pb.GeneratedToken(id=prompt_ids[0]), *(token_to_proto(*token) for token in rest)]
    return pb.InferenceServiceGenerateResponse(prompt_tokens=tokens)


def token_to_proto(token_id: int, logprob: float | None, top: Sequence[tuple[int, float]]) -> pb.GeneratedToken:
    alternatives = [pb.TokenLogprob(id=id_, logprob=value) for id_, value in top]
    return pb.GeneratedToken(id=token_id, logprob=logprob, top_logprobs=alternatives)


def scored_to_proto(scored: Scored) -> pb.ScoredIds:
    best = [pb.TokenLogprob(id=id_, logprob=logprob) for id_, logprob in scored.best]
    return pb.ScoredIds(logprobs=scored.logprobs, best=best)


def status_to_proto(status: VersionStatus) -> pb.LoadedModel:
    return pb.LoadedModel(
        model_version=status.name,
        state=pb.ModelLoadState.Value(f"MODEL_LOAD_STATE_{status.state}"),
        error=status.error,
        max_sequence_tokens=status.max_sequence_tokens,
        num_running=status.stats.num_running,
        num_waiting=status.stats.num_waiting,
        num_kv_blocks=status.stats.num_blocks,
        num_free_kv_blocks=status.stats.num_free_blocks,
    )


def build_server(
    address: str, service: InferenceService, authenticate: Authenticate, on_denied: OnDenied | None = None
) -> GrpcServer:
    server = GrpcServer("inference", address, authenticate=authenticate, on_denied=on_denied)
    servicer = InferenceServicer(service)
    server.add(inference_pb2_grpc.add_InferenceServiceServicer_to_server, servicer, SERVICE, ACCESS)
    return server


async def serve(platform: Platform, config: WorkerConfig) -> None:
    """Serve until SIGTERM, then finish the calls under way."""
    key = platform.read_key("inference")
    registry = RegistryClient(platform.registry_address, key)
    store = ArtifactStore(platform.artifacts_url, platform.data_dir / "cache" / "artifacts")
    address = config.advertised_address or platform.inference_address
    port = int(address.rpartition(":")[2])
    models_dir = platform.data_dir / "cache" / "models"
    worker = Worker(registry, store, models_dir, config, worker_id=config.identity(port), address=address)
    authenticate = RegistryAuthenticator(platform.registry_address, key)
    service = InferenceService(worker)
    server = build_server(platform.inference_address, service, authenticate, authenticate.report_denied)
    await server.start()
    heartbeats = asyncio.create_task(worker.run())
    health = asyncio.create_task(worker.tell_health(server.set_serving))
    await wait_for_signal()
    health.cancel()  # from here on it is NOT_SERVING
    await server.stop(DRAIN_S)
    heartbeats.cancel()
    await worker.close()
    await registry.close()


def main() -> None:
    set_up_logging("inference")
    asyncio.run(serve(Platform.from_env(), WorkerConfig.from_env()))


if __name__ == "__main__":
    main()
