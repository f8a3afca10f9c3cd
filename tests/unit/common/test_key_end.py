"""A stream ends with its key, whatever it is at, and closes what it was made of."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from services.common.auth import PLATFORM, Call, Principal, acting_for, current_call
from services.common.errors import Unauthenticated, Unavailable
from services.common.key_end import KeyEnd

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ADA = Principal("1", "ada", "user")


class Key:
    """Verified until it is told to be otherwise."""

    def __init__(self) -> None:
        self.answer: Exception | None = None
        self.asked = asyncio.Event()

    async def authenticate(self, secret: str) -> Principal:
        assert secret == "secret"
        self.asked.set()
        if self.answer:
            raise self.answer
        return ADA

    def revoke(self) -> None:
        self.answer = Unauthenticated("the API key was revoked")


class Source:
    """Yields one thing, and waits; says when it was closed."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()

    async def stream(self):
        try:
            yield "first"
            await asyncio.Event().wait()
        finally:
            self.closed.set()


@pytest.fixture
async def key():
    return Key()


@pytest.fixture
async def source():
    return Source()


@pytest.fixture(autouse=True)
async def in_time():
    async with asyncio.timeout(30):
        yield


def key_end(key, principal=ADA, clock=lambda: NOW, check_s=0.01):
    return KeyEnd(key.authenticate, "secret", principal, check_s=check_s, clock=clock)


async def test_a_stream_that_waits_ends_when_its_key_is_revoked(key, source):
    limited = key_end(key).limit(source.stream())
    assert await anext(limited) == "first"
    key.revoke()
    with pytest.raises(Unauthenticated, match="revoked"):
        await anext(limited)
    assert source.closed.is_set()
    assert asyncio.current_task().cancelling() == 0


async def test_who_reads_slowly_gets_no_more_after_its_key_was_revoked(key):
    closed = asyncio.Event()

    async def ready():
        try:
            while True:
                yield "more"
        finally:
            closed.set()

    limited = key_end(key).limit(ready())
    assert await anext(limited) == "more"
    key.revoke()
    key.asked.clear()
    await key.asked.wait()  # while the reader is at something else
    with pytest.raises(Unauthenticated):
        await anext(limited)
    assert closed.is_set()


async def test_a_stream_ends_at_its_keys_expiry_before_it_would_be_looked_at(key, source):
    began = asyncio.get_running_loop().time()

    def clock():
        return NOW + timedelta(seconds=asyncio.get_running_loop().time() - began)

    principal = Principal("1", "ada", "user", expire_time=NOW + timedelta(seconds=0.2))
    limited = key_end(key, principal, clock, check_s=3600).limit(source.stream())
    assert await anext(limited) == "first"
    with pytest.raises(Unauthenticated, match="expired at 2026-01-01"):
        await anext(limited)
    assert clock() >= principal.expire_time
    assert source.closed.is_set()


async def test_while_nobody_can_verify_the_key_the_stream_goes_on(key):
    more = asyncio.Event()

    async def two():
        yield 1
        await more.wait()
        yield 2

    limited = key_end(key).limit(two())
    assert await anext(limited) == 1
    key.answer = Unavailable("the registry is away")
    key.asked.clear()
    await key.asked.wait()
    more.set()
    assert [item async for item in limited] == [2]


async def test_a_stream_that_is_left_or_at_its_end_is_closed_and_its_key_looked_at_no_more(key, source):
    limited = key_end(key).limit(source.stream())
    await anext(limited)
    await limited.aclose()
    assert source.closed.is_set()

    async def one():
        yield 1

    assert [item async for item in key_end(key).limit(one())] == [1]
    key.asked.clear()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(key.asked.wait(), 0.1)


async def test_a_reader_that_is_cancelled_is_told_nothing_of_keys(key, source):
    limited = key_end(key).limit(source.stream())
    await anext(limited)
    reading = asyncio.create_task(anext(limited))
    await key.asked.wait()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert source.closed.is_set()


async def test_an_error_of_the_stream_passes(key):
    async def broken():
        yield 1
        raise ValueError("a bug")

    limited = key_end(key).limit(broken())
    assert await anext(limited) == 1
    with pytest.raises(ValueError, match="a bug"):
        await anext(limited)


async def test_a_key_is_looked_at_as_it_was_when_the_call_was_admitted(key, source):
    """By the platform: a service that calls for a project has a key that the project does not see."""
    callers = []

    async def authenticate(secret):
        callers.append(current_call())
        return await key.authenticate(secret)

    with acting_for("lab"):
        limited = KeyEnd(authenticate, "secret", ADA, check_s=0.01).limit(source.stream())
        await anext(limited)
        await key.asked.wait()
        await limited.aclose()
    assert callers[0] == Call(PLATFORM, "")


async def test_work_of_one_answer_ends_too(key):
    cancelled = asyncio.Event()

    async def work():
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    key.revoke()
    async with key_end(key) as end:
        with pytest.raises(Unauthenticated):
            await end.meanwhile(work())
    assert cancelled.is_set()
