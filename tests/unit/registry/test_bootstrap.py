import stat
from concurrent.futures import ThreadPoolExecutor

import pytest

from services.common.access import Permission
from services.common.errors import Unauthenticated
from services.registry.bootstrap import PRINCIPALS, bootstrap, keep_secret
from services.registry.config import read_pepper
from services.registry.database import Database
from services.registry.keys import Keys
from services.registry.pages import PageRequest
from tests.support.registry_server import read_keys, test_platform


@pytest.fixture
def platform(tmp_path):
    return test_platform(tmp_path / "data")


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
async def keys_of():
    """Of a platform. Their database is closed at the end."""
    databases = []

    def open_keys(platform):
        databases.append(Database(platform.database_url))
        return Keys(databases[-1], read_pepper(platform.data_dir, {}))

    yield open_keys
    for database in databases:
        await database.close()


def bootstrap_in_thread(platform, times=1):
    """It runs event loops of its own."""
    with ThreadPoolExecutor() as pool:
        list(pool.map(bootstrap, [platform] * times))


async def test_everyone_gets_a_key_that_only_its_owner_can_read(platform, keys_of):
    bootstrap_in_thread(platform)
    keys = keys_of(platform)
    for principal, secret in read_keys(platform).items():
        found = await keys.authenticate(secret)
        assert (found.name, found.role) == (principal, PRINCIPALS[principal])
        assert mode(platform.key_path(principal)) == 0o600
    assert mode(platform.data_dir) == mode(platform.data_dir / "keys") == 0o700
    assert mode(platform.data_dir / "keys" / "pepper") == 0o600
    assert not [path.name for path in (platform.data_dir / "keys").iterdir() if path.name.startswith(".")]


async def test_of_the_services_the_trainer_alone_may_generate(platform, keys_of):
    bootstrap_in_thread(platform)
    keys = keys_of(platform)
    found = {name: await keys.authenticate(secret) for name, secret in read_keys(platform).items()}
    assert {name for name, principal in found.items() if Permission.GENERATE in principal.rights} == {
        "admin",
        "trainer",
    }


async def test_running_it_again_changes_nothing(platform, keys_of):
    bootstrap_in_thread(platform)
    before = read_keys(platform)
    bootstrap_in_thread(platform)
    assert read_keys(platform) == before
    keys = keys_of(platform)
    assert len((await keys.list_keys(PageRequest())).rows) == len(PRINCIPALS)


async def test_several_at_once_agree(platform, keys_of):
    bootstrap_in_thread(platform, times=4)
    keys = keys_of(platform)
    assert len((await keys.list_keys(PageRequest())).rows) == len(PRINCIPALS)


async def test_a_key_whose_file_was_removed_is_made_anew(platform, keys_of):
    bootstrap_in_thread(platform)
    lost = read_keys(platform)["admin"]
    platform.key_path("admin").unlink()
    bootstrap_in_thread(platform)
    keys = keys_of(platform)
    assert (await keys.authenticate(read_keys(platform)["admin"])).role == "admin"
    assert (await keys.authenticate(lost)).role == "admin"  # until someone revokes it


async def test_a_revoked_key_is_not_brought_back(platform, keys_of):
    bootstrap_in_thread(platform)
    keys = keys_of(platform)
    secret = read_keys(platform)["gateway"]
    await keys.revoke((await keys.verify(secret)).key_id)
    bootstrap_in_thread(platform)
    with pytest.raises(Unauthenticated):
        await keys.authenticate(secret)


def test_a_secret_that_exists_is_kept(tmp_path):
    assert keep_secret(tmp_path / "a.key", "first") == "first"
    assert keep_secret(tmp_path / "a.key", "second") == "first"
