"""Deadlines and retries: which methods, and that the channel applies them."""

import json
from typing import Any

from anthesis.policy import service_config
from anthesis.v1 import (
    evaluation_pb2,
    file_pb2,
    generation_pb2,
    inference_pb2,
    job_pb2,
    licence_pb2,
    project_pb2,
    registry_pb2,
    tokenizer_pb2,
    webhook_pb2,
)


def methods() -> dict[str, dict[str, Any]]:
    """Full name of a method -> its entry in the configuration."""
    entries = json.loads(service_config())["methodConfig"]
    return {f"{name['service']}.{name['method']}": entry for entry in entries for name in entry["name"] if name}


def test_every_method_named_exists() -> None:
    files = (
        *(evaluation_pb2, file_pb2, generation_pb2, inference_pb2, job_pb2),
        *(licence_pb2, project_pb2, registry_pb2, tokenizer_pb2, webhook_pb2),
    )
    services = [service for file in files for service in file.DESCRIPTOR.services_by_name.values()]

    assert methods().keys() <= {method.full_name for service in services for method in service.methods}


def test_no_method_is_configured_twice() -> None:
    names = [
        (name.get("service"), name.get("method"))
        for entry in json.loads(service_config())["methodConfig"]
        for name in entry["name"]
    ]

    assert len(set(names)) == len(names)


def test_what_would_happen_twice_is_never_retried() -> None:
    once = (
        *("RegistryService.CreateModel", "RegistryService.CreateModelVersion", "RegistryService.CreateDataset"),
        *("RegistryService.CreateApiKey", "RegistryService.RevokeApiKey", "RegistryService.DeleteDeployment"),
        *("RegistryService.RollbackAlias", "RegistryService.DeleteAlias"),
        *("EvaluationService.RecordEvaluation", "EvaluationService.DeleteGate", "ProjectService.CreateProject"),
        *("JobService.PauseJob", "JobService.ResumeJob"),
        *("WebhookService.CreateWebhook", "WebhookService.DeleteWebhook", "WebhookService.RedeliverWebhook"),
        "FileService.DeleteFile",
        *(f"RegistryService.{verb}{what}" for verb in ("Delete", "Undelete") for what in ("Model", "ModelVersion")),
        *("RegistryService.UpdateModelCard", "LicenceService.CreateLicence"),
        *("JobService.CancelJob", "GenerationService.Generate", "TokenizerService.TrainTokenizer"),
    )

    for name in once:
        assert "retryPolicy" not in methods().get(f"anthesis.v1.{name}", {}), name


def test_only_streams_that_may_last_have_no_deadline() -> None:
    endless = {name.rpartition(".")[2] for name, entry in methods().items() if "timeout" not in entry}

    transfers = {"UploadArtifact", "DownloadArtifact", "VerifyArtifacts", "CollectGarbage"}
    assert endless == transfers | {"WatchJob", "TrainTokenizer"}
