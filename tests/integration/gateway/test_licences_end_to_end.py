"""A RAIL model from its fine-tune to its answers: real registry, tokenizer and gateway, a worker that draws as told."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest
from anthesis import AsyncClient, FineTuneSpec, SamplingParams, Settings, TrainOptions
from anthesis.errors import FailedPreconditionError
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
from tests.support.registry_data import multitask_rows, store_checkpoint
from tests.support.registry_server import RunningRegistry, running_registry
from tests.support.tokenizers import small_tokenizer_json

RAIL = "bigscience-rail-1.0"
MODEL = BloomConfig(vocab_size=512, hidden_size=12, n_layer=2, n_head=3)


@dataclass(kw_only=True)
class Stack:
    registry: RunningRegistry
    ada: AsyncClient  # a user
    openai: openai.AsyncOpenAI  # hers
    worker_address: str

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

    async def train(self, job: job_pb2.Job) -> registry_pb2.ModelVersion:
        """What a trainer reports of a job that went well."""
        trainer = job_pb2_grpc.JobServiceStub(self.registry.channel("trainer"))
        taken = await trainer.AcquireLease(job_pb2.AcquireLeaseRequest(job_id=job.id, worker_id="t"))
        files, _ = self.stored()
        finished = job_pb2.FinishJobRequest(
            job_id=job.id, fencing_token=taken.lease.fencing_token, succeeded=job_pb2.ModelFiles(files=files)
        )
        done = (await trainer.FinishJob(finished)).job
        return await self.ada.models.get_version(done.model_version)

    async def serve(self, version: str) -> None:
        """A worker says that it has the version ready."""
        model = registry_pb2.WorkerModel(version=version, state="READY", max_sequence_tokens=64)
        beat = registry_pb2.HeartbeatWorkerRequest(worker_id="w", address=self.worker_address, models=[model])
        await registry_pb2_grpc.RegistryServiceStub(self.registry.channel("inference")).HeartbeatWorker(beat)


@asynccontextmanager
async def served(server: GrpcServer) -> AsyncIterator[str]:
    yield f"127.0.0.1:{await server.start()}"
    await server.stop(0)


@pytest.fixture
async def stack() -> AsyncIterator[Stack]:
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
                yield Stack(registry=registry, ada=ada, openai=theirs, worker_address=worker_address)
            await gateway.stop()


def fine_tune(base: str) -> FineTuneSpec:
    return FineTuneSpec(output_model="tuned", base=base, datasets=["tasks"], options=TrainOptions(steps=10))


async def refused(call, what: str) -> None:
    """`call` fails and says what is restricted and how to accept."""
    with pytest.raises(FailedPreconditionError) as error:
        await call
    for said in (f"'ada' has first to accept what {what}", "1. In any way", f"`anthesis licences accept {RAIL}`"):
        assert said in str(error.value)


async def test_a_rail_model_is_tuned_downloaded_and_used_by_who_accepted_alone(stack: Stack, tmp_path: Path) -> None:
    ada = stack.ada
    base = await stack.add_version("bloom", RAIL)
    await ada.datasets.create("tasks", (await ada.artifacts.upload_bytes(multitask_rows())).digest, format=2)
    weights = next(file.digest for file in base.files if file.path == "model.safetensors")
    await stack.serve(base.name)

    await refused(ada.jobs.create(fine_tune("bloom")), "bloom@1 is under")
    await refused(ada.artifacts.download(weights, tmp_path / "weights"), f"artifact {weights} is under")
    await refused(ada.complete("bloom", "Hello"), "bloom@1 is under")
    with pytest.raises(openai.PermissionDeniedError, match=f"accept {RAIL}") as denied:
        await stack.openai.completions.create(model="bloom", prompt="Hello")
    assert denied.value.code == "licence_not_accepted"
    assert not await ada.jobs.list()
    assert not (tmp_path / "weights").exists()

    (licence,) = await ada.licences.missing("bloom")
    await ada.licences.accept(licence.id, licence.digest)
    version = await stack.train(await ada.jobs.create(fine_tune("bloom")))

    assert (version.parent, version.licence) == ("bloom@1", RAIL)
    for number, file in enumerate(version.files):
        await ada.artifacts.download(file.digest, tmp_path / str(number))
    texts = {file.path: (tmp_path / str(number)).read_bytes() for number, file in enumerate(version.files)}
    assert texts[f"LICENSES/{RAIL}.txt"].decode() == licence.text
    assert licence.use_restrictions in texts["USE_RESTRICTIONS"].decode()
    assert "bloom@1" in texts["NOTICE"].decode()
    assert f"trained by job {version.job_id} from the weights of bloom@1" in texts["CHANGES"].decode()

    await stack.serve(version.name)
    answer = await ada.complete("tuned", "Hello", SamplingParams(max_tokens=8))
    assert (answer.text, answer.machine_generated, list(answer.licences)) == (" world", True, [RAIL])
    raw = await stack.openai.completions.with_raw_response.create(model="tuned", prompt="Hello")
    assert raw.headers["x-anthesis-machine-generated"] == "true"
    assert raw.headers["x-anthesis-licences"] == RAIL


async def test_a_merge_is_under_both_licences_and_tells_of_both_parents(stack: Stack) -> None:
    await stack.add_version("bloom", RAIL)
    await stack.add_version("free", "MIT")
    merged = await stack.add_version("merged", parent="bloom", other_parents=["free"])
    assert merged.licence == "bigscience-rail-1.0 AND mit"
    assert {"LICENSES/bigscience-rail-1.0.txt", "LICENSES/mit.txt"} <= {file.path for file in merged.files}
    assert [ancestor.name for ancestor in await stack.ada.models.lineage("merged")] == ["bloom@1", "free@1"]
    await stack.serve(merged.name)
    await refused(stack.ada.complete("merged", "Hello"), "merged@1 is under")
