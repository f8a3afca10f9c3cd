"""Every call that names something, made by another project's admin: it is answered as if that were not there."""

from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any

import grpc
import httpx
from anthesis import Settings
from anthesis.v1 import (
    evaluation_pb2,
    file_pb2,
    generation_pb2,
    inference_pb2,
    job_pb2,
    licence_pb2,
    project_pb2,
    tokenizer_pb2,
    webhook_pb2,
)
from anthesis.v1 import registry_pb2 as pb
from google.protobuf.message import Message

from tests.support.projects import Belongings, fill_project, make_project

# What a request names by these may be somebody's; a call with one has its request below, or a reason why not.
NAMING = {"name", "id", "digest", "digests", "model", "version", "deployment", "job_id", "dataset", "model_version"}
NAMING |= {"tokenizer_digest", "dataset_digests", "webhook_id", "alias", "suite"}
NAMES_NOTHING_OF_A_PROJECT = {
    "JobService.ListJobs": "it finds nothing by another's names",
    "RegistryService.BeginUpload": "its sender has to send the bytes",
    "RegistryService.UploadArtifact": "it carries the bytes",
    "LicenceService.GetLicence": "licences are everybody's",
    "LicenceService.CreateLicence": "licences are everybody's",
    "LicenceService.AcceptLicence": "licences are everybody's",
}
CODES = {
    grpc.StatusCode.OK: "yes",
    grpc.StatusCode.NOT_FOUND: "404",
    grpc.StatusCode.PERMISSION_DENIED: "403",
    grpc.StatusCode.ALREADY_EXISTS: "409",
    grpc.StatusCode.UNAUTHENTICATED: "401",
}


def requests(of: Belongings) -> Mapping[str, Message]:
    """By RPC: a request that names what `of` has. In an order in which the project itself could make them."""
    options = job_pb2.TrainOptions(steps=1)
    tune = job_pb2.FineTuneSpec(output_model="mine", base=of.version, datasets=[of.dataset], options=options)
    file = pb.ModelFile(path="model.safetensors", digest=of.weights_digest)
    result = evaluation_pb2.EvaluationResult(language="fr", metric="accuracy", value=0.5)
    suite = evaluation_pb2.Suite(
        family=of.suite, kind=evaluation_pb2.SUITE_KIND_BITS_PER_BYTE, datasets=[{"name": of.dataset}]
    )
    gate = evaluation_pb2.Gate(alias=of.alias, suite=of.suite, max_regression_percent=1)
    version = pb.ModelVersion(model=of.model, tokenizer_digest=of.tokenizer_digest, files=[file])
    return {
        "GenerationService.Generate": generation_pb2.GenerateRequest(model=of.alias, prompt="a"),
        "GenerationService.Tokenize": generation_pb2.TokenizeRequest(model=of.model, text="a"),
        "GenerationService.Count": generation_pb2.CountRequest(model=of.version, texts=["a"]),
        "GenerationService.Score": generation_pb2.ScoreRequest(model=of.alias),
        "GenerationService.Embed": generation_pb2.EmbedRequest(model=of.alias, texts=["a"]),
        "InferenceService.Generate": inference_pb2.InferenceServiceGenerateRequest(model_version=of.version),
        "InferenceService.Score": inference_pb2.InferenceServiceScoreRequest(model_version=of.version),
        "InferenceService.Embed": inference_pb2.InferenceServiceEmbedRequest(model_version=of.version),
        "TokenizerService.Encode": tokenizer_pb2.EncodeRequest(tokenizer_digest=of.tokenizer_digest),
        "TokenizerService.Decode": tokenizer_pb2.DecodeRequest(tokenizer_digest=of.tokenizer_digest),
        "TokenizerService.CountTokens": tokenizer_pb2.CountTokensRequest(tokenizer_digest=of.tokenizer_digest),
        "TokenizerService.GetVocabulary": tokenizer_pb2.GetVocabularyRequest(tokenizer_digest=of.tokenizer_digest),
        "TokenizerService.TrainTokenizer": tokenizer_pb2.TrainTokenizerRequest(
            dataset_digests=[of.dataset_digest], vocab_size=512
        ),
        "JobService.CreateJob": job_pb2.CreateJobRequest(fine_tune=tune),
        "JobService.ReproduceVersion": job_pb2.ReproduceVersionRequest(version=of.version),
        "JobService.GetJob": job_pb2.GetJobRequest(id=of.job),
        "JobService.WatchJob": job_pb2.WatchJobRequest(id=of.job),
        "JobService.PauseJob": job_pb2.PauseJobRequest(id=of.job),
        "JobService.ResumeJob": job_pb2.ResumeJobRequest(id=of.job),
        "JobService.ReadJobLogs": job_pb2.ReadJobLogsRequest(id=of.job),
        "JobService.CancelJob": job_pb2.CancelJobRequest(id=of.job),
        "JobService.AcquireLease": job_pb2.AcquireLeaseRequest(job_id=of.job, worker_id="w"),
        "JobService.RenewLease": job_pb2.RenewLeaseRequest(job_id=of.job, fencing_token=1),
        "JobService.FinishJob": job_pb2.FinishJobRequest(job_id=of.job, fencing_token=1),
        "JobService.ReleaseLease": job_pb2.ReleaseLeaseRequest(job_id=of.job, fencing_token=1),
        "EvaluationService.CreateSuite": evaluation_pb2.CreateSuiteRequest(suite=suite),
        "EvaluationService.GetSuite": evaluation_pb2.GetSuiteRequest(name=of.suite),
        "EvaluationService.RecordEvaluation": evaluation_pb2.RecordEvaluationRequest(
            version=of.version, suite=of.benchmark, results=[result]
        ),
        "EvaluationService.ListEvaluations": evaluation_pb2.ListEvaluationsRequest(name=of.version),
        "EvaluationService.CompareEvaluations": evaluation_pb2.CompareEvaluationsRequest(
            version=of.version, base=of.version, suite=of.benchmark
        ),
        "EvaluationService.SetGate": evaluation_pb2.SetGateRequest(gate=gate),
        "EvaluationService.GetGate": evaluation_pb2.GetGateRequest(alias=of.alias),
        "EvaluationService.DeleteGate": evaluation_pb2.DeleteGateRequest(alias=of.alias),
        "LicenceService.CheckAcceptance": licence_pb2.CheckAcceptanceRequest(version=of.version),
        "ProjectService.CreateProject": project_pb2.CreateProjectRequest(name=of.project),
        "ProjectService.GetProject": project_pb2.GetProjectRequest(name=of.project),
        "ProjectService.UpdateProject": project_pb2.UpdateProjectRequest(name=of.project, archived=True),
        "ProjectService.NoteArtifact": project_pb2.NoteArtifactRequest(digest=of.dataset_digest),
        "RegistryService.GetModel": pb.GetModelRequest(name=of.model),
        "RegistryService.CreateModel": pb.CreateModelRequest(model=pb.Model(name=of.model, licence="mit")),
        "RegistryService.CreateModelVersion": pb.CreateModelVersionRequest(version=version),
        "RegistryService.GetModelVersion": pb.GetModelVersionRequest(name=of.version),
        "RegistryService.ListModelVersions": pb.ListModelVersionsRequest(model=of.model),
        "RegistryService.UpdateModelTags": pb.UpdateModelTagsRequest(name=of.version, add=["good"]),
        "RegistryService.GetModelCard": pb.GetModelCardRequest(name=of.version),
        "RegistryService.UpdateModelCard": pb.UpdateModelCardRequest(name=of.model, text="## Notes\n\nOurs.\n"),
        "RegistryService.DeleteModelVersion": pb.DeleteModelVersionRequest(name=of.spare_version),
        "RegistryService.UndeleteModelVersion": pb.UndeleteModelVersionRequest(name=of.spare_version),
        "RegistryService.DeleteModel": pb.DeleteModelRequest(name=of.empty_model),
        "RegistryService.UndeleteModel": pb.UndeleteModelRequest(name=of.empty_model),
        "RegistryService.GetLineage": pb.GetLineageRequest(version=of.version),
        "RegistryService.CompareVersions": pb.CompareVersionsRequest(version=of.version, other=of.version),
        "RegistryService.SetAlias": pb.SetAliasRequest(name=of.alias, version=of.version),
        "RegistryService.ListAliasChanges": pb.ListAliasChangesRequest(name=of.alias),
        "RegistryService.ResolveAlias": pb.ResolveAliasRequest(name=of.alias),
        "RegistryService.RollbackAlias": pb.RollbackAliasRequest(name=of.alias, generation=1),
        "RegistryService.ResolveModel": pb.ResolveModelRequest(name=of.alias),
        "RegistryService.AbandonUpload": pb.AbandonUploadRequest(id=of.upload),
        "RegistryService.DownloadArtifact": pb.DownloadArtifactRequest(digest=of.weights_digest),
        "RegistryService.GetArtifact": pb.GetArtifactRequest(digest=of.weights_digest),
        "RegistryService.VerifyArtifacts": pb.VerifyArtifactsRequest(digests=[of.weights_digest]),
        "RegistryService.CreateDataset": pb.CreateDatasetRequest(
            name=of.dataset, digest=of.dataset_digest, format=pb.DATASET_FORMAT_TEXT
        ),
        "RegistryService.GetDataset": pb.GetDatasetRequest(name=of.dataset),
        "RegistryService.ListDatasetVersions": pb.ListDatasetVersionsRequest(name=of.dataset),
        "RegistryService.PreviewDataset": pb.PreviewDatasetRequest(name=of.dataset),
        "FileService.CreateFile": file_pb2.CreateFileRequest(
            filename="a.jsonl", purpose="fine-tune", digest=of.dataset_digest
        ),
        "FileService.GetFile": file_pb2.GetFileRequest(id=of.file),
        "FileService.DeleteFile": file_pb2.DeleteFileRequest(id=of.spare_file),
        "WebhookService.ListWebhookDeliveries": webhook_pb2.ListWebhookDeliveriesRequest(webhook_id=of.webhook),
        "WebhookService.RedeliverWebhook": webhook_pb2.RedeliverWebhookRequest(id=of.delivery),
        "WebhookService.DeleteWebhook": webhook_pb2.DeleteWebhookRequest(id=of.webhook),
        "RegistryService.CreateDeployment": pb.CreateDeploymentRequest(
            deployment=pb.Deployment(name="mine", target=of.alias)
        ),
        "RegistryService.DeleteDeployment": pb.DeleteDeploymentRequest(name=of.deployment),
        "RegistryService.DeleteAlias": pb.DeleteAliasRequest(name=of.alias),
        "RegistryService.RevokeApiKey": pb.RevokeApiKeyRequest(id=of.key),
    }


ROUTES: Mapping[str, Any] = {  # route -> its body, which names the model; None: the path does
    "GET /v1/models/{name:path}": None,
    "POST /v1/completions": {"prompt": "a"},
    "POST /v1/embeddings": {"input": "a"},
    "POST /v1/fine_tuning/jobs": {},
    "GET /v1/fine_tuning/jobs/{job_id}": None,
    "GET /v1/fine_tuning/jobs/{job_id}/checkpoints": None,
    "GET /v1/fine_tuning/jobs/{job_id}/events": None,
    "POST /v1/fine_tuning/jobs/{job_id}/cancel": None,
    "GET /v1/files/{file_id}": None,
    "GET /v1/files/{file_id}/content": None,
    "DELETE /v1/files/{file_id}": None,
}
NAMES_NOTHING = {"POST /v1/files"}  # it carries the bytes


async def measure_projects(doors: Any, services: list[Any], served_by: Mapping[str, str]) -> tuple[Any, Any]:
    """What an admin of another project, and then the project's own, is answered: by RPC ("Service.Rpc") or route."""
    own = (await make_project(doors.registry, "lab"))["admin"]
    other = (await make_project(doors.registry, "neighbour"))["admin"]
    addresses = {f"{name}_address": address for name, address in doors.addresses.items()}
    lab = await fill_project(doors.registry, Settings(api_key=own, **addresses), "lab", doors.http_url)
    methods = {f"{service.name}.{method.name}": method for service in services for method in service.methods}
    asked = requests(lab)
    named = {rpc for rpc, method in methods.items() if NAMING & {field.name for field in method.input_type.fields}}
    forgotten = named - set(asked) - set(NAMES_NOTHING_OF_A_PROJECT)
    assert not forgotten, f"say in requests() what {sorted(forgotten)} names, or why that is of no project"
    routes = {route for route in doors.gateway.app.routes if "{" in route or route.startswith("POST")}
    assert routes == set(ROUTES) | NAMES_NOTHING, "say in ROUTES what a route of the gateway names"
    answers = []
    for secret in (other, own):
        async with AsyncExitStack() as stack:
            found = {}
            for rpc, request in asked.items():
                address = doors.addresses[served_by[rpc.partition(".")[0]]]
                channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
                found[rpc] = await _ask(channel, methods[rpc], request, secret)
            headers = {"authorization": f"Bearer {secret}"}
            http = await stack.enter_async_context(httpx.AsyncClient(base_url=doors.http_url, headers=headers))
            for route, body in ROUTES.items():
                verb, path = route.split(" ")
                sent = None if body is None else body | {"model": lab.version}
                if sent and "fine_tuning" in path:
                    sent |= {"training_file": lab.file}
                for field, name in (("name:path", lab.version), ("job_id", lab.fine_tuning), ("file_id", lab.file)):
                    path = path.replace(f"{{{field}}}", name)
                answer = await http.request(verb, path, json=sent)
                found[route] = str(answer.status_code) if answer.status_code in (401, 403, 404) else "yes"
            answers.append(found)
    return answers[0], answers[1]


async def _ask(channel: Any, method: Any, request: Message, secret: str) -> str:
    path = f"/{method.containing_service.full_name}/{method.name}"
    make = channel.unary_stream if method.server_streaming else channel.unary_unary
    call = make(path)(request.SerializeToString(), metadata=(("authorization", f"Bearer {secret}"),), timeout=30)
    try:
        if method.server_streaming:
            async for _ in call:
                break
            call.cancel()
        else:
            await call
    except grpc.aio.AioRpcError as error:
        if error.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN):
            raise
        return CODES.get(error.code(), "yes")
    return "yes"
