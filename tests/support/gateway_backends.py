"""What stands behind a gateway in tests of its edges: a real tokenizer service, a registry and workers that do as told.

The workers draw scripted ids, so that a test can place a token boundary, a pause or a failure where it wants it.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from anthesis.decoding import Vocabulary
from anthesis.v1 import (
    inference_pb2,
    inference_pb2_grpc,
    licence_pb2,
    licence_pb2_grpc,
    project_pb2,
    project_pb2_grpc,
    registry_pb2,
    registry_pb2_grpc,
)

from services.common.artifacts import ArtifactStore
from services.common.auth import Authenticate, Principal
from services.common.errors import NotFound, Unauthenticated
from services.common.server import GrpcServer
from services.gateway.config import GatewayConfig
from services.gateway.server import Gateway
from services.inference.server import ACCESS as INFERENCE_ACCESS
from services.registry.access import LICENCES as LICENCES_ACCESS
from services.registry.access import PROJECTS as PROJECTS_ACCESS
from services.registry.access import REGISTRY as REGISTRY_ACCESS
from services.tokenizer.loaded import LoadedTokenizer
from services.tokenizer.server import build_server
from tests.support.tokenizers import small_tokenizer_json

SERVICE_KEY, USER_KEY, PROJECT_KEY = "service-key", "user-key", "project-key"  # the last of project "lab"
VERSION = "anthesis/demo@1"
LICENCE = "apache-2.0 AND mit"
MAX_SEQUENCE_TOKENS = 64


async def authenticate(secret: str) -> Principal:
    roles = {SERVICE_KEY: "service", USER_KEY: "user", PROJECT_KEY: "user"}
    if secret not in roles:
        raise Unauthenticated("unknown API key")
    return Principal("id", secret, roles[secret], project="lab" if secret == PROJECT_KEY else "")


class ScriptedWorker(inference_pb2_grpc.InferenceServiceServicer):
    """Streams `script`, a list of messages' ids, then ends with the stop id it drew or with LENGTH.

    Choices draw the same, in turn, but those of which `scripts` has another; of `best_of` it gives the first n.
    """

    def __init__(self) -> None:
        self.script: list[list[int]] = []
        self.scripts: dict[int, list[list[int]]] = {}
        self.logprob = -0.5  # of every drawn token
        self.requests: list[inference_pb2.InferenceServiceGenerateRequest] = []
        self.scored: list[inference_pb2.InferenceServiceScoreRequest] = []
        self.embedded: list[inference_pb2.InferenceServiceEmbedRequest] = []
        self.seconds_left: list[float | None] = []  # of each call
        self.fail_before: tuple[grpc.StatusCode, str] | None = None
        self.trailing: tuple[tuple[str, str], ...] = ()  # metadata of that failure
        self.fail_after: tuple[grpc.StatusCode, str] | None = None
        self.pause_after: int | None = None  # messages, after which it draws no more until `resume`
        self.paused = asyncio.Event()
        self.resume = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.requests.append(request)
        self.seconds_left.append(context.time_remaining())
        if self.fail_before:
            await context.abort(*self.fail_before, self.trailing)
        try:
            async for response in self._draw(request):
                yield response
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        if self.fail_after:
            await context.abort(*self.fail_after)

    async def _draw(self, request: Any) -> AsyncIterator[Any]:
        if request.sampling.HasField("prompt_logprobs"):
            yield self._prompt(request)
        choices = [self._draw_choice(request, choice) for choice in range(request.sampling.n or 1)]
        while choices:
            for choice in list(choices):
                try:
                    yield await anext(choice)
                except StopAsyncIteration:
                    choices.remove(choice)

    async def _draw_choice(self, request: Any, choice: int) -> AsyncIterator[Any]:
        left = request.sampling.max_tokens or 64
        script = self.scripts.get(choice, self.script)
        for number, ids in enumerate(script):
            if number == self.pause_after:
                self.paused.set()
                await self.resume.wait()
            ids, ended = self._cut(ids[:left], request.sampling.stop_ids)
            left -= len(ids)
            last = ended or not left or number == len(script) - 1
            finish = inference_pb2.FINISH_REASON_STOP if ended else inference_pb2.FINISH_REASON_LENGTH
            yield inference_pb2.InferenceServiceGenerateResponse(
                tokens=[self._token(request, token_id, self.logprob * (choice + 1)) for token_id in ids],
                finish_reason=finish if last and not self.fail_after else None,
                choice=choice,
            )
            if last:
                return

    @classmethod
    def _prompt(cls, request: Any) -> Any:
        """Each token's log-probability is minus its id over 1024; alternatives as of drawn tokens."""
        first, *others = request.prompt_ids
        top = cls._top(request.sampling.prompt_logprobs)
        tokens = [
            inference_pb2.GeneratedToken(id=token_id, logprob=-token_id / 1024, top_logprobs=top) for token_id in others
        ]
        return inference_pb2.InferenceServiceGenerateResponse(
            prompt_tokens=[inference_pb2.GeneratedToken(id=first), *tokens]
        )

    @staticmethod
    def _cut(ids: list[int], stop_ids: Any) -> tuple[list[int], bool]:
        for position, token_id in enumerate(ids):
            if token_id in stop_ids:
                return ids[: position + 1], True
        return ids, False

    @classmethod
    def _token(cls, request: Any, token_id: int, logprob: float) -> Any:
        if not request.sampling.HasField("logprobs"):
            return inference_pb2.GeneratedToken(id=token_id)
        top = cls._top(request.sampling.logprobs)
        return inference_pb2.GeneratedToken(id=token_id, logprob=logprob, top_logprobs=top)

    @staticmethod
    def _top(num: int) -> Any:
        return [inference_pb2.TokenLogprob(id=10 + n, logprob=-1.0 - n) for n in range(num)]

    async def Embed(self, request: Any, context: Any) -> Any:
        """Two numbers: how many ids an input has, and the first of them."""
        self.embedded.append(request)
        if self.fail_before:
            await context.abort(*self.fail_before, self.trailing)
        vectors = [[len(ids.ids), ids.ids[0]] for ids in request.inputs]
        return inference_pb2.InferenceServiceEmbedResponse(
            embeddings=[inference_pb2.Embedding(values=vector) for vector in vectors]
        )

    async def Score(self, request: Any, context: Any) -> Any:
        """Each target's log-probability is minus its id over 1024; the likeliest is always id 4."""
        self.scored.append(request)
        if self.fail_before:
            await context.abort(*self.fail_before, self.trailing)
        return inference_pb2.InferenceServiceScoreResponse(
            items=[
                inference_pb2.ScoredIds(
                    logprobs=[-token_id / 1024 for token_id in item.target_ids],
                    best=[inference_pb2.TokenLogprob(id=4, logprob=-4 / 1024)] * len(item.target_ids),
                )
                for item in request.items
            ]
        )


class SmallRegistry(registry_pb2_grpc.RegistryServiceServicer):
    """Knows one version, by its name, its model's and an alias."""

    def __init__(self, tokenizer_digest: str) -> None:
        self.version = registry_pb2.ModelVersion(
            name=VERSION, model="anthesis/demo", number=1, tokenizer_digest=tokenizer_digest, licence=LICENCE
        )
        self.version.create_time.seconds = 1_700_000_000
        self.workers: list[registry_pb2.Worker] = []
        self.num_resolved = 0

    async def ResolveModel(self, request: Any, context: Any) -> Any:
        self.num_resolved += 1
        if request.name not in ("demo", "anthesis/demo", VERSION):
            raise NotFound(f"no model {request.name!r}; `anthesis models list` shows what there is")
        return registry_pb2.ResolveModelResponse(version=self.version, workers=self.workers)

    async def ListAliases(self, request: Any, context: Any) -> Any:
        return registry_pb2.ListAliasesResponse(aliases=[registry_pb2.Alias(name="demo", version=VERSION)])

    async def ListModels(self, request: Any, context: Any) -> Any:
        """Two pages; the second model has no weights."""
        if not request.page_token:
            model = registry_pb2.Model(name="anthesis/demo", latest_version=1)
            return registry_pb2.ListModelsResponse(models=[model], next_page_token="more")
        return registry_pb2.ListModelsResponse(models=[registry_pb2.Model(name="bigscience/bloom")])


class SmallLicences(licence_pb2_grpc.LicenceServiceServicer):
    """Refuses the principals in `refused`, in its words."""

    def __init__(self) -> None:
        self.refused: dict[str, str] = {}
        self.asked: list[tuple[str, str]] = []  # principal and version

    async def CheckAcceptance(self, request: Any, context: Any) -> Any:
        self.asked.append((request.principal, request.version))
        return licence_pb2.CheckAcceptanceResponse(refusal=self.refused.get(request.principal, ""))


class SmallProjects(project_pb2_grpc.ProjectServiceServicer):
    """Keeps what it is told, and has one project."""

    def __init__(self) -> None:
        self.allowance = project_pb2.Allowance(project="lab")
        self.told: list[project_pb2.UsageRecord] = []

    async def ReportUsage(self, request: Any, context: Any) -> Any:
        self.told.extend(request.usage)
        return project_pb2.ReportUsageResponse(allowances=[self.allowance])


@dataclass(kw_only=True)
class Backends:
    """A running gateway and what is behind it."""

    grpc_address: str
    http_url: str
    vocabulary: Vocabulary
    tokenizer: LoadedTokenizer
    store: ArtifactStore
    registry: SmallRegistry
    licences: SmallLicences
    projects: SmallProjects
    workers: list[ScriptedWorker]
    gateway: Gateway
    servers: dict[str, GrpcServer] = field(default_factory=dict)  # "registry", "tokenizer", "worker-0", …

    @property
    def worker(self) -> ScriptedWorker:
        return self.workers[0]

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.encode([text])[0].ids

    def byte_ids(self, text: str) -> list[int]:
        """The text as one id per byte, so that characters are cut."""
        return [self.vocabulary.tokens.index(bytes([byte])) for byte in text.encode()]

    def script(self, *messages: list[int]) -> None:
        for worker in self.workers:
            worker.script = list(messages)


@asynccontextmanager
async def running_gateway(
    folder: Path, *, num_workers: int = 1, verify: Authenticate = authenticate, **config: Any
) -> AsyncIterator[Backends]:
    """verify: keys at the gateway. config: fields of GatewayConfig."""
    async with AsyncExitStack() as stack:
        servers: dict[str, GrpcServer] = {}

        async def start(name: str, server: GrpcServer) -> str:
            servers[name] = server
            port = await server.start()
            stack.push_async_callback(server.stop, 0)
            return f"127.0.0.1:{port}"

        store = ArtifactStore(str(folder / "artifacts"), folder / "cache")
        digest = store.write_bytes(small_tokenizer_json().encode())
        tokenizer = LoadedTokenizer(digest, small_tokenizer_json().encode())
        registry = SmallRegistry(digest)
        server = GrpcServer("registry", "127.0.0.1:0", authenticate=authenticate)
        add_registry = registry_pb2_grpc.add_RegistryServiceServicer_to_server
        server.add(add_registry, registry, "anthesis.v1.RegistryService", REGISTRY_ACCESS)
        licences = SmallLicences()
        add_licences = licence_pb2_grpc.add_LicenceServiceServicer_to_server
        server.add(add_licences, licences, "anthesis.v1.LicenceService", LICENCES_ACCESS)
        projects = SmallProjects()
        add_projects = project_pb2_grpc.add_ProjectServiceServicer_to_server
        server.add(add_projects, projects, "anthesis.v1.ProjectService", PROJECTS_ACCESS)
        registry_address = await start("registry", server)
        tokenizer_address = await start("tokenizer", build_server("127.0.0.1:0", store, authenticate))
        workers = [ScriptedWorker() for _ in range(num_workers)]
        for number, worker in enumerate(workers):
            server = GrpcServer("inference", "127.0.0.1:0", authenticate=authenticate)
            add = inference_pb2_grpc.add_InferenceServiceServicer_to_server
            server.add(add, worker, "anthesis.v1.InferenceService", INFERENCE_ACCESS)
            address = await start(f"worker-{number}", server)
            registry.workers.append(
                registry_pb2.Worker(
                    id=f"worker-{number}", address=address, max_sequence_tokens=MAX_SEQUENCE_TOKENS, load=number
                )
            )
        settings = GatewayConfig(
            address="127.0.0.1:0",
            http_address="127.0.0.1:0",
            registry_address=registry_address,
            tokenizer_address=tokenizer_address,
            service_key=SERVICE_KEY,
            **{"resolve_ttl_s": 0.0, "drain_s": 5.0} | config,
        )
        gateway = Gateway(settings, verify)
        grpc_port, http_port = await gateway.start()
        stack.push_async_callback(gateway.stop)
        yield Backends(
            grpc_address=f"127.0.0.1:{grpc_port}",
            http_url=f"http://127.0.0.1:{http_port}",
            vocabulary=tokenizer.vocabulary(),
            tokenizer=tokenizer,
            store=store,
            registry=registry,
            licences=licences,
            projects=projects,
            workers=workers,
            gateway=gateway,
            servers=servers,
        )
