"""Artifacts between gRPC streams and the store."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

from anthesis.v1 import registry_pb2

from services.common.access import Permission
from services.common.artifacts import ArtifactStore
from services.common.auth import Call, check_permission
from services.common.errors import InvalidArgument
from services.registry.database import utc_now
from services.registry.rpc.messages import timestamp
from services.registry.uploads import Uploads
from services.registry.verification import Verification, Verified

MAX_URL_LIFETIME_S = 3600


async def receive(
    uploads: Uploads, principal: str, parts: AsyncIterator[registry_pb2.UploadArtifactRequest]
) -> tuple[registry_pb2.UploadHeader, bool]:
    """Store what the stream carries; return its header and whether the artifact was there. Raises what Uploads raises.

    The bytes are verified and written even if the artifact is there: that repairs a damaged one.
    """
    first = await anext(parts, None)
    if first is None or first.WhichOneof("part") != "header":
        raise InvalidArgument("the first message of an upload carries the header: digest and size_bytes")
    header = first.header
    if header.upload_id:
        upload = await uploads.get(principal, header.upload_id, header.digest, header.size_bytes)
    elif header.offset_bytes:
        raise InvalidArgument(f"offset_bytes is {header.offset_bytes} without an upload_id; BeginUpload gives both")
    else:
        upload = await uploads.start(principal, header.digest, header.size_bytes)
    existed = await uploads.is_stored(header.digest, header.size_bytes)
    await uploads.receive(upload, header.offset_bytes, _data(parts))
    return header, existed


async def _data(parts: AsyncIterator[registry_pb2.UploadArtifactRequest]) -> AsyncIterator[bytes]:
    async for part in parts:
        if part.WhichOneof("part") != "data":
            raise InvalidArgument(f"message {part.WhichOneof('part')!r} in an upload; send the header once, then data")
        yield part.data


async def send(artifacts: ArtifactStore, digest: str, offset: int) -> AsyncIterator[bytes]:
    """An artifact's bytes from `offset` on, each chunk read while the last one goes out.

    Raises NotFound, InvalidArgument; DataLoss at the end of a whole one that is damaged.
    """
    chunks = artifacts.read(digest, offset)
    loop = asyncio.get_running_loop()
    ahead = loop.run_in_executor(None, next, chunks, b"")
    while chunk := await ahead:
        ahead = loop.run_in_executor(None, next, chunks, b"")
        yield chunk


def describe(artifacts: ArtifactStore, request: registry_pb2.GetArtifactRequest) -> registry_pb2.GetArtifactResponse:
    """An artifact's size and, asked for, where it can be had from the store itself. Blocking. Raises NotFound."""
    lifetime_s = request.url_lifetime_seconds
    if lifetime_s > MAX_URL_LIFETIME_S:
        raise InvalidArgument(f"url_lifetime_seconds is {lifetime_s}; ask for at most {MAX_URL_LIFETIME_S}")
    artifact = registry_pb2.Artifact(digest=request.digest, size_bytes=artifacts.size(request.digest))
    expires = utc_now() + timedelta(seconds=lifetime_s)
    url = artifacts.url(request.digest, lifetime_s) if lifetime_s else ""
    return registry_pb2.GetArtifactResponse(
        artifact=artifact, url=url, url_expire_time=timestamp(expires if url else None)
    )


def choose(
    verification: Verification, request: registry_pb2.VerifyArtifactsRequest, call: Call
) -> AsyncIterator[Verified]:
    """What the request asks to be verified. Raises InvalidArgument, PermissionDenied."""
    if bool(request.version) + bool(request.digests) + request.all != 1:
        raise InvalidArgument("say what to verify: either version, or digests, or all")
    if request.version:
        return verification.version(request.version)
    if request.digests:
        return verification.digests(request.digests)
    check_permission(call, Permission.OPERATE)
    return verification.everything()
