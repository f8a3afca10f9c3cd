"""Who may call which RPC of the registry's services. docs/access.md has the table of roles that follows from this.

A trainer moves aliases and deploys: a job's `deploy_alias` does both when it succeeds, so to refuse them one by one
would only look like a limit.
"""

from services.common.access import Access, Permission

_READ, _TRAIN, _ADMIN, _INTERNAL = Permission.READ, Permission.TRAIN, Permission.ADMIN, Permission.INTERNAL
_OPERATE = Permission.OPERATE

REGISTRY: Access = {
    "ListModels": _READ,
    "GetModel": _READ,
    "CreateModel": _TRAIN,
    "DeleteModel": _TRAIN,
    "UndeleteModel": _TRAIN,
    "CreateModelVersion": _TRAIN,
    "GetModelVersion": _READ,
    "ListModelVersions": _READ,
    "DeleteModelVersion": _TRAIN,
    "UndeleteModelVersion": _TRAIN,
    "UpdateModelTags": _TRAIN,
    "GetModelCard": _READ,
    "UpdateModelCard": _TRAIN,
    "GetLineage": _READ,
    "CompareVersions": _READ,
    "SetAlias": _TRAIN,
    "ListAliases": _READ,
    "ListAliasChanges": _READ,
    "ResolveAlias": _READ,
    "RollbackAlias": _TRAIN,
    "DeleteAlias": _TRAIN,
    "ResolveModel": _READ,
    "BeginUpload": _TRAIN,
    "UploadArtifact": _TRAIN,
    "ListUploads": _TRAIN,  # one's own
    "AbandonUpload": _TRAIN,
    "DownloadArtifact": _READ,
    "GetArtifact": _READ,
    "VerifyArtifacts": _READ,  # everything in the store: platform admins, rpc/transfers.py
    "CollectGarbage": _OPERATE,
    "CreateDataset": _TRAIN,
    "GetDataset": _READ,
    "ListDatasets": _READ,
    "ListDatasetVersions": _READ,
    "PreviewDataset": _READ,
    "CreateDeployment": _TRAIN,
    "ListDeployments": _READ,
    "DeleteDeployment": _TRAIN,
    "HeartbeatWorker": _INTERNAL,
    "CreateApiKey": _ADMIN,
    "ListApiKeys": _ADMIN,
    "RevokeApiKey": _ADMIN,
    "Authenticate": _INTERNAL,
    "ListAuditEntries": _ADMIN,
    "ReportDenial": _INTERNAL,
}

LICENCES: Access = {
    "ListLicences": _READ,
    "GetLicence": _READ,
    "CreateLicence": _OPERATE,
    "AcceptLicence": _READ,  # for oneself
    "ListAcceptances": _READ,
    "CheckAcceptance": _READ,
}

EVALUATIONS: Access = {
    "CreateSuite": _TRAIN,
    "GetSuite": _READ,
    "ListSuites": _READ,
    "RecordEvaluation": _TRAIN,
    "ListEvaluations": _READ,
    "CompareEvaluations": _READ,
    "SetGate": _TRAIN,  # who moves an alias may also override its gate: what counts is that it is recorded
    "GetGate": _READ,
    "ListGates": _READ,
    "DeleteGate": _TRAIN,
}
PROJECTS: Access = {
    "CreateProject": _OPERATE,
    "ListProjects": _READ,
    "GetProject": _READ,
    "UpdateProject": _OPERATE,
    "NoteArtifact": _INTERNAL,
    "ListUsage": _ADMIN,
    "ReportUsage": _INTERNAL,
}

WEBHOOKS: Access = {
    "CreateWebhook": _TRAIN,
    "ListWebhooks": _READ,
    "DeleteWebhook": _TRAIN,
    "ListWebhookDeliveries": _READ,
    "RedeliverWebhook": _TRAIN,
}

FILES: Access = {  # one's own; admins see all
    "CreateFile": _TRAIN,
    "GetFile": _TRAIN,
    "ListFiles": _TRAIN,
    "DeleteFile": _TRAIN,
}

JOBS: Access = {
    "CreateJob": _TRAIN,
    "ReproduceVersion": _TRAIN,
    "GetJob": _READ,
    "ListJobs": _READ,
    "WatchJob": _READ,
    "CancelJob": _TRAIN,
    "PauseJob": _TRAIN,
    "ResumeJob": _TRAIN,
    "ReadJobLogs": _READ,
    "AcquireLease": _INTERNAL,
    "RenewLease": _INTERNAL,
    "FinishJob": _INTERNAL,
    "ReleaseLease": _INTERNAL,
}
