"""What a job has reported so far, and how it is drawn."""

import math
from collections.abc import Sequence
from typing import Any

import altair as alt
from anthesis import AsyncClient
from anthesis.v1 import job_pb2 as pb
from google.protobuf.timestamp_pb2 import Timestamp

from ui.streams import Stream

ENDED = frozenset({pb.JOB_STATE_SUCCEEDED, pb.JOB_STATE_FAILED, pb.JOB_STATE_CANCELLED})
OTHER_CURVES = (("rate", "learning rate"), ("norm", "gradient norm"), ("speed", "tokens/s"), ("flops", "model FLOP/s"))
QUIET_S, AT_MOST_S = 0.15, 3.0  # events count as caught up after this silence
MAX_POINTS = 1500  # drawn; more are thinned


class History:
    """Grows by the events after the last one seen, so that a page never asks twice for the same."""

    def __init__(self) -> None:
        self.cursor = 0
        self.points: list[dict[str, float]] = []
        self.validation: list[dict[str, Any]] = []
        self.messages: list[tuple[str, str]] = []  # (time, text)
        self.ended = False

    def catch_up(self, client: AsyncClient, job_id: str) -> None:
        """Take what is new. Raises what the call raises."""
        if self.ended:
            return
        with Stream[pb.JobEvent](lambda: client.jobs.watch(job_id, after_sequence=self.cursor, patience_s=0)) as events:
            for event in events.drain(QUIET_S, AT_MOST_S):
                self._add(event)

    def _add(self, event: pb.JobEvent) -> None:
        self.cursor = event.sequence
        if event.HasField("progress"):
            self._add_progress(event.progress)
        elif event.HasField("state"):
            self.messages.append((clock(event.time), state_name(event.state).capitalize()))
            self.ended = event.state in ENDED
        else:
            self.messages.append((clock(event.time), event.message))

    def _add_progress(self, progress: pb.TrainingProgress) -> None:
        while self.points and self.points[-1]["step"] >= progress.step:
            self.points.pop()  # an attempt that went on from a checkpoint repeats steps
        while self.validation and self.validation[-1]["step"] >= progress.step:
            self.validation.pop()
        self.points.append(
            {
                "step": progress.step,
                "loss": progress.loss,
                "rate": progress.learning_rate,
                "norm": progress.grad_norm,
                "speed": progress.tokens_per_second,
                "flops": progress.model_flops_per_second,
            }
        )
        self.validation += [
            {
                "step": progress.step,
                "of": f"{loss.dataset}: {loss.language or 'unknown'}",
                "bits": loss.bits_per_byte,
            }
            for loss in progress.validation
        ]


def loss_chart(points: Sequence[dict[str, float]]) -> Any:
    return curve(points, "loss", "loss", height=280)


def curve(points: Sequence[dict[str, float]], field: str, title: str, *, height: int) -> Any:
    """A line over steps, with its last value as a dot."""
    thinned = points[:: max(1, len(points) // MAX_POINTS)]
    base = alt.Chart({"values": [*thinned, points[-1]]}).encode(
        x=alt.X("step:Q", title="step", axis=alt.Axis(grid=False, tickMinStep=1), scale=alt.Scale(nice=False)),
        y=alt.Y(f"{field}:Q", title=title, scale=alt.Scale(zero=False)),
        tooltip=[alt.Tooltip("step:Q"), alt.Tooltip(f"{field}:Q", format=".4g")],
    )
    newest = alt.Chart({"values": [points[-1]]}).mark_circle(size=70).encode(x="step:Q", y=f"{field}:Q")
    return (base.mark_line(strokeWidth=2, interpolate="monotone") + newest).properties(height=height)


def validation_chart(points: Sequence[dict[str, Any]]) -> Any:
    """Bits per byte over steps, a line for each dataset and language."""
    return (
        alt.Chart({"values": list(points)})
        .mark_line(point=True)
        .encode(
            x=alt.X("step:Q", title="step", axis=alt.Axis(grid=False, tickMinStep=1), scale=alt.Scale(nice=False)),
            y=alt.Y("bits:Q", title="bits per byte", scale=alt.Scale(zero=False)),
            color=alt.Color("of:N", title=None),
            tooltip=["of:N", "step:Q", alt.Tooltip("bits:Q", format=".4f")],
        )
        .properties(height=280)
    )


def flops(per_second: float) -> str:
    """ "149.8 TFLOP/s" """
    power = min(6, max(0, int(math.log10(per_second) // 3))) if per_second >= 1 else 0
    return f"{per_second / 1000**power:.1f} {['', 'k', 'M', 'G', 'T', 'P', 'E'][power]}FLOP/s"


def title(job: pb.Job) -> str:
    if job.HasField("fine_tune"):
        return f"{job.fine_tune.base} → {job.fine_tune.output_model}"
    if job.HasField("validate_dataset"):
        return f"Report on {job.validate_dataset.dataset}"
    if job.HasField("train_tokenizer"):
        return f"Train a tokenizer on {', '.join(job.train_tokenizer.datasets)}"
    if job.HasField("evaluate"):
        return f"Measure {job.evaluate.version} by {job.evaluate.suite}"
    if job.HasField("clean_corpus"):
        return f"Clean {', '.join(job.clean_corpus.datasets)} → {job.clean_corpus.output_dataset}"
    if job.HasField("import_model"):
        return f"Import {job.import_model.model}"
    return f"Pre-train {job.pretrain.output_model}"


def state_name(state: pb.JobState.ValueType) -> str:
    """ "RUNNING" """
    return pb.JobState.Name(state).removeprefix("JOB_STATE_")


def when(job: pb.Job) -> str:
    if job.state == pb.JOB_STATE_PENDING:
        return f"Waiting for a trainer since {clock(job.create_time)}"
    if job.state == pb.JOB_STATE_PAUSED:
        return "Paused"
    return f"Submitted {job.create_time.ToDatetime():%Y-%m-%d %H:%M} UTC"


def clock(at: Timestamp) -> str:
    return f"{at.ToDatetime():%H:%M:%S}"


def seconds_running(job: pb.Job, now: float) -> float:
    if not job.HasField("start_time"):
        return 0.0
    end = job.end_time.ToSeconds() if job.HasField("end_time") else now
    return max(0.0, end - job.start_time.ToSeconds())


def duration(seconds: float) -> str:
    """ "2 h 05 min" """
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"
