"""Hashing artifacts again, where they lie: is what the registry promises still there?"""

import asyncio
import errno
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field

from services.common.artifacts import ArtifactStore, check_digest
from services.common.errors import DataLoss, InvalidArgument, NotFound
from services.registry.aliases import resolve
from services.registry.database import Database
from services.registry.references import References, read_references

OK, MISSING, DAMAGED = "OK", "MISSING", "DAMAGED"
MAX_DIGESTS = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Verified:
    digest: str
    state: str
    size_bytes: int  # read
    needed_by: list[str] = field(default_factory=list)


class Verification:
    def __init__(self, database: Database, artifacts: ArtifactStore) -> None:
        self._database = database
        self._artifacts = artifacts

    async def version(self, name: str) -> AsyncIterator[Verified]:
        """The files and the tokenizer of what `name` means. Raises NotFound, FailedPrecondition."""
        async with self._database.read() as session:
            version = await resolve(session, name)
        needed: References = defaultdict(list)
        for file in version.files:
            needed[file["digest"]].append(file["path"])
        needed[version.tokenizer_digest].append("tokenizer")
        async for verified in self._each(needed):
            yield verified

    async def digests(self, digests: Iterable[str]) -> AsyncIterator[Verified]:
        """Raises InvalidArgument."""
        asked = list(dict.fromkeys(map(check_digest, digests)))
        if len(asked) > MAX_DIGESTS:
            raise InvalidArgument(f"{len(asked)} digests at once; ask for at most {MAX_DIGESTS}")
        needed = await self._needed()
        async for verified in self._each({digest: needed.get(digest, []) for digest in asked}):
            yield verified

    async def everything(self) -> AsyncIterator[Verified]:
        """What is in the store, and what is not but should be."""
        found = await asyncio.to_thread(lambda: [stored.name for stored in self._artifacts.stored()])
        needed = await self._needed()
        digests = {name for name in found if name.startswith("sha256:")} | needed.keys()
        async for verified in self._each({digest: needed.get(digest, []) for digest in sorted(digests)}):
            yield verified

    async def _needed(self) -> References:
        async with self._database.read() as session:
            return await read_references(session)

    async def _each(self, needed: References) -> AsyncIterator[Verified]:
        for digest, needed_by in needed.items():
            state, size = await self._hash(digest)
            yield Verified(digest=digest, state=state, size_bytes=size, needed_by=needed_by)

    async def _hash(self, digest: str) -> tuple[str, int]:
        """State and bytes. Chunk by chunk, so that a caller who leaves ends it."""
        chunks, size = self._artifacts.read(digest), 0
        try:
            while chunk := await asyncio.to_thread(next, chunks, b""):
                size += len(chunk)
        except (NotFound, FileNotFoundError):
            return MISSING, 0
        except DataLoss:
            return DAMAGED, size
        except OSError as error:
            if error.errno != errno.EIO:  # that the disk cannot read it; all else is the store's trouble
                raise
            return DAMAGED, size
        return OK, size
