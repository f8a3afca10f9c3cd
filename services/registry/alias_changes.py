"""Changes of an alias: set, rolled back, deleted. Each is one generation, and all are kept.

A change is made under a lock on the alias's row, so that generations have no gap and of several movers with the same
`if_generation` one wins. The row outlives the alias: where a name is used again its generations go on, and a condition
of before cannot be met by what came after.
"""

import re
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from services.common.auth import current_project
from services.common.errors import Aborted, FailedPrecondition, InvalidArgument, NotFound
from services.registry import audit
from services.registry.database import insert_if_absent
from services.registry.evaluations.gate_check import check_gate
from services.registry.projects.scope import check_refers
from services.registry.tables import Alias, AliasChange, Deployment, ModelVersion
from services.registry.version_states import hold

SET, ROLLBACK, JOB, DELETE = "SET", "ROLLBACK", "JOB", "DELETE"
MAX_REASON = 1000
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True, kw_only=True, slots=True)
class NewChange:
    principal: str  # who
    reason: str = ""  # a line of free text
    if_generation: int | None = None  # the generation it may follow; 0: there must be no alias; None: any
    override_gate: bool = False  # move it even where its gate refuses; needs a reason


async def set_alias(
    session: AsyncSession, name: str, version: str, new: NewChange, now: datetime, kind: str = SET
) -> Alias:
    """Point alias `name` at `version` (a version's own name); where it points there already, nothing changes.

    Raises Aborted when it is not at `new.if_generation`, InvalidArgument, GateRefused, FailedPrecondition for the
    version of a project that the alias is not of.
    """
    owner = await session.scalar(select(ModelVersion.project).where(ModelVersion.name == version)) or ""
    values = {"version": None, "generation": 0, "update_time": now, "project": current_project() or owner}
    await insert_if_absent(session, Alias, name=name, **values)
    alias = await _lock(session, name)
    check_refers("alias", name, alias.project, owner)
    _check(alias, new)
    if alias.version != version:
        overridden = await check_gate(session, alias, version, override=new.override_gate)
        _record(session, alias, kind, version, new, now, overridden=overridden)
    return alias


async def roll_back(session: AsyncSession, name: str, generation: int | None, new: NewChange, now: datetime) -> Alias:
    """Point alias `name` at the version of an earlier generation; None: at the version before the current one.

    Its gate is not asked: what was live once is the way out when something is wrong now. Raises FailedPrecondition when
    there is no such version, Aborted when it is not at `new.if_generation`, NotFound, also for a version that was
    deleted since, InvalidArgument.
    """
    alias = await _lock(session, name)
    _check(alias, new)
    target = await _previous(session, alias) if generation is None else await _earlier(session, alias, generation)
    if target.version and alias.version != target.version:
        await hold(session, target.version)
        _record(session, alias, ROLLBACK, target.version, new, now, _origin(target))
    return alias


async def delete_alias(session: AsyncSession, name: str, new: NewChange, now: datetime) -> None:
    """Let `name` point nowhere. Raises FailedPrecondition while a deployment follows it; else as `roll_back`."""
    alias = await _lock(session, name)
    if alias.version is None:
        raise NotFound(f"alias {name!r} is deleted already; `anthesis aliases rollback {name}` brings it back")
    _check(alias, new)
    query = select(Deployment.name).where(Deployment.target == name).order_by(Deployment.name).limit(3)
    if deployments := list(await session.scalars(query)):
        raise FailedPrecondition(
            f"alias {name!r} is followed by deployment {', '.join(map(repr, deployments))}; "
            f"`anthesis undeploy {deployments[0]}` before deleting it"
        )
    _record(session, alias, DELETE, None, new, now)


async def _lock(session: AsyncSession, name: str) -> Alias:
    """The alias's row, also of a deleted one; nobody else's to change until the transaction ends. Raises NotFound."""
    alias = await session.get(Alias, name, with_for_update=True, populate_existing=True)
    if alias is None:
        raise no_alias(name)
    return alias


def no_alias(name: str) -> NotFound:
    return NotFound(f"no alias {name[:200]!r}; `anthesis aliases list` shows what there is")


def _check(alias: Alias, new: NewChange) -> None:
    """Whether the change may be made. Aborted is gRPC's code, and AIP-154's, for a test-and-set that fails."""
    if len(new.reason) > MAX_REASON:
        raise InvalidArgument(f"reason has {len(new.reason)} characters; use at most {MAX_REASON}")
    if control := _CONTROL.search(new.reason):
        raise InvalidArgument(f"reason has {control[0]!r} at character {control.start() + 1}; write one plain line")
    if new.override_gate and not new.reason.strip():
        raise InvalidArgument("override_gate without a reason; say why, for the alias's history")
    allowed = {None, alias.generation} if alias.version else {None, alias.generation, 0}
    if new.if_generation in allowed:
        return
    if alias.generation == 0:
        raise Aborted(f"alias {alias.name!r} does not exist; if_generation={new.if_generation} must be 0 to make it")
    raise Aborted(
        f"alias {alias.name!r} is at generation {alias.generation} ({alias.version or 'deleted'}), not at "
        f"if_generation={new.if_generation}; see `anthesis aliases history {alias.name}`, then name its generation"
    )


def _record(
    session: AsyncSession,
    alias: Alias,
    kind: str,
    version: str | None,
    new: NewChange,
    now: datetime,
    restored_generation: int | None = None,
    overridden: str = "",
) -> None:
    """Make the change of a locked alias. Nothing else moves one: a condition on all moves belongs before this.

    overridden: what the alias's gate had against it.
    """
    alias.version = version
    alias.generation += 1
    alias.update_time = max(now, alias.update_time)  # a clock that was put back does not put a change before another
    session.add(
        AliasChange(
            alias=alias.name,
            generation=alias.generation,
            kind=kind,
            version=version,
            time=alias.update_time,
            principal=new.principal,
            reason=new.reason,
            restored_generation=restored_generation,
            overridden=overridden,
        )
    )
    why = f"; gate overridden: {new.reason}" if overridden else ""
    audit.record(session, now, f"alias/{alias.name}", f"{version or 'deleted'}{why}")


async def _previous(session: AsyncSession, alias: Alias) -> AliasChange:
    """The change that an undo goes back to.

    A rollback stands where the change stands that it went back to. So a second one goes a step further, and what was
    undone is not come upon again.
    """
    change = await session.get_one(AliasChange, (alias.name, alias.generation))
    while True:
        query = (
            select(AliasChange)
            .where(AliasChange.alias == alias.name, AliasChange.generation < _origin(change))
            .where(AliasChange.version.is_not(None))
            .order_by(AliasChange.generation.desc())
            .limit(1)
        )
        earlier = await session.scalar(query)
        if earlier is None:
            raise FailedPrecondition(
                f"alias {alias.name!r} has no version before {alias.version}; name one of its generations "
                f"(`anthesis aliases history {alias.name}`), or set a version"
            )
        if earlier.version != alias.version:  # the same where the alias was deleted and made again
            return earlier
        change = earlier


async def _earlier(session: AsyncSession, alias: Alias, generation: int) -> AliasChange:
    if not 1 <= generation <= alias.generation:
        raise NotFound(f"alias {alias.name!r} has no generation {generation}; choose one of 1 to {alias.generation}")
    change = await session.get_one(AliasChange, (alias.name, generation))
    if change.version is None:
        raise FailedPrecondition(f"generation {generation} of alias {alias.name!r} deleted it; choose another")
    return change


def _origin(change: AliasChange) -> int:
    """The generation that set the change's version: its own, or the one that it went back to."""
    return change.restored_generation or change.generation
