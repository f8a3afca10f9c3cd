"""What each question scored, from what the harness logs: pairs of a score and its weight, whose ratio of sums is what
the version gets. So two versions are compared question by question (services/registry/evaluations/documents.py).
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from lm_eval.api.metrics import bits_per_byte, mean
from lm_eval.api.task import Task

from services.trainer.failure import JobFailure

Pairs = list[tuple[float, float]]


def scores_of(
    name: str, task: Task, samples: Sequence[Mapping[str, Any]], metrics: Collection[str]
) -> dict[str, Pairs]:
    """Metric -> what each question scored, of those of `metrics` that the task has and that are means, or bits per
    byte. A task with several filters has "<filter>/<metric>". Raises JobFailure where it has none of them.
    """
    filters = {sample["filter"] for sample in samples}
    found: dict[str, Pairs] = {}
    for sample in samples:
        for metric in sample["metrics"]:
            if metric in metrics and (pair := _pair(task, metric, sample[metric])):
                key = f"{sample['filter']}/{metric}" if len(filters) > 1 else metric
                found.setdefault(key, []).append(pair)
    if not found:
        known = sorted({metric for sample in samples for metric in sample["metrics"]})
        what = f"task {name!r} measures {', '.join(known)}, of which the suite keeps {', '.join(metrics)}"
        raise JobFailure("BAD_TASK", f"{what}; name one that is a mean over questions", "suite")
    return found


def _pair(task: Task, metric: str, value: Any) -> tuple[float, float] | None:
    """None for what is no mean over questions, such as F1 of them all."""
    aggregation = task.aggregation().get(metric, mean)  # as the harness itself has it
    if aggregation is bits_per_byte:
        log_likelihood, num_bytes = value
        return -log_likelihood / math.log(2), float(num_bytes)
    try:
        return (float(value), 1.0) if aggregation is mean else None
    except (TypeError, ValueError):
        return None
