"""Who has accepted what: asked before anybody tunes, downloads or generates under a licence that has to be accepted."""

from collections.abc import Iterable, Sequence

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from services.common.errors import FailedPrecondition
from services.registry.database import insert_if_absent
from services.registry.licences.expression import join, parse
from services.registry.licences.terms import in_short
from services.registry.tables import Licence, LicenceAcceptance, LicensedFile, ModelVersion

_DESCRIPTIONS = (".json", ".md", ".txt")  # they tell of a model; what licences cover are weights and training states


async def find_licences(session: AsyncSession, expression: str) -> list[Licence]:
    """The licences of `expression`. Raises InvalidArgument, FailedPrecondition for one whose text is not here."""
    ids = parse(expression)
    found = {row.id: row for row in await session.scalars(select(Licence).where(Licence.id.in_(ids)))}
    if unknown := [licence for licence in ids if licence not in found]:
        raise FailedPrecondition(
            f"the text of licence {unknown[0]!r} is not known here; an admin registers it: `anthesis licences create "
            f"{unknown[0]} --name NAME --text FILE`, and `anthesis licences list` shows the others"
        )
    return [found[licence] for licence in ids]


async def missing(session: AsyncSession, principal: str, expression: str) -> list[Licence]:
    """What `principal` has still to accept of `expression`: the exact texts that hold now."""
    asked = [licence for licence in await find_licences(session, expression) if licence.must_accept]
    if not asked:
        return []
    query = select(LicenceAcceptance).where(
        LicenceAcceptance.principal == principal, LicenceAcceptance.licence.in_([licence.id for licence in asked])
    )
    accepted = {(row.licence, row.digest) for row in await session.scalars(query)}
    return [licence for licence in asked if (licence.id, licence.digest) not in accepted]


async def require_acceptance(session: AsyncSession, principal: str, version: ModelVersion) -> None:
    """Raise FailedPrecondition, saying what restricts and how to accept, where `principal` has still to accept."""
    if licences := await missing(session, principal, version.licence):
        raise FailedPrecondition(refusal(principal, version.name, licences))


async def require_acceptance_of_file(session: AsyncSession, principal: str, digest: str) -> None:
    """The same for a file: of every version that has it, so that none can be got by registering it once more."""
    ids = list(await session.scalars(select(LicensedFile.licence).where(LicensedFile.digest == digest)))
    if ids and (licences := await missing(session, principal, join(ids))):
        raise FailedPrecondition(refusal(principal, f"artifact {digest}", licences))


def refusal(principal: str, what: str, licences: Sequence[Licence]) -> str:
    return " ".join([f"{principal!r} has first to accept what {what} is under.", *map(_one_refusal, licences)])


def _one_refusal(licence: Licence) -> str:
    restrictions = in_short(licence.text)
    restricts = f" forbids, in short: {restrictions}." if restrictions else " states its terms in its text."
    return (
        f"Licence {licence.id} ({licence.name}){restricts} Read it whole with `anthesis licences show {licence.id}`, "
        f"accept it with `anthesis licences accept {licence.id}`."
    )


async def note_files(session: AsyncSession, licence: str, files: Iterable[dict[str, object]]) -> None:
    """Remember under which licences the files of a version are."""
    digests = {str(file["digest"]) for file in files if _is_covered(file)}
    for digest in sorted(digests):
        for licence_id in parse(licence):
            await insert_if_absent(session, LicensedFile, digest=digest, licence=licence_id)


def _is_covered(file: dict[str, object]) -> bool:
    return not file.get("carried") and not str(file["path"]).endswith(_DESCRIPTIONS)
