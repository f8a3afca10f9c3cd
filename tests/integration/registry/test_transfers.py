"""Artifacts over gRPC: broken streams, lies, offsets, URLs, verification and garbage."""

import asyncio
import hashlib
import os
import urllib.request
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from anthesis.channel import open_aio_channel
from anthesis.v1 import registry_pb2 as pb
from anthesis.v1.registry_pb2_grpc import RegistryServiceStub

from services.registry.upload_limits import UploadLimits
from tests.support.registry_data import store_checkpoint
from tests.support.registry_server import running_registry
from tests.support.s3 import s3_store

MIB = 1 << 20


def digest_of(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def stub(registry, principal="admin"):
    return RegistryServiceStub(registry.channel(principal))


async def begin(registry, data, **options):
    return await stub(registry).BeginUpload(
        pb.BeginUploadRequest(digest=digest_of(data), size_bytes=len(data), **options)
    )


async def send(registry, data, upload_id="", offset=0, before_end=None):
    header = pb.UploadHeader(digest=digest_of(data), size_bytes=len(data), upload_id=upload_id, offset_bytes=offset)

    async def parts():
        yield pb.UploadArtifactRequest(header=header)
        for start in range(offset, len(data), MIB):
            yield pb.UploadArtifactRequest(data=data[start : start + MIB])
            if before_end:
                await before_end()

    return await stub(registry).UploadArtifact(parts())


async def refused(call, code):
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    assert error.value.code() == code, error.value.details()
    return error.value.details()


async def break_off(registry, data, upload_id):
    """Cancel an upload when its first MiB has arrived; return once the registry has noticed."""
    sent = asyncio.Event()

    async def hang():
        sent.set()
        await asyncio.Event().wait()

    call = asyncio.create_task(send(registry, data, upload_id, before_end=hang))
    await sent.wait()
    staged = registry.artifacts.staging / upload_id
    while staged.stat().st_size < MIB:  # noqa: ASYNC110 (another thread writes the file)
        await asyncio.sleep(0.01)
    call.cancel()
    while (again := await begin(registry, data)).upload_id != upload_id:  # noqa: ASYNC110 (another call ends)
        await asyncio.sleep(0.01)
    return again


async def test_an_upload_that_breaks_off_goes_on_where_it_was(registry):
    data = os.urandom(3 * MIB + 5)
    begun = await begin(registry, data)
    again = await break_off(registry, data, begun.upload_id)
    assert (begun.exists, begun.offset_bytes, again.offset_bytes) == (False, 0, MIB)
    await send(registry, data, again.upload_id, again.offset_bytes)
    assert registry.artifacts.read_bytes(digest_of(data)) == data
    assert (await begin(registry, data)).exists
    assert [path.name for path in registry.artifacts.staging.iterdir() if path.stat().st_size] == []


async def test_a_lying_upload_that_goes_on_is_refused_and_leaves_nothing(registry):
    data = os.urandom(2 * MIB)
    begun = await begin(registry, data)
    again = await break_off(registry, data, begun.upload_id)
    staged = registry.artifacts.staging / again.upload_id
    with staged.open("r+b") as file:
        file.write(b"other bytes")
    await refused(send(registry, data, again.upload_id, again.offset_bytes), grpc.StatusCode.DATA_LOSS)
    assert not staged.exists()
    assert not registry.artifacts.exists(digest_of(data))


async def test_bad_headers_get_canonical_codes_and_change_nothing(registry):
    data = os.urandom(MIB)
    begun = await begin(registry, data)
    invalid, exhausted = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "BeginUpload gives both" in await refused(send(registry, data, offset=5), invalid)
    await refused(send(registry, data, "upload-of-nobody\0"), grpc.StatusCode.NOT_FOUND)
    behind = send(registry, data, begun.upload_id, offset=2**63)
    assert "behind the 0 bytes" in await refused(behind, grpc.StatusCode.FAILED_PRECONDITION)
    for digest in ("", "../../etc/passwd", "sha256:" + "A" * 64):
        await refused(stub(registry).BeginUpload(pb.BeginUploadRequest(digest=digest, size_bytes=1)), invalid)
    huge = pb.BeginUploadRequest(digest=digest_of(b""), size_bytes=2**64 - 1)
    assert "are allowed" in await refused(stub(registry).BeginUpload(huge), exhausted)
    assert [path.name for path in registry.artifacts.staging.iterdir()] == [begun.upload_id]


async def test_two_streams_of_one_upload_do_not_mix(registry):
    data = os.urandom(2 * MIB)
    begun = await begin(registry, data)
    first_came, go_on = asyncio.Event(), asyncio.Event()

    async def wait():
        first_came.set()
        await go_on.wait()

    first = asyncio.create_task(send(registry, data, begun.upload_id, before_end=wait))
    await first_came.wait()
    while (registry.artifacts.staging / begun.upload_id).stat().st_size < MIB:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    message = await refused(send(registry, data, begun.upload_id), grpc.StatusCode.ABORTED)
    assert "is being sent by another stream" in message
    again = await begin(registry, data, upload_id=begun.upload_id)  # its sender asks for it: the first stream ends
    assert (again.upload_id, again.offset_bytes) == (begun.upload_id, MIB)
    go_on.set()
    assert "goes on in another stream" in await refused(first, grpc.StatusCode.ABORTED)
    await send(registry, data, again.upload_id, again.offset_bytes)
    assert registry.artifacts.read_bytes(digest_of(data)) == data


async def test_too_many_unfinished_uploads_are_refused_with_what_is_allowed(tmp_path):
    async with running_registry(data_dir=tmp_path, uploads=UploadLimits(max_uploads=1)) as registry:
        await begin(registry, b"one")
        message = await refused(begin(registry, b"two"), grpc.StatusCode.RESOURCE_EXHAUSTED)
        assert "'admin' has 1 unfinished uploads of 3 bytes and asks for 3 more; 1 and" in message
        await refused(send(registry, b"two"), grpc.StatusCode.RESOURCE_EXHAUSTED)


async def test_unfinished_uploads_are_ones_own_to_list_and_to_abandon(registry):
    data = os.urandom(3 * MIB)
    begun = await begin(registry, data)
    await break_off(registry, data, begun.upload_id)
    own = stub(registry)
    (found,) = (await own.ListUploads(pb.ListUploadsRequest())).uploads
    assert (found.id, found.digest, found.size_bytes) == (begun.upload_id, digest_of(data), len(data))
    assert 0 < found.received_bytes < len(data)
    assert found.expire_time.ToDatetime(UTC) > datetime.now(UTC)
    abandon = pb.AbandonUploadRequest(id=begun.upload_id)
    key = await own.CreateApiKey(pb.CreateApiKeyRequest(principal="bob", role=pb.ROLE_TRAINER))
    async with open_aio_channel(registry.address, key.secret) as channel:
        other = RegistryServiceStub(channel)
        assert not (await other.ListUploads(pb.ListUploadsRequest())).uploads
        await refused(other.AbandonUpload(abandon), grpc.StatusCode.NOT_FOUND)
    await own.AbandonUpload(abandon)
    await refused(own.AbandonUpload(abandon), grpc.StatusCode.NOT_FOUND)
    await refused(own.AbandonUpload(pb.AbandonUploadRequest(id="\0")), grpc.StatusCode.NOT_FOUND)
    assert not (await own.ListUploads(pb.ListUploadsRequest())).uploads
    assert (await begin(registry, data)).offset_bytes == 0


async def test_a_download_begins_at_its_offset(registry):
    data = os.urandom(2 * MIB + 7)
    await send(registry, data)
    for offset in (0, 1, MIB, len(data)):
        request = pb.DownloadArtifactRequest(digest=digest_of(data), offset_bytes=offset)
        assert b"".join([part.data async for part in stub(registry).DownloadArtifact(request)]) == data[offset:]
    request = pb.DownloadArtifactRequest(digest=digest_of(data), offset_bytes=2**63)
    call = stub(registry).DownloadArtifact(request)
    await refused(anext(aiter(call)), grpc.StatusCode.INVALID_ARGUMENT)


async def verified(registry, principal="admin", **request):
    call = stub(registry, principal).VerifyArtifacts(pb.VerifyArtifactsRequest(**request))
    return {found.artifact.digest: pb.ArtifactState.Name(found.state)[15:] async for found in call}


async def test_damage_is_found_by_version_by_digest_and_in_everything(registry):
    stored = store_checkpoint(registry.artifacts)
    version = pb.ModelVersion(
        model="seedling",
        licence="mit",
        tokenizer_digest=stored.tokenizer_digest,
        files=[pb.ModelFile(path=file.path, digest=file.digest) for file in stored.files],
    )
    await stub(registry).CreateModelVersion(pb.CreateModelVersionRequest(version=version))
    weights = stored.files[1].digest
    path = registry.artifacts.local_path(weights)
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    missing = "sha256:" + "0" * 64
    assert set((await verified(registry, version="seedling")).values()) == {"OK", "DAMAGED"}
    assert await verified(registry, digests=[weights, missing]) == {weights: "DAMAGED", missing: "MISSING"}
    assert (await verified(registry, all=True))[weights] == "DAMAGED"
    for ask in ({}, {"all": True, "version": "seedling"}):
        await refused(verified(registry, **ask), grpc.StatusCode.INVALID_ARGUMENT)


async def test_reading_the_whole_store_takes_an_admin(registry):
    request = pb.CreateApiKeyRequest(principal="ada", role=pb.ROLE_USER)
    key = (await stub(registry).CreateApiKey(request)).secret
    async with open_aio_channel(registry.address, key) as channel:
        call = RegistryServiceStub(channel).VerifyArtifacts(pb.VerifyArtifactsRequest(all=True))
        message = await refused(anext(aiter(call)), grpc.StatusCode.PERMISSION_DENIED)
    assert "'ada' has role 'user'; RegistryService.VerifyArtifacts needs the permission 'operate'" in message


async def test_garbage_is_listed_then_deleted_and_by_default_only_when_a_day_old(registry):
    digest = registry.artifacts.write_bytes(b"nobody's")
    path = registry.artifacts.local_path(digest)

    async def garbage(**request):
        call = stub(registry).CollectGarbage(pb.CollectGarbageRequest(**request))
        return [(found.name, found.size_bytes, found.deleted) async for found in call]

    os.utime(path, ((datetime.now(UTC) - timedelta(hours=23)).timestamp(),) * 2)
    assert await garbage() == await garbage(delete=True) == []
    assert await garbage(older_than_seconds=3600) == [(digest, 8, False)]
    assert path.exists()
    assert await garbage(older_than_seconds=3600, delete=True) == [(digest, 8, True)]
    assert not path.exists()


@pytest.mark.long
async def test_on_a_bucket_uploads_are_staged_here_and_downloads_have_a_url(tmp_path):
    data = os.urandom(MIB + 3)
    with s3_store() as url:
        async with running_registry(data_dir=tmp_path, artifacts_url=url) as registry:
            begun = await begin(registry, data)
            staged = tmp_path / "cache" / "artifacts" / "incoming" / begun.upload_id
            assert staged.exists()
            await send(registry, data, begun.upload_id)
            assert not staged.exists()
            answer = await stub(registry).GetArtifact(
                pb.GetArtifactRequest(digest=digest_of(data), url_lifetime_seconds=60)
            )
            assert await asyncio.to_thread(lambda: urllib.request.urlopen(answer.url).read()) == data
            left = answer.url_expire_time.ToDatetime(UTC) - datetime.now(UTC)
            assert timedelta(seconds=30) < left <= timedelta(seconds=60)
            assert await verified(registry, all=True) == {digest_of(data): "OK"}
            long = pb.GetArtifactRequest(digest=digest_of(data), url_lifetime_seconds=3601)
            await refused(stub(registry).GetArtifact(long), grpc.StatusCode.INVALID_ARGUMENT)


async def test_a_folder_has_no_urls(registry):
    await send(registry, b"data")
    request = pb.GetArtifactRequest(digest=digest_of(b"data"), url_lifetime_seconds=60)
    answer = await stub(registry).GetArtifact(request)
    assert (answer.url, answer.HasField("url_expire_time"), answer.artifact.size_bytes) == ("", False, 4)
