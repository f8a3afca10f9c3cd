"""Deadlines and retries of every method, as a gRPC service config: the channel itself applies them, sync and async.

A method is retried, on UNAVAILABLE alone, only when doing it twice is doing it once.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

_READ_S, _WRITE_S, _COMPUTE_S = 30, 60, 600
_ALL = {"name": [{}], "timeout": f"{_WRITE_S}s"}
_RETRY = {
    "maxAttempts": 5,  # gRPC's own ceiling
    "initialBackoff": "0.3s",  # 4 s over all attempts: longer than a channel waits before it connects again
    "maxBackoff": "2s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}

_READS = (
    "ListModels GetModel GetModelVersion ListModelVersions GetLineage ListAliases ListAliasChanges ResolveAlias "
    "ResolveModel GetArtifact GetModelCard"
)
_LOOKS = "GetDataset ListDatasets ListDatasetVersions ListDeployments ListApiKeys ListAuditEntries"
_MEASURED = "GetSuite ListSuites ListEvaluations CompareEvaluations GetGate ListGates"
_IDEMPOTENT: Mapping[int, Mapping[str, Sequence[str]]] = {
    _READ_S: {
        "RegistryService": [*_READS.split(), *_LOOKS.split()],
        "JobService": ["GetJob", "ListJobs", "ReadJobLogs"],
        "WebhookService": ["ListWebhooks", "ListWebhookDeliveries"],
        "FileService": ["GetFile", "ListFiles"],
        "LicenceService": ["ListLicences", "GetLicence", "ListAcceptances", "CheckAcceptance"],
        "EvaluationService": _MEASURED.split(),
        "ProjectService": ["ListProjects", "GetProject", "ListUsage"],
        "InferenceService": ["GetWorkerStatus"],
    },
    _WRITE_S: {
        "RegistryService": ["SetAlias", "CreateDeployment", "BeginUpload"],
        "JobService": ["CreateJob"],  # the client always sends an idempotency key
        "LicenceService": ["AcceptLicence"],
        "EvaluationService": ["CreateSuite", "SetGate"],  # the same suite is the same version
        "ProjectService": ["UpdateProject"],
        "GenerationService": ["Tokenize", "Count"],
    },
    _COMPUTE_S: {"GenerationService": ["Score", "Embed"], "FileService": ["CreateFile"]},  # which has a key, too
}
# CreateDataset reads every row, PreviewDataset up to the last one it shows, CreateModelVersion every tensor's header.
_SLOW = {
    "RegistryService": ("CreateDataset", "PreviewDataset", "CreateModelVersion"),
    "GenerationService": ("Generate",),
}
_ENDLESS = {
    "RegistryService": ("UploadArtifact", "DownloadArtifact", "VerifyArtifacts", "CollectGarbage"),
    "JobService": ("WatchJob",),
    "TokenizerService": ("TrainTokenizer",),
}


def _names(methods: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    return [{"service": f"anthesis.v1.{service}", "method": name} for service in methods for name in methods[service]]


def service_config() -> str:
    """The JSON for gRPC's channel option "grpc.service_config"."""
    methods: list[dict[str, Any]] = [
        _ALL,
        {"name": _names(_SLOW), "timeout": f"{_COMPUTE_S}s"},
        {"name": _names(_ENDLESS)},
        *(
            {"name": _names(methods), "timeout": f"{seconds}s", "retryPolicy": _RETRY}
            for seconds, methods in _IDEMPOTENT.items()
        ),
    ]
    return json.dumps({"methodConfig": methods})
