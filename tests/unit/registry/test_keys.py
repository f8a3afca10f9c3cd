import asyncio
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from services.common.access import ROLES, Permission, rights
from services.common.auth import Principal
from services.common.errors import FailedPrecondition, InvalidArgument, NotFound, PermissionDenied, Unauthenticated
from services.registry.keys import Keys, check_no_more_than
from services.registry.pages import PageRequest
from services.registry.tables import ApiKey
from tests.support.registry_data import ManualClock


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
    with pytest.raises(InvalidArgument, match="role '' is not known; choose viewer, user, trainer, admin, service"):
        await keys.create("ada", "")
    with pytest.raises(NotFound, match="no API key 'key-0'"):
        await keys.revoke("key-0")


async def test_a_key_ends_at_its_expiry_also_where_it_is_remembered(keys, clock):
    _, secret = await keys.create("ada", "user", expire_time=clock() + timedelta(hours=1))
    clock.advance(3599)
    assert (await keys.authenticate(secret)).expire_time
    clock.advance(1)  # within the time for which the answer is remembered, which real clocks count
    with pytest.raises(Unauthenticated, match=r"expired at 2026-01-01T01:00:00\+00:00; ask an admin for a new one"):
        await keys.authenticate(secret)


async def test_a_scoped_key_has_of_its_role_what_its_scopes_name(keys):
    _, secret = await keys.create("ada", "trainer", scopes=["read", "train"], label="uploads of the lab")
    assert (await keys.authenticate(secret)).rights == {Permission.READ, Permission.TRAIN}
    [listed] = (await keys.list_keys(PageRequest())).rows
    assert (listed.label, listed.scopes) == ("uploads of the lab", ["read", "train"])


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"scopes": ["train"]}, "scope 'train' is none of role 'user'; choose from read, generate"),
        ({"scopes": ["dance"]}, "scope 'dance' is none of role 'user'"),
        ({"label": "x" * 201}, "use at most 200 printable characters"),
        ({"label": "a\x1b[2Jb"}, "use at most 200 printable characters"),
        ({"expire_time": ManualClock().now}, "is over; choose one in the future"),
    ],
)
async def test_a_key_of_nonsense_is_refused_and_makes_no_row(keys, asked, why):
    with pytest.raises(InvalidArgument, match=why):
        await keys.create("ada", "user", **asked)
    assert not (await keys.list_keys(PageRequest())).rows


scopes_of_all = st.frozensets(st.sampled_from([permission.value for permission in Permission]))
expiries = st.none() | st.integers(1, 9).map(lambda hours: ManualClock().now + timedelta(hours=hours))


@given(st.sampled_from([*ROLES]), scopes_of_all, expiries, st.sampled_from([*ROLES]), scopes_of_all, expiries)
def test_no_key_makes_one_that_can_do_more_or_lives_longer(role, scopes, ends, new_role, new_scopes, new_ends):
    maker, wanted = Principal("1", "ada", role, scopes, ends), rights(new_role, new_scopes)
    allowed = wanted <= maker.rights and (ends is None or (new_ends is not None and new_ends <= ends))
    try:
        check_no_more_than(maker, wanted, new_ends)
    except PermissionDenied:
        assert not allowed
    else:
        assert allowed


async def test_the_limits_of_the_maker_hold_in_the_database_too(keys, clock):
    ends = clock() + timedelta(hours=1)
    maker = Principal("1", "ada", "admin", frozenset({"admin", "read"}), ends)
    with pytest.raises(PermissionDenied, match="the new key could generate, which yours cannot: yours can admin, read"):
        await keys.create("bob", "user", expire_time=ends, by=maker)
    with pytest.raises(PermissionDenied, match=r"would outlive yours, which expires at 2026-01-01T01:00:00"):
        await keys.create("bob", "viewer", by=maker)
    await keys.create("bob", "viewer", expire_time=ends, by=maker)
    assert [key.role for key in (await keys.list_keys(PageRequest())).rows] == ["viewer"]


async def last_used(database, key):
    await database.settle()
    async with database.read() as session:
        return (await session.get_one(ApiKey, key.id)).last_used_time


async def test_the_last_use_is_noted_once_a_minute(keys, database, clock):
    key, secret = await keys.create("ada", "user")
    start = clock()
    assert await last_used(database, key) is None
    await keys.authenticate(secret)
    assert await last_used(database, key) == start
    clock.advance(59)
    await Keys(database, b"pepper", clock).authenticate(secret)  # another process, which remembers nothing
    assert await last_used(database, key) == start
    clock.advance(1)
    await Keys(database, b"pepper", clock).authenticate(secret)
    assert await last_used(database, key) == start + timedelta(minutes=1)


async def test_a_caller_does_not_wait_until_the_use_is_noted(keys, database, clock):
    key, secret = await keys.create("ada", "user")
    async with database.write() as session:  # nobody else can write this row
        await session.get(ApiKey, key.id, with_for_update=True)
        assert (await asyncio.wait_for(keys.authenticate(secret), 10)).name == "ada"
    assert await last_used(database, key) == clock()


async def test_verifying_a_key_is_no_use_of_it(keys, database):
    key, secret = await keys.create("ada", "user")
    assert (await keys.verify(secret)).name == "ada"
    assert await last_used(database, key) is None
