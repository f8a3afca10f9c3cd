"""A project's requests name no artifact that the project may not read, whatever the RPC."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from google.protobuf.message import Message

from services.common.artifacts import absent, is_digest
from services.common.auth import Call
from services.registry.database import Database
from services.registry.projects.artifacts import may_read

# A sender has the bytes, and proves it (uploads.py); of a licence it is the text's; the last gives the right itself.
EXEMPT = frozenset({"RegistryService.BeginUpload", "LicenceService.AcceptLicence", "ProjectService.NoteArtifact"})


class ArtifactGuard:
    """A `CheckRequest` for the registry."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def __call__(self, call: Call, request: Message) -> None:
        """Raise NotFound, as if it were not there, for a digest that the caller's project may not read."""
        if not call.principal.project or call.action in EXEMPT:
            return
        async with self._database.read() as session:
            for digest in sorted(set(digests_in(request))):
                if not await may_read(session, [digest]):
                    raise absent(digest)


def digests_in(message: Message) -> Iterator[str]:
    """Every digest that a field of the message, or of one within it, holds."""
    for _, value in message.ListFields():
        yield from _digests_of(value)


def _digests_of(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        if is_digest(value):
            yield value
    elif isinstance(value, Message):
        yield from digests_in(value)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _digests_of(item)
    elif isinstance(value, Iterable) and not isinstance(value, bytes):
        for item in value:
            yield from _digests_of(item)
