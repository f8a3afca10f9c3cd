"""The condition on an alias's moves: against the version it points to, no language loses more than the gate allows.

It knows tables alone, as alias_changes.py asks it within the transaction that moves the alias.
"""

from collections.abc import Mapping

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from services.common.errors import FailedPrecondition
from services.registry.tables import Alias, AliasChange, AliasGate, Evaluation, EvaluationResult

MAX_NAMED = 20  # languages that a refusal spells out


class GateRefused(FailedPrecondition):
    """An alias stays where it is. What a job has made is there all the same."""


async def check_gate(session: AsyncSession, alias: Alias, version: str, *, override: bool) -> str:
    """What the gate of a locked alias has against `version`, where that is overridden; "": nothing.

    Raises GateRefused, with languages and figures, or with how to measure.
    """
    gate = await session.get(AliasGate, alias.name)
    before = await _version_before(session, alias)
    if gate is None or before in (None, version):
        return ""
    assert before is not None
    reason = await _objection(session, gate, version, before)
    if reason and not override:
        raise GateRefused(
            f"alias {alias.name!r} stays at {before}: {reason}. To move it all the same: `anthesis aliases set "
            f"{alias.name} {version} --override-gate --reason WHY`"
        )
    return reason


async def _version_before(session: AsyncSession, alias: Alias) -> str | None:
    """What it points to; of a deleted one what it pointed to: deleting is no way around a gate. None: it is new."""
    if alias.version:
        return alias.version
    query = (
        select(AliasChange.version)
        .where(AliasChange.alias == alias.name, AliasChange.version.is_not(None))
        .order_by(AliasChange.generation.desc())
        .limit(1)
    )
    return await session.scalar(query)


async def _objection(session: AsyncSession, gate: AliasGate, version: str, before: str) -> str:
    old, new = await _bits_per_byte(session, before, gate.suite), await _bits_per_byte(session, version, gate.suite)
    if missing := [name for name, found in ((before, old), (version, new)) if not found]:
        runs = " and ".join(f"`anthesis evaluations run {name} --suite {gate.suite}`" for name in missing)
        return f"its gate compares by {gate.suite}, which has not measured {' and '.join(missing)}; first {runs}"
    languages = gate.languages or sorted(old)
    if unmeasured := [language for language in languages if language not in old or language not in new]:
        return f"its gate asks for {_named(unmeasured)}, which {gate.suite} did not measure; set the gate anew"
    most = 1 + gate.max_regression_percent / 100
    worse = [language for language in languages if new[language] > old[language] * most]
    if not worse:
        return ""
    figures = ", ".join(_figures(language, old[language], new[language]) for language in worse[:MAX_NAMED])
    more = f" and {len(worse) - MAX_NAMED} more" if len(worse) > MAX_NAMED else ""
    allowed = f"its gate allows {gate.max_regression_percent:g} %"
    return f"by {gate.suite} {version} is worse in {figures}{more}, and {allowed}; train on more of these languages"


async def _bits_per_byte(session: AsyncSession, version: str, suite: str) -> Mapping[str, float]:
    """By language, of the newest evaluation; empty: there is none."""
    newest = (
        select(Evaluation.id)
        .where(Evaluation.version == version, Evaluation.suite == suite)
        .order_by(Evaluation.id.desc())
        .limit(1)
        .scalar_subquery()
    )
    query = select(EvaluationResult.language, EvaluationResult.value).where(EvaluationResult.evaluation == newest)
    return {row.language: row.value for row in await session.execute(query)}


def _figures(language: str, old: float, new: float) -> str:
    change = f", +{100 * (new / old - 1):.2f} %" if old else ""
    return f"{_named([language])} ({old:.4f} -> {new:.4f} bits per byte{change})"


def _named(languages: list[str]) -> str:
    return ", ".join(language or "texts without a language" for language in languages[:MAX_NAMED])
