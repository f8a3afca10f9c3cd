"""Between steps: go on, stop with a checkpoint, or go back to an earlier one. Rank 0 decides, for all ranks.

Going back follows PaLM (Chowdhery et al. 2022, section 5.1): from a checkpoint about 100 steps before a spike, past the
batches that were seen before and during it; about 20 times in a whole run.
"""

import shutil
from enum import IntEnum
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from services.trainer.config import RunSpec
from services.trainer.early_end import EarlyEnd
from services.trainer.failure import JobFailure
from services.trainer.files import sync_folder
from services.trainer.folder import JobFolder
from services.trainer.progress import Progress, ProgressWriter
from services.trainer.retention import finished, step_of
from services.trainer.skips import Skips
from services.trainer.spikes import SpikeDetector, not_finite, recent_losses
from services.trainer.windows import TrainingWindows

MAX_ROLLBACKS = 20
STEPS_BEFORE = 100  # a checkpoint has to be before what went wrong; checkpoint_every_steps where that is less


class Verdict(IntEnum):
    GO_ON = 0
    STOP = 1
    GO_BACK = 2


class Steering:
    """Of one rank; `verdict` is collective, the rest rank 0's."""

    def __init__(
        self, spec: RunSpec, folder: JobFolder, windows: TrainingWindows, progress: ProgressWriter | None, first: int
    ) -> None:
        """first: steps done when the attempt begins. progress: rank 0's."""
        self._spec = spec
        self._config = spec.config
        self._folder = folder
        self._windows = windows
        self._progress = progress
        self._skips = Skips.load(folder.skips)
        recent = recent_losses(folder.progress, first) if progress else []
        self._detector = SpikeDetector(spec.config.spike_deviations, recent)
        self._reason = ""

    def verdict(self, report: Progress, device: torch.device, *, is_skipped: bool = False) -> Verdict:
        """What follows the step. is_skipped: it changed nothing as fp16 overflowed, which is no divergence.

        Raises JobFailure (DIVERGED) on rank 0.
        """
        decision = self._decide(self._progress, report, is_skipped) if self._progress else 0
        said = torch.tensor([decision], device=device)
        dist.broadcast(said, src=0)
        return Verdict(int(said))

    def _decide(self, progress: ProgressWriter, report: Progress, is_skipped: bool) -> Verdict:
        broken = "" if is_skipped else not_finite(report.loss, report.grad_norm)
        wrong = broken or ("" if is_skipped else self._detector.spike(report.loss))
        if wrong:
            self._reason = f"step {report.step}: {wrong}"
            progress.message(f"{self._reason}; {self._samples(report.step)}")
        asked = self._config.rollback_on == "spike" or (self._config.rollback_on == "nan" and broken)
        if wrong and asked and len(self._skips.skips) < MAX_ROLLBACKS:
            return Verdict.GO_BACK
        if broken or (wrong and asked):
            raise self._diverged()
        self._reason = self._stop_reason()
        return Verdict.STOP if self._reason else Verdict.GO_ON

    def _samples(self, step: int) -> str:
        """What the step's batch was."""
        consumed, after = (self._config.samples_before(done) for done in (step - 1, step))
        first = self._skips.at(consumed)
        where = self._windows.where(first, after - consumed)
        return f"its batch was samples {first} to {first + after - consumed - 1}: {where}"

    def _diverged(self) -> JobFailure:
        remedy = "lower learning_rate, or use more warmup_steps"
        if self._config.rollback_on == "none":
            remedy += "; rollback_on=nan goes back to a checkpoint and past these samples"
        else:
            remedy = f"gone back {len(self._skips.skips)} times already; {remedy}"
        return JobFailure("DIVERGED", f"{self._reason}; {remedy}", "learning_rate")

    def _stop_reason(self) -> str:
        """ "" where nobody wants the run to stop."""
        if self._folder.stop.exists():
            return f"{self._folder.stop} is there; remove it to go on"
        pause = self._folder.pause(self._spec.fencing_token)
        return pause.read_text() or "the worker was told to stop" if pause.exists() else ""

    def stop(self, step: int, failed: str) -> None:
        """Leave word that the ranks have stopped. failed: why there is no checkpoint of this step."""
        done = f"no checkpoint of step {step} ({failed})" if failed else f"checkpoint of step {step}"
        self._leave(EarlyEnd(again=False, reason=f"{self._reason}: {done}"))

    def go_back(self, step: int) -> None:
        """Have the next ranks go on from an earlier checkpoint, past what was seen from there to `step`.

        Newer checkpoints are removed first: should this process die in between, the same steps go wrong again.
        """
        config = self._config
        newest = step - min(STEPS_BEFORE, config.checkpoint_every_steps)
        back_to = _remove_newer(self._folder.checkpoints, newest)
        then, now = config.samples_before(back_to), config.samples_before(step)
        self._skips = self._skips.past(then, now, step=step, back_to=back_to, reason=self._reason)
        self._skips.save(self._folder.skips)
        skip = self._skips.skips[-1]
        where = f"back to the checkpoint of step {back_to}" if back_to else "back to the beginning"
        count = f"{len(self._skips.skips)} of at most {MAX_ROLLBACKS} times"
        reason = f"{self._reason}; {where}, past samples {skip.first} to {skip.end - 1} ({count})"
        self._leave(EarlyEnd(again=True, reason=reason))

    def _leave(self, end: EarlyEnd) -> None:
        end.save(self._folder.early_end(self._spec.fencing_token))


def _remove_newer(folder: Path, step: int) -> int:
    """Remove checkpoints after `step`; the step of the newest that stays, 0 where none does."""
    kept: list[Any] = []
    for checkpoint in finished(folder):
        if step_of(checkpoint) <= step:
            kept.append(checkpoint)
        else:
            shutil.rmtree(checkpoint)
    if folder.exists():
        sync_folder(folder)
    return step_of(kept[0]) if kept else 0
