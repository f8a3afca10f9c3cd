"""Answers are remembered for a while, errors never, and one call serves all who wait."""

import asyncio

import pytest

from services.gateway.memo import Memo


class Source:
    """Counts its calls; answers when told to."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.open = asyncio.Event()
        self.error: Exception | None = None

    async def load(self, key: str) -> str:
        self.calls.append(key)
        await self.open.wait()
        if self.error:
            raise self.error
        return f"{key}{len(self.calls)}"


async def test_who_asks_meanwhile_shares_one_call() -> None:
    source = Source()
    memo = Memo(source.load, max_size=2)
    asking = [asyncio.create_task(memo.get("a")) for _ in range(5)]
    await asyncio.sleep(0)
    source.open.set()
    assert await asyncio.gather(*asking) == ["a1"] * 5
    assert source.calls == ["a"]


async def test_one_who_gives_up_leaves_the_call_to_the_others() -> None:
    source = Source()
    memo = Memo(source.load, max_size=2)
    first, second = asyncio.create_task(memo.get("a")), asyncio.create_task(memo.get("a"))
    await asyncio.sleep(0)
    first.cancel()
    source.open.set()
    assert await second == "a1"
    assert first.cancelled()


async def test_an_error_reaches_who_asked_and_is_not_remembered() -> None:
    source = Source()
    source.open.set()
    source.error = ValueError("down")
    memo = Memo(source.load, max_size=2)
    with pytest.raises(ValueError, match="down"):
        await memo.get("a")
    source.error = None
    assert await memo.get("a") == "a2"


async def test_an_answer_is_asked_for_again_when_it_is_old() -> None:
    source, now = Source(), [0.0]
    source.open.set()
    memo = Memo(source.load, max_size=2, ttl_s=1.0, clock=lambda: now[0])
    assert await memo.get("a") == "a1"
    now[0] = 0.9
    assert await memo.get("a") == "a1"
    now[0] = 1.0
    assert await memo.get("a") == "a2"


async def test_the_least_recently_used_is_forgotten_first() -> None:
    source = Source()
    source.open.set()
    memo = Memo(source.load, max_size=2)
    for key in ("a", "b", "a", "c", "a", "b"):
        await memo.get(key)
    assert source.calls == ["a", "b", "c", "b"]
