"""Losses that leap, and what is no number.

A spike is a loss at least `deviations` standard deviations above the mean of the last WINDOW steps. Sources: OLMo 2
(arXiv 2501.00656) counts values that are seven away from a rolling average; Karpathy's llm.c (outlier_detector.h) has
the window of 64 and says nothing before it is full.
"""

import json
import math
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean, pstdev

WINDOW = 64  # steps


class SpikeDetector:
    """Told every step's loss, in order."""

    def __init__(self, deviations: float, recent: Iterable[float] = ()) -> None:
        """recent: losses of the steps before the first."""
        self._deviations = deviations
        self._recent = deque(recent, WINDOW)

    def spike(self, loss: float) -> str:
        """How far the loss leaps; "" where it does not."""
        before = list(self._recent)
        self._recent.append(loss)
        if len(before) < WINDOW:
            return ""
        mean, deviation = fmean(before), pstdev(before)
        if loss - mean < self._deviations * deviation or loss <= mean:
            return ""
        away = (loss - mean) / deviation if deviation else math.inf
        return f"loss {loss:.4g} is {away:.1f} standard deviations above {mean:.4g}, the mean of {WINDOW} steps"


def not_finite(loss: float, grad_norm: float) -> str:
    """What is no number; "" where both are. A norm of -1 is DeepSpeed's of gradients that are none."""
    if math.isfinite(loss) and 0 <= grad_norm < math.inf:
        return ""
    return f"loss {loss}, gradient norm {grad_norm}"


def recent_losses(progress: Path, last_step: int) -> list[float]:
    """Of the steps up to `last_step`, as rank 0 wrote them (progress.py): of one done twice, what it gave last."""
    losses: dict[int, float] = {}
    for line in progress.read_bytes().splitlines() if progress.exists() else []:
        if b'"progress"' not in line:
            continue
        try:
            step = json.loads(line)["progress"]
        except ValueError:  # cut off by a kill
            continue
        losses[step["step"]] = step["loss"]
    return [losses[step] for step in sorted(losses) if step <= last_step][-WINDOW:]
