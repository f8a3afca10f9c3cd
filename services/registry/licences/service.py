"""Licences as people meet them: listed, read, registered and accepted."""

from dataclasses import dataclass

from sqlalchemy import select

from services.common.access import Permission
from services.common.auth import Principal
from services.common.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, PermissionDenied
from services.registry import audit
from services.registry.aliases import resolve
from services.registry.database import Clock, Database, insert_if_absent, utc_now
from services.registry.licences.acceptance import missing, refusal, require_acceptance_of_file
from services.registry.licences.builtin import digest_text
from services.registry.licences.expression import ID
from services.registry.pages import Page, PageRequest, read_page
from services.registry.tables import Licence, LicenceAcceptance

MAX_NAME = 200
MAX_TEXT = 256 * 1024  # characters


@dataclass(frozen=True, kw_only=True, slots=True)
class NewLicence:
    id: str
    name: str
    text: str
    must_accept: bool


@dataclass(frozen=True, slots=True)
class Pending:
    """What somebody has still to accept before using a version; `refusal` says so, "" where it is nothing."""

    licences: list[Licence]
    refusal: str


class Licences:
    def __init__(self, database: Database, clock: Clock = utc_now) -> None:
        self._database = database
        self._clock = clock

    async def create(self, new: NewLicence) -> Licence:
        """Register a licence for good: its text never changes. Raises AlreadyExists, InvalidArgument."""
        _check_new(new)
        async with self._database.write() as session:
            created = await insert_if_absent(
                session,
                Licence,
                id=new.id,
                name=new.name,
                text=new.text,
                digest=digest_text(new.text),
                must_accept=new.must_accept,
                create_time=self._clock(),
            )
            if not created:
                raise AlreadyExists(f"licence {new.id!r} exists and does not change; register this under another id")
            audit.record(session, self._clock(), f"licence/{new.id}", digest_text(new.text))
            return await session.get_one(Licence, new.id)

    async def get(self, licence_id: str) -> Licence:
        """Raises NotFound."""
        async with self._database.read() as session:
            licence = await session.get(Licence, licence_id.lower())
        if licence is None:
            raise NotFound(f"no licence {licence_id[:100]!r}; `anthesis licences list` shows what there is")
        return licence

    async def list_licences(self, page: PageRequest) -> Page[Licence]:
        async with self._database.read() as session:
            return await read_page(session, select(Licence), Licence.id, page, scope="licences")

    async def accept(self, principal: Principal, licence_id: str, digest: str) -> LicenceAcceptance:
        """Note that `principal` accepts the text with `digest`; again, it changes nothing.

        Raises NotFound, FailedPrecondition for another text than the licence's.
        """
        licence = await self.get(licence_id)
        if digest != licence.digest:
            raise FailedPrecondition(
                f"digest {digest[:100]!r} is not that of licence {licence.id}, {licence.digest}; read its text "
                f"(`anthesis licences show {licence.id}`) and accept that"
            )
        who = {"principal": principal.name, "licence": licence.id, "digest": digest}
        async with self._database.write() as session:
            key = {"key_id": principal.key_id, "time": self._clock()}
            if await insert_if_absent(session, LicenceAcceptance, **who, **key):
                audit.record(session, self._clock(), f"licence/{licence.id}", f"accepted {digest}")
            return (await session.scalars(select(LicenceAcceptance).filter_by(**who))).one()

    async def list_acceptances(
        self, caller: Principal, principal: str, page: PageRequest, *, everyone: bool = False
    ) -> Page[LicenceAcceptance]:
        """Newest first; the caller's own where `principal` is empty. Others': PermissionDenied but for admins."""
        whose = principal or caller.name
        if (everyone or whose != caller.name) and Permission.ADMIN not in caller.rights:
            raise PermissionDenied(f"{caller.name!r} may see its own acceptances; others' need an admin's key")
        query = select(LicenceAcceptance)
        if not everyone:
            query = query.where(LicenceAcceptance.principal == whose)
        scope = "all acceptances" if everyone else f"acceptances of {whose}"
        async with self._database.read() as session:
            return await read_page(session, query, LicenceAcceptance.id, page, scope=scope, newest_first=True)

    async def pending(self, caller: Principal, principal: str, version: str) -> Pending:
        """What `principal` ("": the caller) has still to accept before using what `version` means.

        Raises NotFound, PermissionDenied where a user asks about another.
        """
        whose = principal or caller.name
        if whose != caller.name and Permission.INTERNAL not in caller.rights:
            raise PermissionDenied(f"{caller.name!r} may ask for itself only; leave principal empty")
        async with self._database.read() as session:
            target = await resolve(session, version)
            if not principal and caller.is_service:
                return Pending([], "")
            licences = await missing(session, whose, target.licence)
        return Pending(licences, refusal(whose, target.name, licences) if licences else "")

    async def check_download(self, caller: Principal, digest: str) -> None:
        """Raise FailedPrecondition where the artifact is a file under a licence that `caller` has still to accept."""
        if caller.is_service:
            return
        async with self._database.read() as session:
            await require_acceptance_of_file(session, caller.name, digest)


def _check_new(new: NewLicence) -> None:
    if not ID.fullmatch(new.id):
        raise InvalidArgument(f"licence id {new.id[:100]!r} is not allowed; use a-z, 0-9, '.' and '-', at most 64")
    if not new.name or len(new.name) > MAX_NAME or not new.name.isprintable():
        raise InvalidArgument(f"name {new.name[:MAX_NAME]!r} is not allowed; give 1 to {MAX_NAME} printable characters")
    if not new.text.strip() or len(new.text) > MAX_TEXT or "\0" in new.text:
        raise InvalidArgument(
            f"text has {len(new.text)} characters; give the licence's whole text, at most {MAX_TEXT}, without NUL"
        )
