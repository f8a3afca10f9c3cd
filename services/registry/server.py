"""The registry's process: `python -m services.registry.server`."""

import asyncio

from anthesis.allocator import keep_freed_memory
from anthesis.v1 import (
    evaluation_pb2_grpc,
    file_pb2_grpc,
    job_pb2_grpc,
    licence_pb2_grpc,
    project_pb2_grpc,
    registry_pb2_grpc,
    webhook_pb2_grpc,
)

from services.common.artifacts import ArtifactStore
from services.common.logs import set_up_logging
from services.common.server import GrpcServer
from services.registry import access
from services.registry.aliases import Aliases
from services.registry.audit import Audit
from services.registry.cards.service import Cards
from services.registry.collection import Collector
from services.registry.config import RegistryConfig
from services.registry.database import Database
from services.registry.datasets import Datasets
from services.registry.deletion import Deletions
from services.registry.deployments import Deployments
from services.registry.evaluations.comparison import Comparisons
from services.registry.evaluations.gates import Gates
from services.registry.evaluations.service import Evaluations
from services.registry.evaluations.suites import Suites
from services.registry.files import Files
from services.registry.job_control import JobControl
from services.registry.job_logs import JobLogs
from services.registry.jobs import Jobs
from services.registry.keys import Keys
from services.registry.leases import Leases
from services.registry.licences.builtin import check_seeded
from services.registry.licences.service import Licences
from services.registry.models import Models
from services.registry.projects.service import Projects
from services.registry.projects.usage import UsageLog
from services.registry.reproduction import Reproductions
from services.registry.rpc.artifact_guard import ArtifactGuard
from services.registry.rpc.evaluations import EvaluationRpc
from services.registry.rpc.files import FileRpc
from services.registry.rpc.jobs import JobRpc
from services.registry.rpc.licences import LicenceRpc
from services.registry.rpc.projects import ProjectRpc
from services.registry.rpc.registry import RegistryRpc, RegistryUseCases
from services.registry.rpc.webhooks import WebhookRpc
from services.registry.tags import Tags
from services.registry.uploads import Uploads
from services.registry.verification import Verification
from services.registry.versions import Versions
from services.registry.webhooks.service import Webhooks

REGISTRY = "anthesis.v1.RegistryService"
JOBS = "anthesis.v1.JobService"
LICENCES = "anthesis.v1.LicenceService"
EVALUATIONS = "anthesis.v1.EvaluationService"
PROJECTS = "anthesis.v1.ProjectService"
WEBHOOKS = "anthesis.v1.WebhookService"
FILES = "anthesis.v1.FileService"


def build_server(config: RegistryConfig, database: Database) -> GrpcServer:
    artifacts = ArtifactStore(config.artifacts_url, config.data_dir / "cache" / "artifacts")
    keys, audit = Keys(database, config.pepper), Audit(database)
    uploads = Uploads(database, artifacts, config.uploads)
    licences = Licences(database)
    use_cases = RegistryUseCases(
        models=Models(database),
        versions=Versions(database, artifacts),
        aliases=Aliases(database),
        datasets=Datasets(database, artifacts),
        deployments=Deployments(database, worker_lease_s=config.worker_lease_s),
        keys=keys,
        audit=audit,
        licences=licences,
        artifacts=artifacts,
        uploads=uploads,
        verification=Verification(database, artifacts),
        collector=Collector(database, artifacts, uploads),
        deletions=Deletions(database, kept_s=config.deleted_kept_s),
        tags=Tags(database),
        cards=Cards(database),
    )
    jobs = Jobs(database, artifacts, watch_poll_s=config.watch_poll_s, cluster=config.training_cluster)
    leases = Leases(database, artifacts, ttl_s=config.job_lease_s, max_lost_leases=config.max_lost_leases)
    guard = ArtifactGuard(database)
    server = GrpcServer(
        "registry",
        config.address,
        authenticate=keys.authenticate,
        on_denied=audit.denied,
        check=guard,
        check_keys_s=config.check_keys_s,
    )
    registry = RegistryRpc(use_cases)
    server.add(registry_pb2_grpc.add_RegistryServiceServicer_to_server, registry, REGISTRY, access.REGISTRY)
    server.add(
        job_pb2_grpc.add_JobServiceServicer_to_server,
        JobRpc(jobs, leases, Reproductions(database, artifacts, jobs), JobControl(database), JobLogs(database)),
        JOBS,
        access.JOBS,
    )
    add_licences = licence_pb2_grpc.add_LicenceServiceServicer_to_server
    server.add(add_licences, LicenceRpc(licences), LICENCES, access.LICENCES)
    evaluations = EvaluationRpc(
        Suites(database, artifacts), Evaluations(database), Comparisons(database, artifacts), Gates(database)
    )
    add_evaluations = evaluation_pb2_grpc.add_EvaluationServiceServicer_to_server
    server.add(add_evaluations, evaluations, EVALUATIONS, access.EVALUATIONS)
    add_projects = project_pb2_grpc.add_ProjectServiceServicer_to_server
    server.add(add_projects, ProjectRpc(Projects(database), UsageLog(database)), PROJECTS, access.PROJECTS)
    webhooks = Webhooks(database, config.pepper, config.webhook_policy)
    add_webhooks = webhook_pb2_grpc.add_WebhookServiceServicer_to_server
    server.add(add_webhooks, WebhookRpc(webhooks), WEBHOOKS, access.WEBHOOKS)
    add_files = file_pb2_grpc.add_FileServiceServicer_to_server
    server.add(add_files, FileRpc(Files(database, artifacts)), FILES, access.FILES)
    return server


async def serve(config: RegistryConfig) -> None:
    """Serve until SIGTERM or SIGINT. Raises RuntimeError when the database needs a migration or a licence's text."""
    database = Database(config.database_url)
    await database.check_revision()
    await check_seeded(database)
    await build_server(config, database).run()
    await database.close()


def main() -> None:
    set_up_logging("registry")
    keep_freed_memory()  # uploads and downloads pass through
    asyncio.run(serve(RegistryConfig.from_env()))


if __name__ == "__main__":
    main()
