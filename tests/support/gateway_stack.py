"""Real registry, tokenizer and gateway, and a worker that draws as told: what users do from a dataset to an answer."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import openai
from anthesis import AsyncClient, Settings
from anthesis.v1 import inference_pb2_grpc, job_pb2, job_pb2_grpc, registry_pb2, registry_pb2_grpc

from bloom.config import BloomConfig
from services.common.auth import RegistryAuthenticator
from services.common.server import GrpcServer
from services.gateway.config import GatewayConfig
from services.gateway.server import Gateway
from services.inference.server import ACCESS as INFERENCE_ACCESS
from services.tokenizer.loaded import LoadedTokenizer
from services.tokenizer.server import build_server
from tests.support.gateway_backends import ScriptedWorker
from tests.support.registry_data import store_checkpoint
from tests.support.registry_server import RunningRegistry, running_registry
from tests.support.tokenizers import small_tokenizer_json

MODEL = BloomConfig(vocab_size=512, hidden_size=12, n_layer=2, n_head=3)


@dataclass(kw_only=True)
class Stack:
    registry: RunningRegistry
    ada: AsyncClient  # a trainer
    ada_key: str
    openai: openai.AsyncOpenAI  # hers
    http_url: str
    worker_address: str

    @property
    def trainer(self) -> Any:
        """What a trainer worker calls."""
        return job_pb2_grpc.JobServiceStub(self.registry.channel("trainer"))

    async def key_of(self, principal: str, role: "registry_pb2.Role.ValueType") -> str:
        settings = Settings(api_key=self.registry.admin_key, registry_address=self.registry.address)
        async with AsyncClient(settings) as admin:
            return (await admin.keys.create(principal, role)).secret

    def stored(self) -> tuple[list[registry_pb2.ModelFile], str]:
        stored = store_checkpoint(self.registry.artifacts, MODEL, tokenizer=small_tokenizer_json().encode())
        return [registry_pb2.ModelFile(path=file.path, digest=file.digest) for file in stored.files], (
            stored.tokenizer_digest
        )

    async def add_version(self, model: str, licence: str = "", **changes) -> registry_pb2.ModelVersion:
        files, tokenizer = self.stored()
        version = registry_pb2.ModelVersion(
            model=model, licence=licence, files=files, tokenizer_digest=tokenizer, **changes
        )
        return await self.ada.models.create_version(version)

    async def acquire(self, job_id: str) -> int:
        """A trainer takes the job; its fencing token."""
        taken = await self.trainer.AcquireLease(job_pb2.AcquireLeaseRequest(job_id=job_id, worker_id="t"))
        return int(taken.lease.fencing_token)

    async def finish(self, job_id: str, token: int) -> registry_pb2.ModelVersion:
        """What a trainer reports of a job that went well."""
        files, _ = self.stored()
        finished = job_pb2.FinishJobRequest(
            job_id=job_id, fencing_token=token, succeeded=job_pb2.ModelFiles(files=files)
        )
        done = (await self.trainer.FinishJob(finished)).job
        return await self.ada.models.get_version(done.model_version)

    async def train(self, job: job_pb2.Job) -> registry_pb2.ModelVersion:
        return await self.finish(job.id, await self.acquire(job.id))

    async def serve(self, version: str) -> None:
        """A worker says that it has the version ready."""
        model = registry_pb2.WorkerModel(version=version, state="READY", max_sequence_tokens=64)
        beat = registry_pb2.HeartbeatWorkerRequest(worker_id="w", address=self.worker_address, models=[model])
        await registry_pb2_grpc.RegistryServiceStub(self.registry.channel("inference")).HeartbeatWorker(beat)


@asynccontextmanager
async def served(server: GrpcServer) -> AsyncIterator[str]:
    yield f"127.0.0.1:{await server.start()}"
    await server.stop(0)


@asynccontextmanager
async def running_stack() -> AsyncIterator[Stack]:
    async with running_registry(worker_lease_s=60.0) as registry:
        authenticate = RegistryAuthenticator(registry.address, registry.keys["gateway"])
        worker = ScriptedWorker()
        worker.script = [LoadedTokenizer("x", small_tokenizer_json().encode()).encode([" world"])[0].ids]
        workers = GrpcServer("inference", "127.0.0.1:0", authenticate=authenticate)
        add = inference_pb2_grpc.add_InferenceServiceServicer_to_server
        workers.add(add, worker, "anthesis.v1.InferenceService", INFERENCE_ACCESS)
        tokenizers = build_server("127.0.0.1:0", registry.artifacts, authenticate)
        async with served(workers) as worker_address, served(tokenizers) as tokenizer_address:
            config = GatewayConfig(
                address="127.0.0.1:0",
                http_address="127.0.0.1:0",
                registry_address=registry.address,
                tokenizer_address=tokenizer_address,
                service_key=registry.keys["gateway"],
            )
            gateway = Gateway(config)
            grpc_port, http_port = await gateway.start()
            async with AsyncClient(Settings(api_key=registry.admin_key, registry_address=registry.address)) as admin:
                key = (await admin.keys.create("ada", registry_pb2.ROLE_TRAINER)).secret
            settings = Settings(
                api_key=key, registry_address=registry.address, gateway_address=f"127.0.0.1:{grpc_port}"
            )
            theirs = openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{http_port}/v1", api_key=key, max_retries=0)
            async with AsyncClient(settings) as ada, theirs:
                yield Stack(
                    registry=registry,
                    ada=ada,
                    ada_key=key,
                    openai=theirs,
                    http_url=f"http://127.0.0.1:{http_port}",
                    worker_address=worker_address,
                )
            await gateway.stop()
