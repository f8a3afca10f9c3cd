"""A job's progress as the registry keeps it: the fields of TrainingProgress, `time` in ISO 8601."""

from typing import Any

Progress = dict[str, Any]


def newest(report: Progress, before: Progress | None) -> Progress:
    """A job's progress once `report` came: with the validation of an earlier one where it has none of its own."""
    if report.get("validation") or not before:
        return report
    kept = {name: before[name] for name in ("validation", "validation_step") if name in before}
    return report | kept
