"""The licences that are known from the start. Their texts are fetched at set-up (`python -m infra.licences`)."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select

from services.registry.database import Clock, Database, insert_if_absent, utc_now
from services.registry.tables import Licence

TEXTS = Path(__file__).with_name("texts")  # not in the repository
_REMEDY = "`python -m infra.licences` fetches it"


@dataclass(frozen=True, kw_only=True, slots=True)
class BuiltinLicence:
    id: str
    name: str
    digest: str  # of the text, without white space around it
    must_accept: bool


BUILTIN = (
    BuiltinLicence(
        id="apache-2.0",
        name="Apache License 2.0",
        digest="sha256:f08dae65759b33869b3235a5d5dc35f8a36320fc939d82ae85e65fd5fc3bcad9",
        must_accept=False,
    ),
    BuiltinLicence(
        id="bigscience-rail-1.0",
        name="BigScience RAIL License v1.0",
        digest="sha256:bd59d4cae17c8b7cc11d63ec0543d9fa48b51d628706f4407676521457d0ac78",
        must_accept=True,
    ),
    BuiltinLicence(
        id="mit",
        name="MIT License",
        digest="sha256:17eeb111a052462b64de9a5a56983f8d732922d8666ecbf20ede8f776b4c4df4",
        must_accept=False,
    ),
)


def digest_text(text: str) -> str:
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def read_text(licence: BuiltinLicence, folder: Path = TEXTS) -> str:
    """Raises FileNotFoundError, or ValueError for another text than the licence's, saying how to get it."""
    path = folder / f"{licence.id}.txt"
    if not path.exists():
        raise FileNotFoundError(f"there is no text of licence {licence.id} at {path}; {_REMEDY}")
    text = path.read_bytes().decode(errors="replace")
    if digest_text(text) != licence.digest:
        raise ValueError(f"{path} has {digest_text(text)}, licence {licence.id} {licence.digest}; {_REMEDY} anew")
    return text


async def seed_licences(database: Database, clock: Clock = utc_now, folder: Path = TEXTS) -> None:
    """Put the texts into the database; those that are there stay as they are. Raises as `read_text` does."""
    texts = [(licence, read_text(licence, folder)) for licence in BUILTIN]
    async with database.write() as session:
        for licence, text in texts:
            await insert_if_absent(
                session,
                Licence,
                id=licence.id,
                name=licence.name,
                text=text,
                digest=licence.digest,
                must_accept=licence.must_accept,
                create_time=clock(),
            )


async def check_seeded(database: Database) -> None:
    """Raise RuntimeError unless the database has every text."""
    async with database.read() as session:
        found = set(await session.scalars(select(Licence.digest)))
    if missing := [licence.id for licence in BUILTIN if licence.digest not in found]:
        raise RuntimeError(
            f"the text of licence {missing[0]} is not in the database; "
            "run `python -m infra.licences` and `python -m services.registry.bootstrap`"
        )
