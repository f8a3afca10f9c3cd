"""The energy that a job used, as its attempts report it: each all that it has used itself so far.

So a report that is heard twice counts once, and one that is lost is in the next.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from services.common.errors import InvalidArgument

SOURCES = ("package_joules", "dram_joules", "gpu_joules")
MAX_REASONS, MAX_REASON = 10, 300  # characters
Kept = dict[str, Any]
"""A row's: joules by source of earlier attempts, of the newest, whose token it has, and what Energy has besides."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Energy:
    joules: dict[str, float] = field(default_factory=dict)  # by source, as in SOURCES; one that is absent: unmeasured
    unmeasured: tuple[str, ...] = ()  # what was not measured, and why
    attempts: int = 0  # that have measured something

    @property
    def kwh(self) -> float:
        return sum(self.joules.values()) / 3.6e6


def check_energy(reported: Energy) -> Energy:
    """Raises InvalidArgument."""
    for source, joules in reported.joules.items():
        if not (math.isfinite(joules) and joules >= 0):
            raise InvalidArgument(f"energy.{source}={joules} is no amount of energy; send joules, 0 or more")
    if len(reported.unmeasured) > MAX_REASONS or any(len(reason) > MAX_REASON for reason in reported.unmeasured):
        raise InvalidArgument(f"energy.unmeasured has at most {MAX_REASONS} entries of {MAX_REASON} characters")
    return reported


def with_report(kept: Kept | None, token: int, reported: Energy) -> Kept:
    """What is kept once the attempt with fencing token `token` has reported."""
    before = kept or {"token": token, "earlier": {}, "newest": {}, "unmeasured": [], "attempts": 0}
    is_new = before["token"] != token
    earlier = _added(before["earlier"], before["newest"]) if is_new else before["earlier"]
    counted_before = bool(before["newest"]) and not is_new
    reasons = list(dict.fromkeys((*before["unmeasured"], *reported.unmeasured)))[:MAX_REASONS]
    return {
        "token": token,
        "earlier": earlier,
        "newest": reported.joules,
        "unmeasured": reasons,
        "attempts": before["attempts"] + (bool(reported.joules) and not counted_before),
    }


def energy_of(kept: Kept | None) -> Energy | None:
    """Of all attempts; None where nothing was reported."""
    if kept is None:
        return None
    return Energy(
        joules=_added(kept["earlier"], kept["newest"]),
        unmeasured=tuple(kept["unmeasured"]),
        attempts=kept["attempts"],
    )


def _added(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    return {name: one.get(name, 0.0) + other.get(name, 0.0) for name in SOURCES if name in one or name in other}
