"""Gates of aliases: set, shown, taken away. What they refuse: gate_check.py."""

from dataclasses import dataclass, field

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from services.common.errors import InvalidArgument, NotFound
from services.registry import audit
from services.registry.alias_changes import no_alias
from services.registry.database import Clock, Database, utc_now
from services.registry.evaluations.suites import text_suite
from services.registry.job_specs import Range
from services.registry.pages import Page, PageRequest, read_page
from services.registry.projects.scope import check_refers
from services.registry.projects.session import check_usable
from services.registry.tables import Alias, AliasGate, EvaluationSuite

REGRESSIONS = Range("[0, 1000]")  # percent


@dataclass(frozen=True, kw_only=True, slots=True)
class NewGate:
    alias: str
    suite: str  # anything `resolve_suite` takes
    max_regression_percent: float
    languages: list[str] = field(default_factory=list)  # empty: all that the version before was measured in
    created_by: str


class Gates:
    def __init__(self, database: Database, clock: Clock = utc_now) -> None:
        self._database = database
        self._clock = clock

    async def set(self, new: NewGate) -> AliasGate:
        """Set the alias's gate, in place of one that is there. Raises InvalidArgument, NotFound."""
        if new.max_regression_percent not in REGRESSIONS:
            what = f"max_regression_percent={new.max_regression_percent:g} is out of range"
            raise InvalidArgument(f"{what}; choose a value in {REGRESSIONS.text}")
        async with self._database.write() as session:
            alias = await _lock_alias(session, new.alias)
            suite = await text_suite(session, new.suite)
            check_refers("gate of alias", new.alias, alias.project, suite.project)
            _check_languages(suite, new.languages)
            gate = await session.get(AliasGate, new.alias) or AliasGate(alias=new.alias)
            gate.suite = suite.name
            gate.languages = new.languages
            gate.max_regression_percent = new.max_regression_percent
            gate.created_by, gate.create_time = new.created_by, self._clock()
            session.add(gate)
            allowed = f"{gate.max_regression_percent:g} % in {', '.join(gate.languages) or 'all languages'}"
            audit.record(session, self._clock(), f"gate/{gate.alias}", f"{gate.suite}: {allowed}")
            return gate

    async def get(self, alias: str) -> AliasGate:
        """Raises NotFound."""
        async with self._database.read() as session:
            return await _gate(session, alias)

    async def list_gates(self, page: PageRequest) -> Page[AliasGate]:
        async with self._database.read() as session:
            return await read_page(session, select(AliasGate), AliasGate.alias, page, scope="gates")

    async def delete(self, alias: str) -> None:
        """Raises NotFound."""
        async with self._database.write() as session:
            await session.get(Alias, alias, with_for_update=True)  # whoever moves it just now has asked the gate
            gate = await _gate(session, alias)
            await check_usable(session, (Alias, alias))
            await session.delete(gate)
            audit.record(session, self._clock(), f"gate/{alias}", "deleted")


async def _lock_alias(session: AsyncSession, name: str) -> Alias:
    alias = await session.get(Alias, name, with_for_update=True)
    if alias is None or alias.version is None:
        raise no_alias(name)
    await check_usable(session, (Alias, name))
    return alias


async def _gate(session: AsyncSession, alias: str) -> AliasGate:
    gate = await session.get(AliasGate, alias)
    if gate is None:
        raise NotFound(f"alias {alias[:200]!r} has no gate; `anthesis gates list` shows those that there are")
    return gate


def _check_languages(suite: EvaluationSuite, languages: list[str]) -> None:
    known = sorted({language for dataset in suite.datasets for language in dataset["languages"]})
    if len(set(languages)) != len(languages):
        raise InvalidArgument(f"languages {', '.join(languages)[:200]} name one twice; name each once")
    if unknown := [language for language in languages if language not in known]:
        what = f"language {unknown[0][:100]!r} is not one that suite {suite.name} measures"
        raise InvalidArgument(f"{what}; choose from {', '.join(known)[:1000] or 'none: its rows name no language'}")
