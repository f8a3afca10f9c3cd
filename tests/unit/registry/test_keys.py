import pytest
from sqlalchemy import select

from services.common.errors import FailedPrecondition, InvalidArgument, NotFound, Unauthenticated
from services.registry.keys import Keys
from services.registry.pages import PageRequest
from services.registry.tables import ApiKey


@pytest.fixture
def keys(database, clock):
    return Keys(database, b"pepper", clock)


async def test_a_key_authenticates_its_principal(keys):
    key, secret = await keys.create("ada", "user")
    assert secret.startswith("an_")
    principal = await keys.authenticate(secret)
    assert (principal.key_id, principal.name, principal.role) == (key.id, "ada", "user")


async def test_nobodys_key_is_refused_without_being_repeated(keys):
    with pytest.raises(Unauthenticated, match="the API key is not known") as refused:
        await keys.authenticate("an_wrong")
    assert "an_wrong" not in str(refused.value)


async def test_a_revoked_key_stops_working_at_once_and_is_revoked_once(keys):
    key, secret = await keys.create("ada", "user")
    await keys.authenticate(secret)
    await keys.revoke(key.id)
    with pytest.raises(Unauthenticated, match="was revoked"):
        await keys.authenticate(secret)
    with pytest.raises(FailedPrecondition, match="was revoked at 2026-01-01"):
        await keys.revoke(key.id)


async def test_the_database_alone_does_not_give_a_key_away(keys, database):
    _, secret = await keys.create("ada", "user")
    async with database.read() as session:
        [row] = await session.scalars(select(ApiKey))
    assert secret.removeprefix("an_") not in repr(vars(row))
    with pytest.raises(Unauthenticated):  # not even with the stored digest, or under another pepper
        await keys.authenticate(row.digest)
    with pytest.raises(Unauthenticated):
        await Keys(database, b"other pepper").authenticate(secret)


async def test_keys_are_listed_newest_first(keys, clock):
    for name in ("ada", "grace"):
        await keys.create(name, "user")
        clock.advance(1)
    assert [key.principal for key in (await keys.list_keys(PageRequest())).rows] == ["grace", "ada"]


async def test_an_unknown_role_or_key_is_refused(keys):
    with pytest.raises(InvalidArgument, match="role '' is not known; choose user, admin, service"):
        await keys.create("ada", "")
    with pytest.raises(NotFound, match="no API key 'key-0'"):
        await keys.revoke("key-0")
