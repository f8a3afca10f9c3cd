"""Aliases: movable names of versions, and where each has pointed."""

from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from anthesis.rpc import PAGE_SIZE, pages, unary
from anthesis.v1 import registry_pb2 as pb
from anthesis.v1.registry_pb2_grpc import RegistryServiceStub


class Aliases:
    """Moves aliases and tells their history.

    With `if_generation` an alias moves only if that is its newest generation (0: only if there is no such alias): else
    AbortedError names the generation and version it has. Without, the last writer wins. `reason` is a line of at most
    1,000 characters.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = RegistryServiceStub(channel)

    async def list(self) -> Sequence[pb.Alias]:
        """Every alias and the version it names now."""
        request = pb.ListAliasesRequest(page_size=PAGE_SIZE)
        return [alias async for page in pages(self._stub.ListAliases, request) for alias in page.aliases]

    async def set(
        self,
        name: str,
        version: str,
        *,
        if_generation: int | None = None,
        reason: str = "",
        override_gate: bool = False,
    ) -> pb.Alias:
        """Point an alias at a version; its deployments follow. Raises NotFoundError, AbortedError.

        FailedPreconditionError where its gate refuses, with the languages; `override_gate` moves it all the same, for a
        `reason`.
        """
        request = pb.SetAliasRequest(
            name=name, version=version, if_generation=if_generation, reason=reason, override_gate=override_gate
        )
        return (await unary(self._stub.SetAlias(request))).alias

    async def history(self, name: str) -> AsyncGenerator[pb.AliasChange, None]:
        """The alias's changes, newest first; also of one that was deleted. Raises NotFoundError."""
        request = pb.ListAliasChangesRequest(name=name, page_size=PAGE_SIZE)
        async for page in pages(self._stub.ListAliasChanges, request):
            for change in page.changes:
                yield change

    async def resolve(self, name: str, *, at: datetime | None = None) -> pb.ResolveAliasResponse:
        """The version that the alias points to, or pointed to at a time, and the change that pointed it there.

        Raises NotFoundError when it did not exist then. A time without zone is local time.
        """
        request = pb.ResolveAliasRequest(name=name)
        if at:
            request.at.CopyFrom(_timestamp(at))
        return await unary(self._stub.ResolveAlias(request))

    async def rollback(
        self, name: str, *, generation: int | None = None, if_generation: int | None = None, reason: str = ""
    ) -> pb.Alias:
        """Point an alias back at the version before the current one, or at that of a generation; again goes on back.

        Raises FailedPreconditionError when there is none, NotFoundError, AbortedError.
        """
        request = pb.RollbackAliasRequest(name=name, generation=generation, if_generation=if_generation, reason=reason)
        return (await unary(self._stub.RollbackAlias(request))).alias

    async def delete(self, name: str, *, if_generation: int | None = None, reason: str = "") -> None:
        """Let the name point nowhere; its history stays.

        Raises FailedPreconditionError while a deployment follows it, NotFoundError, AbortedError.
        """
        request = pb.DeleteAliasRequest(name=name, if_generation=if_generation, reason=reason)
        await unary(self._stub.DeleteAlias(request))


def _timestamp(time: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(time.astimezone(UTC))
    return stamp
