"""A gateway and a registry with believable data in memory, for working on the playground without the platform.

python -m tests.support.fake_platform --port 50999     # then ANTHESIS_GATEWAY_ADDRESS=…, ANTHESIS_REGISTRY_ADDRESS=…
"""

import argparse
import json
import math
import re
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc
from anthesis.v1 import generation_pb2 as gen
from anthesis.v1 import generation_pb2_grpc, job_pb2_grpc, registry_pb2_grpc
from anthesis.v1 import inference_pb2 as inf
from anthesis.v1 import job_pb2 as job
from anthesis.v1 import registry_pb2 as reg
from anthesis.v1 import tokenizer_pb2 as tok
from google.protobuf.timestamp_pb2 import Timestamp

from ui.languages import LANGUAGES

CONFIG = json.dumps(
    {"architectures": ["BloomForCausalLM"], "hidden_size": 192, "n_layer": 3, "n_head": 6, "vocab_size": 4096}
)
TOKENIZER = "sha256:" + "7c" * 32
STEPS, STEP_S = 400, 0.25


def stamp(seconds: float) -> Timestamp:
    return Timestamp(seconds=int(seconds), nanos=int(seconds % 1 * 1e9))


def cut(text: str) -> list[bytes]:
    """Words with their leading space, cut into at most 6 bytes: some pieces are parts of a character."""
    words = [w.encode() for w in re.findall(r"\s?[^\s]+|\s", text)]
    return [w[i : i + 6] for w in words for i in range(0, len(w), 6)]


def ids_of(tokens: list[bytes]) -> list[int]:
    return [4 + int.from_bytes(t[:3], "big") % 4000 for t in tokens]


class FakePlatform(
    generation_pb2_grpc.GenerationServiceServicer,
    registry_pb2_grpc.RegistryServiceServicer,
    job_pb2_grpc.JobServiceServicer,
):
    """The three services in one object. `token_s`: seconds per generated token."""

    def __init__(self, token_s: float = 0.03) -> None:
        self.token_s = token_s
        self.cancelled_calls = 0
        now = time.time()
        natural = [language.code for language in LANGUAGES if not language.programming]
        self.models = {
            m.name: m
            for m in (
                reg.Model(
                    name="seedling",
                    description="Pre-trained on the Universal Declaration of Human Rights in 42 languages.",
                    licence="apache-2.0",
                    languages=natural[:42],
                    config_json=CONFIG,
                    latest_version=1,
                    parameters=2_148_480,
                    create_time=stamp(now - 9000),
                ),
                reg.Model(
                    name="seedling-z",
                    description="seedling, tuned on tasks: translate, name the language, continue.",
                    licence="apache-2.0",
                    languages=natural[:42],
                    config_json=CONFIG,
                    latest_version=2,
                    base_model="seedling",
                    parameters=2_148_480,
                    create_time=stamp(now - 4000),
                ),
                *(
                    reg.Model(
                        name=f"bigscience/{name}",
                        description=f"BigScience's {name}",
                        licence="bigscience-rail-1.0",
                        languages=natural,
                        config_json=CONFIG,
                        in_catalogue=True,
                        parameters=parameters,
                        base_model=base,
                    )
                    for name, parameters, base in (
                        ("bloom-560m", 559_214_592, ""),
                        ("bloom-1b1", 1_065_314_304, ""),
                        ("bloom-1b7", 1_722_408_960, ""),
                        ("bloom-3b", 3_002_557_440, ""),
                        ("bloom-7b1", 7_069_016_064, ""),
                        ("bloom", 176_247_271_424, ""),
                        ("bloomz-560m", 559_214_592, "bigscience/bloom-560m"),
                        ("bloomz", 176_247_271_424, "bigscience/bloom"),
                    )
                ),
            )
        }
        self.versions: dict[str, reg.ModelVersion] = {}
        self.aliases: dict[str, str] = {}
        self.deployments: dict[str, reg.Deployment] = {}
        self.datasets = {
            "udhr": reg.Dataset(
                name="udhr",
                format=reg.DATASET_FORMAT_TEXT,
                digest="sha256:" + "ab" * 32,
                num_rows=1052,
                size_bytes=537_000,
                languages=natural[:42],
            ),
            "tasks": reg.Dataset(
                name="tasks",
                format=reg.DATASET_FORMAT_MULTITASK,
                digest="sha256:" + "cd" * 32,
                num_rows=8000,
                size_bytes=1_900_000,
                languages=["fr", "es", "hi", "yo"],
            ),
        }
        self.jobs: dict[str, job.Job] = {}
        self.started: dict[str, float] = {}
        self._lock = threading.Lock()
        self.add_version("seedling", "", "job-00a1", ["udhr"])
        self.add_version("seedling-z", "seedling@1", "job-00a2", ["tasks"])
        self.add_version("seedling-z", "seedling@1", "job-00a3", ["tasks"])
        for alias, version in (("seedling", "seedling@1"), ("seedling-z", "seedling-z@2")):
            self.aliases[alias] = version
            self.deployments[alias] = reg.Deployment(
                name=alias, target=alias, version=version, ready_replicas=1, create_time=stamp(now)
            )
        self.add_job("job-00a3", now - 3600)
        self.add_job("job-00b4", now - 30)
        failed = self.add_job("job-00a9", now - 2000)
        failed.state = job.JOB_STATE_FAILED
        failed.end_time.CopyFrom(stamp(now - 1950))
        failed.error.CopyFrom(
            job.JobError(
                code="OUT_OF_MEMORY",
                parameter="micro_batch",
                message="rank 0 ran out of memory at micro_batch=64; try 32 or less",
            )
        )

    def add_version(self, model: str, parent: str, job_id: str, datasets: list[str]) -> str:
        number = 1 + sum(v.model == model for v in self.versions.values())
        files = [
            reg.ModelFile(path=p, digest="sha256:" + "ef" * 32, size_bytes=s)
            for p, s in (("config.json", 720), ("model.safetensors", 8_593_920))
        ]
        name = f"{model}@{number}"
        self.versions[name] = reg.ModelVersion(
            model=model,
            number=number,
            name=name,
            licence="apache-2.0",
            tokenizer_digest=TOKENIZER,
            files=files,
            config_json=CONFIG,
            parameters=2_148_480,
            size_bytes=8_594_640,
            parent=parent,
            job_id=job_id,
            datasets=datasets,
            create_time=stamp(time.time()),
            source="job",
        )
        return name

    def add_job(self, job_id: str, started: float) -> job.Job:
        spec = job.FineTuneSpec(
            output_model="seedling-z",
            base="seedling@1",
            datasets=["tasks"],
            options=job.TrainOptions(steps=STEPS, learning_rate=3e-4),
        )
        self.jobs[job_id] = job.Job(
            id=job_id,
            fine_tune=spec,
            state=job.JOB_STATE_RUNNING,
            create_time=stamp(started - 2),
            start_time=stamp(started),
            attempts=1,
            created_by="admin",
        )
        self.started[job_id] = started
        return self.jobs[job_id]

    # -- generation

    def Generate(self, request: gen.GenerateRequest, context: Any) -> Iterator[gen.GenerateResponse]:
        version = self._version(request.model, context)
        # By reading how much of an article the prompt spells, it goes on as a well-read model would.
        text = next((a for a in (x.article for x in LANGUAGES) if a and a.startswith(request.prompt[:12])), "")
        text = (
            text[len(request.prompt) :]
            if text.startswith(request.prompt)
            else " and so it went on: <b>bold</b> $x^2$ and one more line.\n" * 4
        )
        tokens = cut(text)[: request.sampling.max_tokens or 64]
        held = b""
        for token in tokens:
            time.sleep(self.token_s)
            if not context.is_active():
                self.cancelled_calls += 1
                return
            held += token
            try:
                whole, held = held.decode(), b""
            except UnicodeDecodeError:
                whole = ""
            yield gen.GenerateResponse(text=whole, tokens=[gen.TextToken(id=ids_of([token])[0], bytes=token)])
        reason = inf.FINISH_REASON_LENGTH if len(tokens) == request.sampling.max_tokens else inf.FINISH_REASON_STOP
        usage = gen.Usage(prompt_tokens=len(cut(request.prompt)), completion_tokens=len(tokens))
        yield gen.GenerateResponse(finish_reason=reason, usage=usage, model_version=version.name)

    def Tokenize(self, request: gen.TokenizeRequest, context: Any) -> gen.TokenizeResponse:
        tokens = cut(request.text)
        spans, at = [], 0
        for token in tokens:
            spans.append(tok.Span(start=at, end=at + len(token)))
            at += len(token)
        return gen.TokenizeResponse(
            ids=ids_of(tokens), tokens=tokens, byte_offsets=spans, text=request.text, tokenizer_digest=TOKENIZER
        )

    def Count(self, request: gen.CountRequest, context: Any) -> gen.CountResponse:
        return gen.CountResponse(counts=[len(cut(t)) for t in request.texts])

    # -- registry

    def _version(self, name: str, context: Any) -> reg.ModelVersion:
        name = self.aliases.get(name, name)
        if name in self.versions:
            return self.versions[name]
        mine = [v for v in self.versions.values() if v.model == name]
        if not mine:
            context.abort(
                grpc.StatusCode.NOT_FOUND,
                f"no model, version or alias {name!r}; `anthesis models list` shows what there is",
            )
        return mine[-1]

    def ListModels(self, request: Any, context: Any) -> reg.ListModelsResponse:
        return reg.ListModelsResponse(models=self.models.values())

    def GetModel(self, request: Any, context: Any) -> reg.GetModelResponse:
        return reg.GetModelResponse(model=self.models[request.name])

    def ListModelVersions(self, request: Any, context: Any) -> reg.ListModelVersionsResponse:
        found = [v for v in self.versions.values() if request.model in ("", v.model)]
        return reg.ListModelVersionsResponse(versions=found[::-1])

    def GetModelVersion(self, request: Any, context: Any) -> reg.GetModelVersionResponse:
        return reg.GetModelVersionResponse(version=self._version(request.name, context))

    def GetLineage(self, request: Any, context: Any) -> reg.GetLineageResponse:
        found, version = [], self._version(request.version, context)
        while version.parent:
            version = self.versions[version.parent]
            found.append(version)
        return reg.GetLineageResponse(ancestors=found)

    def ResolveModel(self, request: Any, context: Any) -> reg.ResolveModelResponse:
        return reg.ResolveModelResponse(
            version=self._version(request.name, context),
            workers=[reg.Worker(id="w1", device="cpu", max_sequence_tokens=2048)],
        )

    def ListAliases(self, request: Any, context: Any) -> reg.ListAliasesResponse:
        return reg.ListAliasesResponse(aliases=[reg.Alias(name=n, version=v) for n, v in self.aliases.items()])

    def SetAlias(self, request: Any, context: Any) -> reg.SetAliasResponse:
        self.aliases[request.name] = self._version(request.version, context).name
        return reg.SetAliasResponse(alias=reg.Alias(name=request.name, version=self.aliases[request.name]))

    def ListDeployments(self, request: Any, context: Any) -> reg.ListDeploymentsResponse:
        for deployment in self.deployments.values():
            deployment.version = self._version(deployment.target, context).name
        return reg.ListDeploymentsResponse(deployments=self.deployments.values())

    def CreateDeployment(self, request: Any, context: Any) -> reg.CreateDeploymentResponse:
        deployment = request.deployment
        deployment.version, deployment.ready_replicas = self._version(deployment.target, context).name, 1
        self.deployments[deployment.name] = deployment
        return reg.CreateDeploymentResponse(deployment=deployment)

    def DeleteDeployment(self, request: Any, context: Any) -> reg.DeleteDeploymentResponse:
        self.deployments.pop(request.name, None)
        return reg.DeleteDeploymentResponse()

    def ListDatasets(self, request: Any, context: Any) -> reg.ListDatasetsResponse:
        return reg.ListDatasetsResponse(datasets=self.datasets.values())

    def UploadArtifact(self, requests: Iterator[reg.UploadArtifactRequest], context: Any) -> reg.UploadArtifactResponse:
        header = next(requests).header
        self.uploaded = b"".join(r.data for r in requests)
        return reg.UploadArtifactResponse(artifact=reg.Artifact(digest=header.digest, size_bytes=header.size_bytes))

    def CreateDataset(self, request: Any, context: Any) -> reg.CreateDatasetResponse:
        wanted = {"text"} if request.format == reg.DATASET_FORMAT_TEXT else {"inputs", "targets"}
        bad = []
        rows = self.uploaded.decode(errors="replace").splitlines()
        for number, line in enumerate(rows, 1):
            try:
                missing = wanted - json.loads(line).keys()
                if missing:
                    bad.append(f"row {number}: {sorted(missing)[0]!r} is missing")
            except ValueError as error:
                bad.append(f"row {number}: not JSON: {error}")
        if bad:
            context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"{len(bad)} of {len(rows)} rows of dataset {request.name!r} are bad:\n" + "\n".join(bad),
            )
        self.datasets[request.name] = reg.Dataset(
            name=request.name,
            format=request.format,
            digest=request.digest,
            num_rows=len(rows),
            size_bytes=len(self.uploaded),
        )
        return reg.CreateDatasetResponse(dataset=self.datasets[request.name])

    # -- jobs

    def _progress(self, job_id: str, step: int) -> job.TrainingProgress:
        loss = 1.4 + 3.6 * math.exp(-step / 70) + 0.12 * math.sin(step * 1.7) * math.exp(-step / 300)
        rate = 3e-4 * min(1.0, step / 20) * (0.55 + 0.45 * math.cos(math.pi * step / STEPS))
        return job.TrainingProgress(
            step=step,
            total_steps=STEPS,
            loss=loss,
            learning_rate=rate,
            grad_norm=0.6 + 0.3 * math.sin(step),
            tokens_per_second=8900 + 300 * math.sin(step / 3),
            tokens_seen=step * 4096,
            seconds_left=(STEPS - step) * STEP_S,
            time=stamp(self.started[job_id] + step * STEP_S),
        )

    def _refresh(self, job_id: str, context: Any) -> job.Job:
        if job_id not in self.jobs:
            context.abort(grpc.StatusCode.NOT_FOUND, f"no job {job_id!r}")
        found, step = self.jobs[job_id], int((time.time() - self.started[job_id]) / STEP_S)
        with self._lock:
            if found.state == job.JOB_STATE_RUNNING and step >= STEPS:
                found.state, found.model_version = (
                    job.JOB_STATE_SUCCEEDED,
                    self.add_version("seedling-z", "seedling@1", job_id, ["tasks"]),
                )
                found.end_time.CopyFrom(stamp(self.started[job_id] + STEPS * STEP_S))
        if found.state in (job.JOB_STATE_RUNNING, job.JOB_STATE_SUCCEEDED):
            found.progress.CopyFrom(self._progress(job_id, max(1, min(step, STEPS))))
        return found

    def CreateJob(self, request: Any, context: Any) -> job.CreateJobResponse:
        if request.fine_tune.options.learning_rate > 1:
            context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"learning_rate={request.fine_tune.options.learning_rate:g} is out of range; choose a value in (0, 1]",
            )
        made = self.add_job(f"job-{len(self.jobs):04x}", time.time())
        made.fine_tune.CopyFrom(request.fine_tune)
        return job.CreateJobResponse(job=made)

    def GetJob(self, request: Any, context: Any) -> job.GetJobResponse:
        return job.GetJobResponse(job=self._refresh(request.id, context))

    def ListJobs(self, request: Any, context: Any) -> job.ListJobsResponse:
        found = [self._refresh(job_id, context) for job_id in self.jobs]
        return job.ListJobsResponse(jobs=sorted(found, key=lambda j: -j.create_time.seconds))

    def CancelJob(self, request: Any, context: Any) -> job.CancelJobResponse:
        found = self._refresh(request.id, context)
        if found.state != job.JOB_STATE_RUNNING:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"job {request.id!r} has ended")
        found.state, found.cancel_requested = job.JOB_STATE_CANCELLED, True
        return job.CancelJobResponse(job=found)

    def WatchJob(self, request: Any, context: Any) -> Iterator[job.WatchJobResponse]:
        sequence = request.after_sequence
        while context.is_active():
            found = self._refresh(request.id, context)
            newest = found.progress.step + 2
            while sequence < newest:
                sequence += 1
                event = job.JobEvent(
                    sequence=sequence, time=stamp(self.started[request.id] + max(0, sequence - 2) * STEP_S)
                )
                if sequence == 1:
                    event.message = "attempt 1 started on worker trainer-1"
                elif sequence == 2:
                    event.state = job.JOB_STATE_RUNNING
                else:
                    event.progress.CopyFrom(self._progress(request.id, sequence - 2))
                yield job.WatchJobResponse(event=event)
            if found.state != job.JOB_STATE_RUNNING:
                yield job.WatchJobResponse(
                    event=job.JobEvent(sequence=sequence + 1, time=found.end_time, state=found.state)
                )
                return
            time.sleep(0.1)


def serve(platform: FakePlatform, port: int = 0) -> tuple[grpc.Server, int]:
    """Start the platform on a loopback port (0: a free one); return the server and its port."""
    server = grpc.server(futures.ThreadPoolExecutor(16))
    generation_pb2_grpc.add_GenerationServiceServicer_to_server(platform, server)
    registry_pb2_grpc.add_RegistryServiceServicer_to_server(platform, server)
    job_pb2_grpc.add_JobServiceServicer_to_server(platform, server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    return server, bound


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=50999)
    running, at = serve(FakePlatform(), parser.parse_args().port)
    print(
        f"ANTHESIS_GATEWAY_ADDRESS=127.0.0.1:{at} ANTHESIS_REGISTRY_ADDRESS=127.0.0.1:{at} ANTHESIS_API_KEY=fake",
        flush=True,
    )
    running.wait_for_termination()
