"""Random histories of an alias on the real store, beside an undo stack; the clock goes back now and then."""

import asyncio
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import count

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from services.common.artifacts import ArtifactStore
from services.common.errors import FailedPrecondition, NotFound
from services.registry import alias_changes
from services.registry.alias_changes import NewChange
from services.registry.aliases import Aliases
from services.registry.database import Database
from services.registry.pages import PageRequest
from services.registry.versions import NewVersion, Versions
from tests.support.registry_data import DATABASES, ManualClock, fresh_database, store_checkpoint

ADA = NewChange(principal="ada")
STEPS = ["a@1", "a@2", "a@3", "delete", 60.0, -90.0, *["roll back"] * 4]  # a version is set; a number: seconds
HISTORIES = st.lists(st.sampled_from(STEPS), min_size=10, max_size=16)
SETTINGS = settings(
    max_examples=15,
    derandomize=True,
    phases=[Phase.generate],  # shrinking on a real store takes minutes
    deadline=None,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)


@dataclass
class UndoStack:
    """What an editor would do: a rollback takes off the newest version, or undoes a deletion."""

    versions: list[str] = field(default_factory=list)
    live: bool = False
    changes: list[str | None] = field(default_factory=list)  # where each generation points

    def do(self, step: str) -> bool:
        """Whether it can be done."""
        if step == "delete":
            return self.delete()
        return self.roll_back() if step == "roll back" else self.set(step)

    def set(self, version: str) -> bool:
        if self.live and self.versions[-1] == version:
            return True
        if self.versions[-1:] != [version]:
            self.versions.append(version)
        return self.point_to(version)

    def roll_back(self) -> bool:
        if len(self.versions) < (2 if self.live else 1):
            return False
        if self.live:
            self.versions.pop()
        return self.point_to(self.versions[-1])

    def delete(self) -> bool:
        return self.live and self.point_to(None)

    def point_to(self, version: str | None) -> bool:
        self.live = version is not None
        self.changes.append(version)
        return True


class World:
    """One database, shared by all histories: each is that of another alias."""

    def __init__(self, url, folder):
        self.runner = asyncio.Runner()
        self.clock = ManualClock()
        self.database = Database(url)
        self.names = (f"flower-{number}" for number in count())
        artifacts = ArtifactStore(str(folder / "artifacts"), folder / "cache")
        stored = store_checkpoint(artifacts)
        versions = Versions(self.database, artifacts)
        new = NewVersion(model="a", files=stored.files, tokenizer_digest=stored.tokenizer_digest, licence="mit")
        for _ in range(3):
            self.runner.run(versions.create(new))

    def close(self):
        self.runner.run(self.database.close())
        self.runner.close()

    def try_histories(self):
        @SETTINGS
        @given(HISTORIES)
        def follow(steps):
            self.runner.run(self.follow(next(self.names), steps))

        follow()

    async def follow(self, name, steps):
        stack = UndoStack()
        answers: dict[datetime, str | None] = {}  # about times before the newest change: they are final
        for step in steps:
            aliases = Aliases(self.database, self.clock)  # as after a restart
            if isinstance(step, float):
                self.clock.advance(step)
            else:
                assert await self.is_done(aliases, name, step) == stack.do(step)
            if stack.changes:
                await self.check_now(aliases, name, stack, answers)
        if stack.changes:
            await self.check_history(aliases, name, stack, answers)

    async def is_done(self, aliases, name, step) -> bool:
        try:
            if step == "roll back":
                await aliases.roll_back(name, None, ADA)
            elif step == "delete":
                await aliases.delete(name, ADA)
            else:
                await aliases.set(name, step, ADA)
        except (NotFound, FailedPrecondition):
            return False
        return True

    async def check_now(self, aliases, name, stack, answers):
        assert await self.ask(aliases, name, None) == (stack.versions[-1] if stack.live else None)
        newest = (await aliases.list_changes(name, PageRequest(size=1))).rows[0].time
        for time in (self.clock.now, newest - timedelta(seconds=1)):
            if time < newest and time not in answers:
                answers[time] = await self.ask(aliases, name, time)

    async def check_history(self, aliases, name, stack, answers):
        changes = (await aliases.list_changes(name, PageRequest())).rows[::-1]
        assert [change.generation for change in changes] == list(range(1, len(stack.changes) + 1))
        assert [change.version for change in changes] == stack.changes
        times = [change.time for change in changes]
        assert times == sorted(times)
        assert await self.ask(aliases, name, times[-1]) == stack.changes[-1]
        assert {time: await self.ask(aliases, name, time) for time in answers} == answers

    async def ask(self, aliases, name, time):
        try:
            return (await aliases.at(name, time))[1].name
        except NotFound:
            return None


@pytest.fixture
def world(kind, tmp_path):
    world = World(fresh_database(kind, tmp_path), tmp_path)
    yield world
    world.close()


@pytest.mark.parametrize("kind", DATABASES)
def test_an_alias_is_undone_as_an_editor_undoes_and_its_past_stays_what_it_was(world):
    world.try_histories()


@pytest.mark.parametrize("kind", ["sqlite"])
@pytest.mark.parametrize(
    ("name", "mistake"),
    [
        ("_origin", lambda change: change.generation),  # two rollbacks go to and fro
        ("max", lambda now, before: now),  # a clock that was put back dates a change before another
    ],
)
def test_histories_notice_a_planted_mistake(world, monkeypatch, name, mistake):
    monkeypatch.setattr(alias_changes, name, mistake, raising=False)
    with pytest.raises(AssertionError):
        world.try_histories()
