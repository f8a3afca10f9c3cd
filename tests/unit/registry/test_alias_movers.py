"""Many who move one alias at once, each on connections of its own as a process of its own has them."""

import asyncio

from services.common.errors import Aborted
from services.registry import alias_changes
from services.registry.alias_changes import NewChange
from services.registry.aliases import Aliases
from services.registry.database import Database
from services.registry.pages import PageRequest

NUM_MOVERS, NUM_ROUNDS = 4, 6


async def play(registry):
    """In each round all movers want the same generation. Returns how many got it, of each round."""
    for _ in range(2 * NUM_MOVERS):
        await registry.add_version()
    databases = [Database(registry.database.url) for _ in range(NUM_MOVERS)]
    try:
        return [await play_round([Aliases(database) for database in databases], seen) for seen in range(NUM_ROUNDS)]
    finally:
        for database in databases:
            await database.close()


async def play_round(movers, seen):
    async def move(number, aliases):
        version = 1 + number + NUM_MOVERS * (seen % 2)  # each another, and none what the alias points to
        try:
            await aliases.set("flower", f"seedling@{version}", NewChange(principal=str(number), if_generation=seen))
        except Aborted:
            return False
        return True

    return sum(await asyncio.gather(*(move(number, aliases) for number, aliases in enumerate(movers))))


async def test_of_all_movers_exactly_one_wins_each_round_and_no_generation_is_missing(registry):
    assert await play(registry) == [1] * NUM_ROUNDS
    changes = (await registry.aliases.list_changes("flower", PageRequest())).rows
    assert [change.generation for change in changes] == list(range(NUM_ROUNDS, 0, -1))


async def test_the_game_notices_a_registry_that_ignores_the_condition(registry, monkeypatch):
    monkeypatch.setattr(alias_changes, "_check", lambda alias, new: None)
    assert await play(registry) != [1] * NUM_ROUNDS


async def test_movers_without_a_condition_all_move_it_and_each_has_a_generation(registry):
    for _ in range(NUM_MOVERS):
        await registry.add_version()
    databases = [Database(registry.database.url) for _ in range(NUM_MOVERS)]

    async def move(number):
        aliases = Aliases(databases[number])
        return (await aliases.set("flower", f"seedling@{number + 1}", NewChange(principal=str(number)))).generation

    assert sorted(await asyncio.gather(*map(move, range(NUM_MOVERS)))) == [1, 2, 3, 4]
    for database in databases:
        await database.close()
    changes = (await registry.aliases.list_changes("flower", PageRequest())).rows
    assert {change.version for change in changes} == {f"seedling@{number + 1}" for number in range(NUM_MOVERS)}
