"""RegistryService: messages in and out."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from typing import Any

from anthesis.v1 import registry_pb2 as pb
from anthesis.v1 import registry_pb2_grpc

from services.common.artifacts import ArtifactStore
from services.common.auth import current_call, current_principal
from services.registry.aliases import Aliases
from services.registry.audit import Audit
from services.registry.cards.service import Cards
from services.registry.collection import GRACE_S, Collector
from services.registry.comparison import compare
from services.registry.datasets import Datasets
from services.registry.deletion import Deletions
from services.registry.deployments import Deployments
from services.registry.keys import Keys
from services.registry.licences.service import Licences
from services.registry.models import Models, NewModel
from services.registry.rpc import aliases, cards, messages, queries, transfers
from services.registry.tags import Tags
from services.registry.uploads import Uploads
from services.registry.verification import Verification
from services.registry.versions import NewVersion, Versions

Context = Any


@dataclass(frozen=True, kw_only=True, slots=True)
class RegistryUseCases:
    models: Models
    versions: Versions
    aliases: Aliases
    datasets: Datasets
    deployments: Deployments
    keys: Keys
    audit: Audit
    licences: Licences
    artifacts: ArtifactStore
    uploads: Uploads
    verification: Verification
    collector: Collector
    deletions: Deletions
    tags: Tags
    cards: Cards


class RegistryRpc(registry_pb2_grpc.RegistryServiceServicer):
    def __init__(self, use_cases: RegistryUseCases) -> None:
        self._on = use_cases

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        page = await self._on.models.list_models(messages.page_request(request), queries.of_models(request))
        return pb.ListModelsResponse(models=map(messages.model, page.rows), next_page_token=page.next_token)

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        return pb.GetModelResponse(model=messages.model(await self._on.models.get(request.name)))

    async def CreateModel(self, request: pb.CreateModelRequest, context: Context) -> pb.CreateModelResponse:
        asked = request.model
        new = NewModel(
            name=asked.name,
            licence=asked.licence,
            description=asked.description,
            languages=list(asked.languages),
            tags=list(asked.tags),
            created_by=current_principal().name,
        )
        return pb.CreateModelResponse(model=messages.model(await self._on.models.create(new)))

    async def DeleteModel(self, request: pb.DeleteModelRequest, context: Context) -> pb.DeleteModelResponse:
        row = await self._on.deletions.delete_model(request.name, current_principal().name)
        return pb.DeleteModelResponse(model=messages.model(row))

    async def UndeleteModel(self, request: pb.UndeleteModelRequest, context: Context) -> pb.UndeleteModelResponse:
        return pb.UndeleteModelResponse(model=messages.model(await self._on.deletions.undelete_model(request.name)))

    async def CreateModelVersion(
        self, request: pb.CreateModelVersionRequest, context: Context
    ) -> pb.CreateModelVersionResponse:
        asked = request.version
        new = NewVersion(
            model=asked.model,
            licence=asked.licence,
            tokenizer_digest=asked.tokenizer_digest,
            files=messages.files(asked.files),
            parent=asked.parent,
            other_parents=list(asked.other_parents),
            datasets=list(asked.datasets),
            source=asked.source or "import",
            tags=list(asked.tags),
            created_by=current_principal().name,
        )
        return pb.CreateModelVersionResponse(version=messages.version(await self._on.versions.create(new)))

    async def GetModelVersion(self, request: pb.GetModelVersionRequest, context: Context) -> pb.GetModelVersionResponse:
        return pb.GetModelVersionResponse(version=messages.version(await self._on.aliases.resolve(request.name)))

    async def ListModelVersions(
        self, request: pb.ListModelVersionsRequest, context: Context
    ) -> pb.ListModelVersionsResponse:
        query = queries.of_versions(request)
        page = await self._on.versions.list_versions(request.model, messages.page_request(request), query)
        return pb.ListModelVersionsResponse(versions=map(messages.version, page.rows), next_page_token=page.next_token)

    async def DeleteModelVersion(
        self, request: pb.DeleteModelVersionRequest, context: Context
    ) -> pb.DeleteModelVersionResponse:
        row = await self._on.deletions.delete_version(request.name, current_principal().name)
        return pb.DeleteModelVersionResponse(version=messages.version(row))

    async def UndeleteModelVersion(
        self, request: pb.UndeleteModelVersionRequest, context: Context
    ) -> pb.UndeleteModelVersionResponse:
        row = await self._on.deletions.undelete_version(request.name)
        return pb.UndeleteModelVersionResponse(version=messages.version(row))

    async def UpdateModelTags(self, request: pb.UpdateModelTagsRequest, context: Context) -> pb.UpdateModelTagsResponse:
        return pb.UpdateModelTagsResponse(tags=await self._on.tags.update(request.name, request.add, request.remove))

    async def GetModelCard(self, request: pb.GetModelCardRequest, context: Context) -> pb.GetModelCardResponse:
        return pb.GetModelCardResponse(card=cards.card(await self._on.cards.get(request.name)))

    async def UpdateModelCard(self, request: pb.UpdateModelCardRequest, context: Context) -> pb.UpdateModelCardResponse:
        if_generation = request.if_generation if request.HasField("if_generation") else None
        card = await self._on.cards.update(request.name, request.text, current_principal().name, if_generation)
        return pb.UpdateModelCardResponse(card=cards.card(card))

    async def GetLineage(self, request: pb.GetLineageRequest, context: Context) -> pb.GetLineageResponse:
        ancestors = await self._on.versions.lineage(request.version)
        return pb.GetLineageResponse(ancestors=map(messages.version, ancestors))

    async def CompareVersions(
        self, request: pb.CompareVersionsRequest, context: Context
    ) -> AsyncIterator[pb.CompareVersionsResponse]:
        version = await self._on.aliases.resolve(request.version)
        other = await self._on.aliases.resolve(request.other)
        distances = compare(self._on.artifacts, version, other)
        while distance := await asyncio.to_thread(next, distances, None):
            yield pb.CompareVersionsResponse(**asdict(distance))

    async def SetAlias(self, request: pb.SetAliasRequest, context: Context) -> pb.SetAliasResponse:
        row = await self._on.aliases.set(request.name, request.version, aliases.new_change(request))
        return pb.SetAliasResponse(alias=aliases.alias(row))

    async def ListAliases(self, request: pb.ListAliasesRequest, context: Context) -> pb.ListAliasesResponse:
        page = await self._on.aliases.list_aliases(messages.page_request(request))
        return pb.ListAliasesResponse(aliases=map(aliases.alias, page.rows), next_page_token=page.next_token)

    async def ListAliasChanges(
        self, request: pb.ListAliasChangesRequest, context: Context
    ) -> pb.ListAliasChangesResponse:
        page = await self._on.aliases.list_changes(request.name, messages.page_request(request))
        rows = map(aliases.alias_change, page.rows)
        return pb.ListAliasChangesResponse(changes=rows, next_page_token=page.next_token)

    async def ResolveAlias(self, request: pb.ResolveAliasRequest, context: Context) -> pb.ResolveAliasResponse:
        change, version = await self._on.aliases.at(request.name, aliases.time_asked(request))
        return pb.ResolveAliasResponse(version=messages.version(version), change=aliases.alias_change(change))

    async def RollbackAlias(self, request: pb.RollbackAliasRequest, context: Context) -> pb.RollbackAliasResponse:
        generation = request.generation if request.HasField("generation") else None
        row = await self._on.aliases.roll_back(request.name, generation, aliases.new_change(request))
        return pb.RollbackAliasResponse(alias=aliases.alias(row))

    async def DeleteAlias(self, request: pb.DeleteAliasRequest, context: Context) -> pb.DeleteAliasResponse:
        await self._on.aliases.delete(request.name, aliases.new_change(request))
        return pb.DeleteAliasResponse()

    async def ResolveModel(self, request: pb.ResolveModelRequest, context: Context) -> pb.ResolveModelResponse:
        version, workers = await self._on.deployments.route(request.name)
        return pb.ResolveModelResponse(version=messages.version(version), workers=map(messages.worker, workers))

    async def BeginUpload(self, request: pb.BeginUploadRequest, context: Context) -> pb.BeginUploadResponse:
        begun = await self._on.uploads.begin(
            current_principal().name,
            request.digest,
            request.size_bytes,
            upload_id=request.upload_id,
            again=request.again,
        )
        return pb.BeginUploadResponse(exists=not begun.upload_id, upload_id=begun.upload_id, offset_bytes=begun.offset)

    async def ListUploads(self, request: pb.ListUploadsRequest, context: Context) -> pb.ListUploadsResponse:
        page = await self._on.uploads.list_unfinished(current_principal().name, messages.page_request(request))
        return pb.ListUploadsResponse(uploads=map(messages.upload, page.rows), next_page_token=page.next_token)

    async def AbandonUpload(self, request: pb.AbandonUploadRequest, context: Context) -> pb.AbandonUploadResponse:
        await self._on.uploads.abandon(current_principal().name, request.id)
        return pb.AbandonUploadResponse()

    async def UploadArtifact(
        self, request_iterator: AsyncIterator[pb.UploadArtifactRequest], context: Context
    ) -> pb.UploadArtifactResponse:
        header, existed = await transfers.receive(self._on.uploads, current_principal().name, request_iterator)
        artifact = pb.Artifact(digest=header.digest, size_bytes=header.size_bytes)
        await self._on.audit.append(f"artifact/{header.digest}", f"{header.size_bytes} bytes")
        return pb.UploadArtifactResponse(artifact=artifact, existed=existed)

    async def DownloadArtifact(
        self, request: pb.DownloadArtifactRequest, context: Context
    ) -> AsyncIterator[pb.DownloadArtifactResponse]:
        await self._on.licences.check_download(current_principal(), request.digest)
        async for data in transfers.send(self._on.artifacts, request.digest, request.offset_bytes):
            yield pb.DownloadArtifactResponse(data=data)

    async def GetArtifact(self, request: pb.GetArtifactRequest, context: Context) -> pb.GetArtifactResponse:
        if request.url_lifetime_seconds:
            await self._on.licences.check_download(current_principal(), request.digest)
        return await asyncio.to_thread(transfers.describe, self._on.artifacts, request)

    async def VerifyArtifacts(
        self, request: pb.VerifyArtifactsRequest, context: Context
    ) -> AsyncIterator[pb.VerifyArtifactsResponse]:
        async for verified in transfers.choose(self._on.verification, request, current_call()):
            yield messages.verified(verified)

    async def CollectGarbage(
        self, request: pb.CollectGarbageRequest, context: Context
    ) -> AsyncIterator[pb.CollectGarbageResponse]:
        older_than_s = request.older_than_seconds if request.HasField("older_than_seconds") else GRACE_S
        if request.delete:
            async for stored in self._on.collector.collect(older_than_s):
                yield messages.garbage(stored, deleted=True)
        else:
            for stored in await self._on.collector.find(older_than_s):
                yield messages.garbage(stored, deleted=False)

    async def CreateDataset(self, request: pb.CreateDatasetRequest, context: Context) -> pb.CreateDatasetResponse:
        dataset_format = messages.enum_name(pb.DatasetFormat, "DATASET_FORMAT_", request.format)
        principal = current_principal().name
        row = await self._on.datasets.create(request.name, dataset_format, request.digest, principal)
        return pb.CreateDatasetResponse(dataset=messages.dataset(row))

    async def GetDataset(self, request: pb.GetDatasetRequest, context: Context) -> pb.GetDatasetResponse:
        return pb.GetDatasetResponse(dataset=messages.dataset(await self._on.datasets.get(request.name)))

    async def ListDatasets(self, request: pb.ListDatasetsRequest, context: Context) -> pb.ListDatasetsResponse:
        page = await self._on.datasets.list_datasets(messages.page_request(request))
        return pb.ListDatasetsResponse(datasets=map(messages.dataset, page.rows), next_page_token=page.next_token)

    async def ListDatasetVersions(
        self, request: pb.ListDatasetVersionsRequest, context: Context
    ) -> pb.ListDatasetVersionsResponse:
        page = await self._on.datasets.list_versions(request.name, messages.page_request(request))
        rows = map(messages.dataset, page.rows)
        return pb.ListDatasetVersionsResponse(datasets=rows, next_page_token=page.next_token)

    async def PreviewDataset(self, request: pb.PreviewDatasetRequest, context: Context) -> pb.PreviewDatasetResponse:
        seed = request.seed if request.HasField("seed") else None
        dataset, rows = await self._on.datasets.preview(request.name, request.num_rows, seed)
        return pb.PreviewDatasetResponse(dataset=messages.dataset(dataset), rows=map(messages.preview_row, rows))

    async def CreateDeployment(
        self, request: pb.CreateDeploymentRequest, context: Context
    ) -> pb.CreateDeploymentResponse:
        asked = request.deployment
        status = await self._on.deployments.create(asked.name, asked.target, asked.replicas)
        return pb.CreateDeploymentResponse(deployment=messages.deployment(status))

    async def ListDeployments(self, request: pb.ListDeploymentsRequest, context: Context) -> pb.ListDeploymentsResponse:
        page = await self._on.deployments.list_deployments(messages.page_request(request))
        rows = map(messages.deployment, page.rows)
        return pb.ListDeploymentsResponse(deployments=rows, next_page_token=page.next_token)

    async def DeleteDeployment(
        self, request: pb.DeleteDeploymentRequest, context: Context
    ) -> pb.DeleteDeploymentResponse:
        await self._on.deployments.delete(request.name)
        return pb.DeleteDeploymentResponse()

    async def HeartbeatWorker(self, request: pb.HeartbeatWorkerRequest, context: Context) -> pb.HeartbeatWorkerResponse:
        assigned = await self._on.deployments.heartbeat(
            request.worker_id, request.address, request.device, messages.worker_models(request.models)
        )
        lease_seconds = max(1, round(self._on.deployments.worker_lease_s))
        return pb.HeartbeatWorkerResponse(assigned=map(messages.version, assigned), lease_seconds=lease_seconds)

    async def CreateApiKey(self, request: pb.CreateApiKeyRequest, context: Context) -> pb.CreateApiKeyResponse:
        role = messages.enum_name(pb.Role, "ROLE_", request.role).lower()
        key, secret = await self._on.keys.create(
            request.principal,
            role,
            label=request.label,
            scopes=messages.scopes(request.scopes),
            expire_time=(
                messages.read_time(request.expire_time, "expire_time") if request.HasField("expire_time") else None
            ),
            project=request.project,
            by=current_principal(),
        )
        return pb.CreateApiKeyResponse(key=messages.api_key(key), secret=secret)

    async def ListApiKeys(self, request: pb.ListApiKeysRequest, context: Context) -> pb.ListApiKeysResponse:
        page = await self._on.keys.list_keys(messages.page_request(request))
        return pb.ListApiKeysResponse(keys=map(messages.api_key, page.rows), next_page_token=page.next_token)

    async def RevokeApiKey(self, request: pb.RevokeApiKeyRequest, context: Context) -> pb.RevokeApiKeyResponse:
        return pb.RevokeApiKeyResponse(key=messages.api_key(await self._on.keys.revoke(request.id)))

    async def Authenticate(self, request: pb.AuthenticateRequest, context: Context) -> pb.AuthenticateResponse:
        return messages.authenticated(await self._on.keys.authenticate(request.secret))

    async def ListAuditEntries(
        self, request: pb.ListAuditEntriesRequest, context: Context
    ) -> pb.ListAuditEntriesResponse:
        page = await self._on.audit.list_entries(messages.audit_query(request), messages.page_request(request))
        return pb.ListAuditEntriesResponse(
            entries=map(messages.audit_entry, page.rows), next_page_token=page.next_token
        )

    async def ReportDenial(self, request: pb.ReportDenialRequest, context: Context) -> pb.ReportDenialResponse:
        await self._on.audit.report(request.key_id, request.action, request.resource)
        return pb.ReportDenialResponse()
