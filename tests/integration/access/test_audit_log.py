"""What the running platform writes into its audit log, and what never gets into it or into a log file."""

import logging
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from io import StringIO
from typing import Any

import grpc
import httpx
import pytest
import pytest_asyncio
from anthesis import AsyncClient, Settings
from anthesis.errors import AnthesisError, PermissionDeniedError
from anthesis.v1 import evaluation_pb2, job_pb2, job_pb2_grpc
from anthesis.v1 import registry_pb2 as pb

from services.common.access import Access, Permission
from services.registry import access
from services.registry.database import utc_now
from services.registry.tables import WebhookDelivery
from tests.support.access_matrix import Doors, open_doors
from tests.support.projects import begin_upload
from tests.support.registry_data import store_checkpoint, text_rows

pytestmark = pytest.mark.asyncio(loop_scope="module")
# CreateJob's and UploadArtifact's entries tell of these: a job submitted once more, an upload that has begun.
TOLD_BY_OTHERS = {"JobService.ReproduceVersion", "RegistryService.BeginUpload"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def doors(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Doors]:
    async with open_doors(tmp_path_factory.mktemp("data")) as opened:
        yield opened


def settings_of(doors: Doors, caller: str) -> Settings:
    key = (doors.headers[caller] or "").removeprefix("Bearer ")
    addresses = {f"{name}_address": address for name, address in doors.addresses.items()}
    return Settings(api_key=key, **addresses)


def changing(table: Access) -> set[str]:
    """RPCs that change something: what trainers and admins may beyond others, but for looking."""
    permissions = {Permission.TRAIN, Permission.ADMIN, Permission.OPERATE}
    return {rpc for rpc, needs in table.items() if needs in permissions and not rpc.startswith(("List", "Get"))}


async def change_everything(client: AsyncClient, doors: Doors) -> job_pb2.Job:
    """Call every RPC that changes something; return a job that was submitted and cancelled."""
    artifact = await client.artifacts.upload_bytes(text_rows())
    await client.artifacts.abandon_upload(await begin_upload(doors.registry, settings_of(doors, "admin")))
    await client.datasets.create("rows", artifact.digest, pb.DATASET_FORMAT_TEXT)
    path = doors.registry.data_dir / "rows.jsonl"
    path.write_bytes(text_rows())
    file = await client.files.upload(path)
    await client.files.delete(file.id)
    await client.models.create(pb.Model(name="seedling", licence="apache-2.0"))
    stored = store_checkpoint(doors.registry.artifacts)
    version = pb.ModelVersion(model="seedling", tokenizer_digest=stored.tokenizer_digest, files=pb_files(stored))
    await client.models.create_version(version)
    await client.aliases.set("production", "seedling")
    await measure_everything(client)
    await client.deployments.create("production")
    await client.deployments.delete("production")
    await client.aliases.delete("production")
    await client.aliases.rollback("production", generation=1)
    await client.models.tag("seedling", add=["gold"])
    await client.models.update_card("seedling", "For gardens.")
    await client.models.create(pb.Model(name="weed", licence="apache-2.0"))
    await client.models.create_version(
        pb.ModelVersion(model="weed", tokenizer_digest=stored.tokenizer_digest, files=pb_files(stored))
    )
    await client.models.delete_version("weed@1")
    await client.models.delete("weed")
    await client.models.undelete("weed")
    await client.models.undelete_version("weed@1")
    house = await client.licences.create("house", name="House rules", text="Be kind.", must_accept=True)
    await client.licences.accept("house", house.digest)
    doors.registry.artifacts.write_bytes(b"nobody's")
    assert [found async for found in client.artifacts.collect_garbage(delete=True, older_than=timedelta(0))]
    await client.projects.create("lab")
    await client.projects.update("lab", description="what we try")
    created = await client.keys.create("bob", pb.ROLE_VIEWER, scopes=[pb.PERMISSION_READ])
    await client.keys.revoke(created.key.id)
    spec = job_pb2.FineTuneSpec(
        output_model="sprout", base="seedling", datasets=["rows"], options=job_pb2.TrainOptions(steps=1)
    )
    job = await client.jobs.create(spec)
    await client.jobs.pause(job.id)
    await client.jobs.resume(job.id)
    await change_webhooks(client, doors, job)
    return await client.jobs.cancel(job.id)


async def measure_everything(client: AsyncClient) -> None:
    """Call every RPC that changes suites, evaluations and gates."""
    artifact = await client.artifacts.upload_bytes(text_rows(5))
    await client.datasets.create("held-out", artifact.digest, pb.DATASET_FORMAT_TEXT)
    await client.evaluations.create_suite("garden", ["held-out"])
    result = evaluation_pb2.EvaluationResult(language="en", metric="acc", value=0.5)
    await client.evaluations.record("seedling", "arc_easy", [result])
    await client.gates.set("production", "garden", max_regression_percent=1)
    await client.gates.delete("production")


async def change_webhooks(client: AsyncClient, doors: Doors, job: job_pb2.Job) -> None:
    made = await client.webhooks.create("https://1.1.1.1/hook")
    given_up = {"id": "msg-1", "event_type": "job.pending", "state": "FAILED", "body": "{}"}
    async with doors.registry.database.write() as session:
        session.add(
            WebhookDelivery(webhook_id=made.webhook.id, job_id=job.id, sequence=1, create_time=utc_now(), **given_up)
        )
    await client.webhooks.redeliver("msg-1")
    await client.webhooks.delete(made.webhook.id)


async def test_every_change_is_in_the_log_with_its_maker(doors: Doors) -> None:
    async with AsyncClient(settings_of(doors, "admin")) as client:
        start = utc_now()
        job = await change_everything(client, doors)
        entries = [entry async for entry in client.audit.list(principal="the-admin", since=start)][::-1]
        of_alias = [entry async for entry in client.audit.list(resource="alias/production")]
        none = [entry async for entry in client.audit.list(principal="the-admin", until=start)]
        for entry in entries:
            print(entry.time.ToJsonString(), entry.action, entry.resource, entry.outcome, entry.value)
    must = {f"RegistryService.{rpc}" for rpc in changing(access.REGISTRY)}
    must |= {f"JobService.{rpc}" for rpc in changing(access.JOBS)}
    must |= {f"EvaluationService.{rpc}" for rpc in changing(access.EVALUATIONS)}
    must |= {f"WebhookService.{rpc}" for rpc in changing(access.WEBHOOKS)}
    must |= {f"FileService.{rpc}" for rpc in changing(access.FILES)}
    must |= {f"LicenceService.{rpc}" for rpc in (*changing(access.LICENCES), "AcceptLicence")}
    must |= {f"ProjectService.{rpc}" for rpc in changing(access.PROJECTS)}
    assert must - {entry.action for entry in entries} == TOLD_BY_OTHERS, "call a new RPC in change_everything"
    assert {entry.outcome for entry in entries} == {"OK"}
    assert len({entry.key_id for entry in entries}) == 1
    assert [(entry.action, entry.value) for entry in of_alias] == [
        ("RegistryService.RollbackAlias", "seedling@1"),
        ("RegistryService.DeleteAlias", "deleted"),
        ("RegistryService.SetAlias", "seedling@1"),
    ]
    values = {(entry.resource, entry.value) for entry in entries}
    assert (f"job/{job.id}", "cancel requested") in values
    assert "bob: viewer; scopes read" in {value for _, value in values}
    assert none == []


async def denials(doors: Doors, principal: str) -> list[tuple[str, str]]:
    async with AsyncClient(settings_of(doors, "admin")) as client:
        entries = [entry async for entry in client.audit.list(principal=principal)]
    assert {entry.outcome for entry in entries} == {"PERMISSION_DENIED"}
    return [(entry.action, entry.resource) for entry in entries][::-1]


async def test_refused_calls_are_in_the_log_whichever_service_refused(doors: Doors) -> None:
    async with AsyncClient(settings_of(doors, "viewer")) as client:
        for refused in (
            client.aliases.set("production", "seedling"),
            client.keys.list(),
            client.count("demo", ["a secret prompt"]),
            client.tokenizers.train(["rows"], vocab_size=512),
            client.worker_status(),
        ):
            with pytest.raises(PermissionDeniedError):
                await refused
    async with httpx.AsyncClient(base_url=doors.http_url) as http:
        headers = {"authorization": str(doors.headers["viewer"])}
        answer = await http.post("/v1/completions", json={"model": "m", "prompt": "a secret prompt"}, headers=headers)
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "permission_denied"
    assert await denials(doors, "the-viewer") == [
        ("RegistryService.SetAlias", "alias/production"),
        ("RegistryService.ListApiKeys", ""),
        ("GenerationService.Count", "demo"),
        ("TokenizerService.TrainTokenizer", ""),
        ("InferenceService.GetWorkerStatus", ""),
        ("POST /v1/completions", ""),
    ]


async def test_a_key_that_would_exceed_its_maker_is_refused_and_in_the_log(doors: Doors) -> None:
    async with AsyncClient(settings_of(doors, "admin")) as admin:
        made = await admin.keys.create(
            "carol",
            pb.ROLE_ADMIN,
            scopes=[pb.PERMISSION_ADMIN, pb.PERMISSION_READ],
            expire_time=utc_now() + timedelta(hours=1),
        )
    addresses = {f"{name}_address": address for name, address in doors.addresses.items()}
    async with AsyncClient(Settings(api_key=made.secret, **addresses)) as carol:
        with pytest.raises(PermissionDeniedError, match="the new key could generate, which yours cannot"):
            await carol.keys.create("dave", pb.ROLE_USER, expire_time=utc_now() + timedelta(minutes=1))
        with pytest.raises(PermissionDeniedError, match="would outlive yours"):
            await carol.keys.create("dave", pb.ROLE_VIEWER)
        keys = await carol.keys.list()
        assert "dave" not in {key.principal for key in keys}
        await carol.keys.create("dave", pb.ROLE_VIEWER, expire_time=utc_now() + timedelta(minutes=1))
        entries = [entry async for entry in carol.audit.list(principal="carol")]
    assert [(entry.action, entry.outcome) for entry in entries] == [
        ("RegistryService.CreateApiKey", "OK"),
        ("RegistryService.CreateApiKey", "PERMISSION_DENIED"),
    ]


@pytest.mark.parametrize("seconds", [253402300800, -(2**63), 2**63 - 1])
async def test_a_time_that_no_calendar_has_is_refused(doors: Doors, seconds: int) -> None:
    channel = doors.registry.channel()
    for path, request in (
        ("CreateApiKey", pb.CreateApiKeyRequest(principal="a", role=pb.ROLE_USER)),
        ("ListAuditEntries", pb.ListAuditEntriesRequest()),
    ):
        time = request.expire_time if path == "CreateApiKey" else request.start_time
        time.seconds = seconds
        call = channel.unary_unary(f"/anthesis.v1.RegistryService/{path}")
        with pytest.raises(grpc.aio.AioRpcError, match="no time of the years 1 to 9999") as refused:
            await call(request.SerializeToString())
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def put_everywhere(doors: Doors, secret: str) -> None:
    """Send `secret` where a key does not belong, as careless callers do."""
    async with AsyncClient(settings_of(doors, "admin")) as client:
        for call in (
            client.models.get(secret),
            client.aliases.set(secret, secret),
            client.models.create(pb.Model(name=secret, licence=secret)),
            client.datasets.create(secret, secret, pb.DATASET_FORMAT_TEXT),
            client.keys.create(secret),
            client.keys.revoke(secret),
            client.jobs.get(secret),
            client.count(secret, [secret]),
        ):
            with pytest.raises(AnthesisError):
                await call
    async with AsyncClient(settings_of(doors, "viewer")) as client:
        with pytest.raises(PermissionDeniedError):
            await client.aliases.set(secret, secret)
    async with grpc.aio.insecure_channel(doors.registry.address) as channel:
        for metadata in ([("authorization", secret)], [("x-api-key", secret)], [("authorization", f"Basic {secret}")]):
            with pytest.raises(grpc.aio.AioRpcError):
                await channel.unary_unary("/anthesis.v1.RegistryService/ListModels")(b"", metadata=metadata)
            with pytest.raises(grpc.aio.AioRpcError):
                await channel.unary_unary(f"/anthesis.v1.RegistryService/{secret}")(b"", metadata=metadata)
    admin = {"authorization": str(doors.headers["admin"])}
    async with httpx.AsyncClient(base_url=doors.http_url) as http:
        for headers in (admin, {"x-api-key": secret}, {"authorization": f"Basic {secret}"}):
            await http.get(f"/v1/models/{secret}", headers=headers)
            await http.get(f"/{secret}?api_key={secret}", headers=headers)
            await http.post("/v1/completions", json={"model": secret, "prompt": secret, secret: 1}, headers=headers)
            await http.post("/v1/completions", content=secret, headers=headers)


@pytest.fixture
def log(monkeypatch) -> Iterator[StringIO]:
    """What the services' log says, without the formatter that takes keys out."""
    written = StringIO()
    handler, root = logging.StreamHandler(written), logging.getLogger()
    monkeypatch.setattr(root, "level", logging.INFO)
    monkeypatch.setattr(logging.getLogger("httpx"), "disabled", True)  # the client's own
    root.addHandler(handler)
    yield written
    root.removeHandler(handler)


async def test_a_key_in_a_wrong_place_gets_into_no_log(doors: Doors, log: StringIO, capfd: Any) -> None:
    secret = str(doors.headers["trainer"]).removeprefix("Bearer ")
    await put_everywhere(doors, secret)
    logging.getLogger("services.registry").info("the log is read")
    printed = capfd.readouterr()
    assert "the log is read" in log.getvalue()
    assert secret not in log.getvalue() + printed.out + printed.err
    async with AsyncClient(settings_of(doors, "admin")) as client:
        kept = [str(entry) async for entry in client.audit.list()]
    assert any("an_" in line for line in kept)  # the viewer's refusal is there, without the key
    assert secret not in "".join(kept)


async def test_what_a_worker_does_for_a_job_is_the_workers(doors: Doors) -> None:
    async with AsyncClient(settings_of(doors, "trainer")) as client:
        spec = job_pb2.FineTuneSpec(
            output_model="sprig", base="seedling", datasets=["rows"], options=job_pb2.TrainOptions(steps=1)
        )
        job = await client.jobs.create(spec, deploy_alias="sprig")
    trainer = job_pb2_grpc.JobServiceStub(doors.registry.channel("trainer"))
    await trainer.AcquireLease(job_pb2.AcquireLeaseRequest(job_id=job.id, worker_id="t1"))
    stored = store_checkpoint(doors.registry.artifacts)
    succeeded = job_pb2.ModelFiles(files=pb_files(stored))
    await trainer.FinishJob(job_pb2.FinishJobRequest(job_id=job.id, fencing_token=1, succeeded=succeeded))
    async with AsyncClient(settings_of(doors, "admin")) as client:
        entries = [entry async for entry in client.audit.list(action="JobService.FinishJob")]
    assert {entry.principal for entry in entries} == {"trainer"}
    assert [entry.resource for entry in entries] == ["deployment/sprig", "alias/sprig", "version/sprig@1"]


def pb_files(stored: Any) -> list[pb.ModelFile]:
    return [pb.ModelFile(path=file.path, digest=file.digest) for file in stored.files]
