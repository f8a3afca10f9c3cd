"""How other services verify keys: by the registry, remembering its answer, but never longer than the key lives."""

from collections.abc import AsyncIterator
from datetime import UTC, timedelta

import pytest
from anthesis.v1.registry_pb2 import ListApiKeysRequest
from anthesis.v1.registry_pb2_grpc import RegistryServiceStub

from services.common.auth import RegistryAuthenticator
from services.common.errors import Unauthenticated
from services.registry.config import read_pepper
from services.registry.database import utc_now
from services.registry.keys import Keys
from tests.support.registry_server import RunningRegistry, running_registry


class TurnedClock:
    """The real time, and as much later as a test says."""

    def __init__(self) -> None:
        self.later = timedelta()

    def __call__(self):
        return utc_now() + self.later


@pytest.fixture
async def registry() -> AsyncIterator[RunningRegistry]:
    async with running_registry() as running:
        yield running


@pytest.fixture
async def clock() -> TurnedClock:
    return TurnedClock()


@pytest.fixture
async def authenticate(registry: RunningRegistry, clock: TurnedClock) -> AsyncIterator[RegistryAuthenticator]:
    made = RegistryAuthenticator(registry.address, registry.keys["gateway"], clock)
    yield made
    await made.close()


def keys_of(registry: RunningRegistry) -> Keys:
    return Keys(registry.database, read_pepper(registry.data_dir, {}))


async def test_role_scopes_and_expiry_come_from_the_registry(registry, authenticate) -> None:
    ends = utc_now() + timedelta(hours=1)
    key, secret = await keys_of(registry).create("ada", "trainer", scopes=["read"], expire_time=ends)
    principal = await authenticate(secret)
    assert (principal.key_id, principal.name, principal.role) == (key.id, "ada", "trainer")
    assert (principal.rights, principal.expire_time) == ({"read"}, ends)


async def test_the_list_shows_when_a_key_was_used(registry, authenticate) -> None:
    key, secret = await keys_of(registry).create("ada", "user")
    await authenticate(secret)
    await registry.database.settle()
    listed = await RegistryServiceStub(registry.channel()).ListApiKeys(ListApiKeysRequest())
    [used] = [found.last_used_time.ToDatetime(UTC) for found in listed.keys if found.id == key.id]
    assert utc_now() - timedelta(minutes=5) < used <= utc_now()


async def test_an_answer_is_forgotten_when_its_key_expires(registry, authenticate, clock) -> None:
    _, secret = await keys_of(registry).create("ada", "user", expire_time=utc_now() + timedelta(seconds=30))
    assert (await authenticate(secret)).name == "ada"
    clock.later = timedelta(seconds=31)  # less than an answer is remembered for, and the registry's clock is behind
    with pytest.raises(Unauthenticated, match=r"the API key expired at .*; ask an admin for a new one"):
        await authenticate(secret)


async def test_a_registry_that_is_away_keeps_a_key_alive_but_not_past_its_expiry(
    registry, authenticate, clock, monkeypatch
) -> None:
    monkeypatch.setattr("services.common.auth.FRESH_S", 0.0)  # every call asks
    _, forever = await keys_of(registry).create("ada", "user")
    _, secret = await keys_of(registry).create("bob", "user", expire_time=utc_now() + timedelta(minutes=5))
    assert [(await authenticate(key)).name for key in (forever, secret)] == ["ada", "bob"]
    await registry.server.stop(0)
    assert [(await authenticate(key)).name for key in (forever, secret)] == ["ada", "bob"]
    clock.later = timedelta(minutes=6)
    assert (await authenticate(forever)).name == "ada"
    with pytest.raises(Unauthenticated, match="expired"):
        await authenticate(secret)
