import asyncio
import base64
import hashlib
import json
import os

import grpc
import pytest
from anthesis.channel import open_aio_channel
from anthesis.v1 import file_pb2, job_pb2, job_pb2_grpc, licence_pb2, registry_pb2_grpc
from anthesis.v1 import registry_pb2 as pb
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common.auth import RegistryAuthenticator
from services.common.errors import Unauthenticated
from tests.support.registry_data import multitask_rows, store_checkpoint, text_rows

METHODS = [
    (f"/{service.full_name}/{method.name}", method)
    for file in (pb.DESCRIPTOR, job_pb2.DESCRIPTOR, licence_pb2.DESCRIPTOR, file_pb2.DESCRIPTOR)
    for service in file.services_by_name.values()
    for method in service.methods
]


def models(registry, principal="admin"):
    return registry_pb2_grpc.RegistryServiceStub(registry.channel(principal))


def jobs(registry, principal="admin"):
    return job_pb2_grpc.JobServiceStub(registry.channel(principal))


async def refused(call, code):
    """The message of the status with which `call` fails, which must be `code`."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    assert error.value.code() == code, error.value.details()
    return error.value.details()


async def call_any(channel, path, method):
    """Call an RPC of any of the four kinds with one empty request."""
    kind = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
    multicallable = getattr(channel, kind)(path, request_serializer=lambda message: message)
    call = multicallable(iter([b""]) if method.client_streaming else b"", timeout=10)
    if method.server_streaming:
        async for _ in call:
            pass
    else:
        await call


async def status_of(channel, path, method):
    try:
        await call_any(channel, path, method)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def upload(registry, data, digest=None, size=None, principal="admin"):
    digest = digest or "sha256:" + hashlib.sha256(data).hexdigest()

    async def parts():
        header = pb.UploadHeader(digest=digest, size_bytes=len(data) if size is None else size)
        yield pb.UploadArtifactRequest(header=header)
        for start in range(0, len(data), 1 << 20):
            yield pb.UploadArtifactRequest(data=data[start : start + (1 << 20)])

    return await models(registry, principal).UploadArtifact(parts())


async def test_nothing_but_health_answers_without_a_key(registry):
    for key in ("", "an_wrong"):
        async with open_aio_channel(registry.address, key) as channel:
            for path, method in METHODS:
                assert await status_of(channel, path, method) == grpc.StatusCode.UNAUTHENTICATED, path
            health = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            assert health.status == health_pb2.HealthCheckResponse.SERVING


async def test_no_rpc_fails_internally_on_an_empty_request(registry):
    for path, method in METHODS:
        code = await status_of(registry.channel(), path, method)
        assert code not in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNIMPLEMENTED), path


async def test_other_services_verify_keys_through_the_registry(registry):
    authenticate = RegistryAuthenticator(registry.address, registry.keys["gateway"])
    assert (await authenticate(registry.admin_key)).role == "admin"
    with pytest.raises(Unauthenticated, match="is not known"):
        await authenticate("an_wrong")
    await authenticate.close()


async def test_a_revoked_key_no_longer_opens_the_registry(registry):
    created = await models(registry).CreateApiKey(pb.CreateApiKeyRequest(principal="ada", role=pb.ROLE_USER))
    async with open_aio_channel(registry.address, created.secret) as channel:
        stub = registry_pb2_grpc.RegistryServiceStub(channel)
        await stub.ListModels(pb.ListModelsRequest())
        await models(registry).RevokeApiKey(pb.RevokeApiKeyRequest(id=created.key.id))
        message = await refused(stub.ListModels(pb.ListModelsRequest()), grpc.StatusCode.UNAUTHENTICATED)
    assert "was revoked" in message
    listed = (await models(registry).ListApiKeys(pb.ListApiKeysRequest())).keys
    assert [key.HasField("revoke_time") for key in listed if key.id == created.key.id] == [True]


@pytest.mark.parametrize("size", [0, 1, 3_500_000])
async def test_an_artifact_comes_back_as_it_was_sent(registry, size):
    data = os.urandom(size)
    first, second = await upload(registry, data), await upload(registry, data)
    assert (first.existed, second.existed, first.artifact.size_bytes) == (False, True, size)
    request = pb.DownloadArtifactRequest(digest=first.artifact.digest)
    back = b"".join([part.data async for part in models(registry).DownloadArtifact(request)])
    assert back == data
    found = await models(registry).GetArtifact(pb.GetArtifactRequest(digest=first.artifact.digest))
    assert found.artifact == first.artifact


async def test_an_upload_with_another_sha256_is_data_loss_and_leaves_nothing(registry):
    digest = "sha256:" + "0" * 64
    message = await refused(upload(registry, b"hello", digest=digest), grpc.StatusCode.DATA_LOSS)
    assert digest in message
    assert hashlib.sha256(b"hello").hexdigest() in message
    await refused(models(registry).GetArtifact(pb.GetArtifactRequest(digest=digest)), grpc.StatusCode.NOT_FOUND)
    assert list((registry.data_dir / "artifacts" / "incoming").iterdir()) == []


@pytest.mark.parametrize("size", [4, 6])
async def test_an_upload_of_another_size_than_announced_is_refused(registry, size):
    message = await refused(upload(registry, b"hello", size=size), grpc.StatusCode.INVALID_ARGUMENT)
    assert f"its header says {size} bytes" in message
    assert not registry.artifacts.exists("sha256:" + hashlib.sha256(b"hello").hexdigest())


async def test_a_digest_cannot_name_a_path(registry):
    for digest in ("sha256:../../../etc/passwd", "/etc/passwd", ""):
        call = models(registry).GetArtifact(pb.GetArtifactRequest(digest=digest))
        await refused(call, grpc.StatusCode.INVALID_ARGUMENT)


async def test_a_report_of_a_thousand_bad_rows_arrives_whole(registry):
    uploaded = await upload(registry, b'{"text": ""}\n' * 2500)
    request = pb.CreateDatasetRequest(name="bad", format=pb.DATASET_FORMAT_MULTITASK, digest=uploaded.artifact.digest)
    message = await refused(models(registry).CreateDataset(request), grpc.StatusCode.INVALID_ARGUMENT)
    lines = message.splitlines()
    assert (len(lines), lines[1], lines[-1]) == (1002, 'row 1: no "inputs"', "and 1500 more")


async def test_a_dataset_is_registered_once(registry):
    digest = (await upload(registry, text_rows(5))).artifact.digest
    request = pb.CreateDatasetRequest(name="udhr", format=pb.DATASET_FORMAT_TEXT, digest=digest)
    first, second = [(await models(registry).CreateDataset(request)).dataset for _ in range(2)]
    assert first == second
    assert (first.num_rows, list(first.languages), first.size_bytes) == (5, ["fr", "sw"], len(text_rows(5)))
    assert (first.name, first.version, first.created_by) == ("udhr", 1, "admin")
    digest = (await upload(registry, multitask_rows())).artifact.digest
    other = pb.CreateDatasetRequest(name="udhr", format=pb.DATASET_FORMAT_MULTITASK, digest=digest)
    message = await refused(models(registry).CreateDataset(other), grpc.StatusCode.ALREADY_EXISTS)
    assert "choose another name" in message
    request.digest = (await upload(registry, text_rows(6))).artifact.digest
    newest = (await models(registry).CreateDataset(request)).dataset
    assert (newest.name, newest.version) == ("udhr", 2)
    listed = await models(registry).ListDatasets(pb.ListDatasetsRequest())
    assert list(listed.datasets) == [newest]
    versions = await models(registry).ListDatasetVersions(pb.ListDatasetVersionsRequest(name="udhr"))
    assert list(versions.datasets) == [newest, first]
    assert (await models(registry).GetDataset(pb.GetDatasetRequest(name="udhr@1"))).dataset == first


async def test_a_dataset_is_looked_into_before_it_is_used(registry):
    digest = (await upload(registry, text_rows(50))).artifact.digest
    create = pb.CreateDatasetRequest(name="udhr", format=pb.DATASET_FORMAT_TEXT, digest=digest)
    dataset = (await models(registry).CreateDataset(create)).dataset
    preview = models(registry).PreviewDataset
    first = await preview(pb.PreviewDatasetRequest(name="udhr", num_rows=2))
    assert (first.dataset, [row.number for row in first.rows]) == (dataset, [1, 2])
    text = pb.PreviewField(name="text", text="row 0", num_characters=5)
    assert first.rows[0].fields[0] == text
    drawn = [await preview(pb.PreviewDatasetRequest(name="udhr@1", num_rows=2, seed=seed)) for seed in (0, 0, 9)]
    assert drawn[0] == drawn[1] != drawn[2]
    await refused(preview(pb.PreviewDatasetRequest(name="gone")), grpc.StatusCode.NOT_FOUND)


async def test_a_report_on_a_dataset_goes_from_its_request_to_the_dataset(registry):
    await import_version(registry)
    digest = (await upload(registry, text_rows())).artifact.digest
    create = pb.CreateDatasetRequest(name="udhr", format=pb.DATASET_FORMAT_TEXT, digest=digest)
    await models(registry).CreateDataset(create)
    asked = job_pb2.ValidateDatasetSpec(dataset="udhr", base="seedling", sequence_length=64)
    job = (await jobs(registry).CreateJob(job_pb2.CreateJobRequest(validate_dataset=asked))).job
    assert (job.validate_dataset.dataset, job.validate_dataset.base) == ("udhr@1", "seedling@1")
    trainer = jobs(registry, "trainer")
    acquired = await trainer.AcquireLease(job_pb2.AcquireLeaseRequest(job_id=job.id, worker_id="t1"))
    assert (acquired.job.validate_dataset, acquired.datasets[0].name) == (job.validate_dataset, "udhr@1")
    report = (await upload(registry, b'{"format": 1}')).artifact.digest
    files = job_pb2.ModelFiles(files=[pb.ModelFile(path="report.json", digest=report)])
    finish = job_pb2.FinishJobRequest(job_id=job.id, fencing_token=1, succeeded=files)
    assert (await trainer.FinishJob(finish)).job.state == job_pb2.JOB_STATE_SUCCEEDED
    dataset = (await models(registry).GetDataset(pb.GetDatasetRequest(name="udhr"))).dataset
    assert (dataset.report_digest, dataset.report_job_id) == (report, job.id)
    assert [found.id for found in (await jobs(registry).ListJobs(job_pb2.ListJobsRequest())).jobs] == [job.id]


async def import_version(registry, model="seedling", licence="apache-2.0"):
    stored = store_checkpoint(registry.artifacts)
    version = pb.ModelVersion(
        model=model,
        licence=licence,
        tokenizer_digest=stored.tokenizer_digest,
        files=[pb.ModelFile(path=file.path, digest=file.digest) for file in stored.files],
    )
    request = pb.CreateModelVersionRequest(version=version)
    return (await models(registry).CreateModelVersion(request)).version


async def test_an_imported_model_is_deployed_and_resolves_to_the_worker_that_has_it(registry):
    version = await import_version(registry)
    assert (version.name, version.source, version.licence) == ("seedling@1", "import", "apache-2.0")
    await models(registry).SetAlias(pb.SetAliasRequest(name="flower", version="seedling"))
    deployment = pb.Deployment(name="garden", target="flower")
    await models(registry).CreateDeployment(pb.CreateDeploymentRequest(deployment=deployment))
    worker = models(registry, "inference")
    beat = pb.HeartbeatWorkerRequest(worker_id="w1", address="127.0.0.1:50052", device="cpu")
    answer = await worker.HeartbeatWorker(beat)
    assert (answer.assigned[0], answer.lease_seconds) == (version, 5)
    beat.models.add(version="seedling@1", state="READY", max_sequence_tokens=2048, load=1)
    await worker.HeartbeatWorker(beat)
    resolved = await models(registry, "gateway").ResolveModel(pb.ResolveModelRequest(name="flower"))
    assert resolved.version == version
    assert [(found.id, found.address, found.load) for found in resolved.workers] == [("w1", "127.0.0.1:50052", 1)]
    listed = (await models(registry).ListDeployments(pb.ListDeploymentsRequest())).deployments
    assert [(found.name, found.version, found.ready_replicas) for found in listed] == [("garden", "seedling@1", 1)]


async def submit(registry, **options):
    await import_version(registry)
    digest = (await upload(registry, text_rows())).artifact.digest
    dataset = pb.CreateDatasetRequest(name="udhr", format=pb.DATASET_FORMAT_TEXT, digest=digest)
    await models(registry).CreateDataset(dataset)
    spec = job_pb2.FineTuneSpec(
        output_model="sprout",
        base="seedling",
        datasets=["udhr"],
        options=job_pb2.TrainOptions(**({"steps": 10} | options)),
        lora=job_pb2.LoraOptions(rank=4),
    )
    return (await jobs(registry).CreateJob(job_pb2.CreateJobRequest(fine_tune=spec, deploy_alias="bud"))).job


async def test_a_job_goes_from_its_submission_to_a_deployed_version(registry):
    job = await submit(registry, learning_rate=3e-4, seed=2**63)
    assert (job.state, job.created_by, job.fine_tune.base) == (job_pb2.JOB_STATE_PENDING, "admin", "seedling@1")
    assert job.fine_tune.options == job_pb2.TrainOptions(steps=10, learning_rate=3e-4, seed=2**63)
    assert job.fine_tune.lora.rank == 4
    events = []

    async def watch():
        async for answer in jobs(registry).WatchJob(job_pb2.WatchJobRequest(id=job.id)):
            events.append(answer.event)

    watching = asyncio.create_task(watch())
    trainer = jobs(registry, "trainer")
    acquired = await trainer.AcquireLease(job_pb2.AcquireLeaseRequest(job_id=job.id, worker_id="t1"))
    assert (acquired.lease.fencing_token, acquired.lease.ttl_seconds, acquired.deploy_alias) == (1, 15, "bud")
    assert (acquired.base.name, acquired.datasets[0].name) == ("seedling@1", "udhr@1")
    progress = job_pb2.TrainingProgress(step=5, total_steps=10, loss=float("nan"), grad_norm=float("inf"))
    losses = [
        job_pb2.ValidationLoss(dataset="held-out", language="fr", bits_per_byte=1.5, num_bytes=2**40),
        job_pb2.ValidationLoss(dataset="held-out", bits_per_byte=float("inf"), num_bytes=1),
    ]
    validated = job_pb2.TrainingProgress(
        step=4, samples_seen=8, model_flops_per_second=3e15, validation_step=4, validation=losses
    )
    renew = job_pb2.RenewLeaseRequest(
        job_id=job.id, fencing_token=1, progress=[validated, progress], messages=["half\0way"]
    )
    assert not (await trainer.RenewLease(renew)).cancel_requested
    stored = store_checkpoint(registry.artifacts)
    files = [pb.ModelFile(path=file.path, digest=file.digest) for file in stored.files]
    finish = job_pb2.FinishJobRequest(
        job_id=job.id, fencing_token=1, succeeded=job_pb2.ModelFiles(files=files), progress=[progress]
    )
    done = (await trainer.FinishJob(finish)).job
    assert (await trainer.FinishJob(finish)).job == done
    assert (done.state, done.model_version) == (job_pb2.JOB_STATE_SUCCEEDED, "sprout@1")
    assert done.progress.step == 5
    assert str(done.progress.loss) == "nan"
    assert (done.progress.validation_step, list(done.progress.validation)) == (4, losses)  # the newest that was made
    await asyncio.wait_for(watching, 10)
    assert [event.sequence for event in events] == list(range(1, 9))
    assert [event.WhichOneof("event") for event in events] == [
        "state", "state", "message", "progress", "progress", "message", "progress", "state"
    ]  # fmt: skip
    first, second = (event.progress for event in events[3:5])
    assert (first.samples_seen, first.model_flops_per_second, list(first.validation)) == (
        8,
        pytest.approx(3e15),
        losses,
    )
    assert (second.validation_step, list(second.validation)) == (0, [])
    lineage = await models(registry).GetLineage(pb.GetLineageRequest(version="bud"))
    assert [version.name for version in lineage.ancestors] == ["seedling@1"]


async def test_bad_input_to_a_job_gets_the_canonical_status_and_changes_nothing(registry):
    message = await refused(submit(registry, learning_rate=7.0), grpc.StatusCode.INVALID_ARGUMENT)
    assert message == "learning_rate=7 is out of range; choose a value in (0, 1]"
    assert not (await jobs(registry).ListJobs(job_pb2.ListJobsRequest())).jobs
    message = await refused(jobs(registry).CreateJob(job_pb2.CreateJobRequest()), grpc.StatusCode.INVALID_ARGUMENT)
    assert message.startswith("the request has no spec; set one of pretrain, fine_tune, validate_dataset, evaluate, ")


async def test_a_job_cancelled_twice_is_refused_the_second_time(registry):
    job = await submit(registry)
    cancelled = (await jobs(registry).CancelJob(job_pb2.CancelJobRequest(id=job.id))).job
    assert cancelled.state == job_pb2.JOB_STATE_CANCELLED
    again = jobs(registry).CancelJob(job_pb2.CancelJobRequest(id=job.id))
    message = await refused(again, grpc.StatusCode.FAILED_PRECONDITION)
    assert message == f"job {job.id} has already ended: CANCELLED; nothing is left to cancel"


async def test_a_stale_token_is_aborted(registry):
    job = await submit(registry)
    trainer = jobs(registry, "trainer")
    await trainer.AcquireLease(job_pb2.AcquireLeaseRequest(job_id=job.id, worker_id="t1"))
    renew = job_pb2.RenewLeaseRequest(job_id=job.id, fencing_token=2**63)
    assert "is stale" in await refused(trainer.RenewLease(renew), grpc.StatusCode.ABORTED)


async def test_lists_come_in_pages(registry):
    names, token = [], ""
    while True:
        answer = await models(registry).ListModels(pb.ListModelsRequest(page_size=7, page_token=token))
        names += [model.name for model in answer.models]
        token = answer.next_page_token
        if not token:
            break
    assert len(names) == len(set(names)) == 16
    assert names == sorted(names)


@pytest.mark.parametrize("token", ["nonsense", base64.urlsafe_b64encode(b"[" * 50_000).decode()])
async def test_a_page_token_that_was_not_given_out_is_refused(registry, token: str):
    listing = models(registry).ListAliases(pb.ListAliasesRequest(page_token=token))
    message = await refused(listing, grpc.StatusCode.INVALID_ARGUMENT)
    assert message == f"page_token {token[:40]!r} is not from this list; leave it empty to start over"


async def test_a_catalogue_model_is_shown_with_its_configuration(registry):
    model = (await models(registry).GetModel(pb.GetModelRequest(name="bigscience/bloomz-560m"))).model
    assert json.loads(model.config_json)["n_head"] == 16
    assert (model.parameters, model.base_model, model.in_catalogue) == (559_214_592, "bigscience/bloom-560m", True)
    resolve = models(registry).ResolveModel(pb.ResolveModelRequest(name="bigscience/bloomz-560m"))
    message = await refused(resolve, grpc.StatusCode.FAILED_PRECONDITION)
    assert "`anthesis models import bigscience/bloomz-560m --from DIR`" in message
