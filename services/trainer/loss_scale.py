"""fp16's dynamic loss scaling, which DeepSpeed does: gradients too small for fp16 are scaled up with the loss, and a
step whose gradients overflow then is skipped. Source: Micikevicius et al. 2018, Mixed Precision Training, section 3.2.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from services.trainer.failure import JobFailure

STATE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")  # of DeepSpeed's DynamicLossScaler


def state(engine: Any) -> dict[str, float] | None:
    """What a resumed run needs, for a checkpoint; None where the loss is not scaled."""
    scaler = engine.optimizer.loss_scaler if engine.fp16_enabled() else None
    return {key: getattr(scaler, key) for key in STATE} if scaler else None


def restore(engine: Any, saved: dict[str, float] | None) -> None:
    """saved: by `state`; None, of a run that did not scale, leaves the scale at its beginning."""
    if engine.fp16_enabled():
        for key, value in (saved or {}).items():
            setattr(engine.optimizer.loss_scaler, key, value)


def skipped(engine: Any) -> bool:
    """Whether the last step changed nothing, as gradients overflowed."""
    return bool(engine.fp16_enabled() and engine.optimizer.overflow)


def overflow(engine: Any) -> str:
    """Why a step was skipped, for people."""
    return f"its gradients overflowed fp16; the loss is scaled by {engine.optimizer.loss_scale:g} now"


@contextlib.contextmanager
def divergence(step: int) -> Iterator[None]:
    """DeepSpeed gives up where gradients overflow even unscaled: a JobFailure then."""
    try:
        yield
    except Exception as error:
        if "loss scale already at minimum" not in str(error):
            raise
        remedy = "lower learning_rate, use more warmup_steps, or bf16"
        found = f"step {step}: gradients overflow fp16 even unscaled"
        raise JobFailure("DIVERGED", f"{found}; {remedy}", "learning_rate") from error
