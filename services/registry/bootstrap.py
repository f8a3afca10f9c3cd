"""What must be there before anything starts: `python -m services.registry.bootstrap`. Run again, it changes nothing.

Data folder, schema at its newest revision, licence texts, catalogue, published evaluations, and a key for the admin and
for each service.
"""

import asyncio
import fcntl
import logging
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from alembic import command

from services.common.auth import PLATFORM, Call, set_call
from services.common.errors import Unauthenticated
from services.common.logs import set_up_logging
from services.common.settings import Platform
from services.registry.catalogue import seed_catalogue
from services.registry.config import pepper_path, read_pepper
from services.registry.database import Database, alembic_config
from services.registry.evaluations.published import seed_published
from services.registry.keys import Keys, new_secret
from services.registry.licences.builtin import seed_licences

PRINCIPALS = {
    "admin": "admin",
    "gateway": "service",
    "tokenizer": "service",
    "inference": "service",
    "trainer": "service",
    "relay": "service",
}
# Less than the role may: of the services only the trainer asks versions, those that its jobs measure.
SCOPES = dict.fromkeys(("gateway", "tokenizer", "inference", "relay"), ("internal", "read"))
log = logging.getLogger(__name__)


def bootstrap(platform: Platform, env: Mapping[str, str] = os.environ) -> None:
    """Make everything that is missing. Blocking; runs event loops of its own."""
    make_private_folder(platform.data_dir)
    make_private_folder(platform.data_dir / "keys")
    with only_one(platform.data_dir / "bootstrap.lock"):
        if not env.get("ANTHESIS_KEY_PEPPER"):
            keep_secret(pepper_path(platform.data_dir), secrets.token_hex(32))
        command.upgrade(alembic_config(platform.database_url), "head")
        asyncio.run(_fill(platform, read_pepper(platform.data_dir, env)))


async def _fill(platform: Platform, pepper: bytes) -> None:
    set_call(Call(PLATFORM, "bootstrap"))
    database = Database(platform.database_url)
    await seed_licences(database)
    await seed_catalogue(database)
    await seed_published(database)
    keys = Keys(database, pepper)
    for principal, role in PRINCIPALS.items():
        # The file first: whatever dies in between, the next run registers the key that lies there.
        secret = keep_secret(platform.key_path(principal), new_secret())
        await keys.register(principal, role, secret, scopes=SCOPES.get(principal, ()))
        try:
            await keys.verify(secret)
        except Unauthenticated:
            path = platform.key_path(principal)
            log.warning("the key in %s was revoked; remove the file and run this again for a new one", path)
    await database.close()


def make_private_folder(path: Path) -> None:
    """A folder that its owner alone may enter, also where it existed."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.chmod(0o700)


def keep_secret(path: Path, secret: str) -> str:
    """Write `secret` to `path` (mode 600) unless the file exists; return what the file says.

    The file appears whole or not at all: it is written beside and linked, and a link never replaces.
    """
    if not path.exists():
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secret + "\n")
            file.flush()
            os.fsync(descriptor)
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass  # another process was faster; its secret counts
        finally:
            temporary.unlink()
    return path.read_text().strip()


@contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Wait until no other process on this machine is in here."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main() -> None:
    set_up_logging("bootstrap")
    platform = Platform.from_env()
    bootstrap(platform)
    log.info("ready: %s", platform.data_dir)


if __name__ == "__main__":
    main()
