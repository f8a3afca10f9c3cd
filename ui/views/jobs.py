"""Jobs: all of them, or one with its loss curve as it grows."""

import time

import streamlit as st
from anthesis.report_text import sentences
from anthesis.v1 import job_pb2 as pb

from ui import history, markup
from ui.actions import offer_version
from ui.chrome import VIEWS, page
from ui.platform import connect

LIVE_S = 1.0  # how often a running job's page looks for news
LOG_LINES = 200
state = st.session_state


def main() -> None:
    job_id = st.query_params.get("job", "")
    with page("Jobs", "Training, as it happens."):
        if job_id:
            st.page_link(VIEWS / "jobs.py", label="All jobs", icon=":material/arrow_back:")
            one_job(job_id)
        else:
            all_jobs()


def all_jobs() -> None:
    jobs = connect().client.jobs.list()
    if not jobs:
        st.info("**No job yet.** Start one on the Fine-tune page.", icon="🌱")
        st.page_link(VIEWS / "finetune.py", label="Fine-tune a model", icon=":material/tune:")
    for job in jobs:
        with st.container(border=True):
            left, middle, right = st.columns([3, 4, 1.1], vertical_alignment="center")
            left.html(markup.job_title(history.title(job), history.state_name(job.state), job.id))
            progress = job.progress
            if progress.total_steps:
                share = min(1.0, progress.step / progress.total_steps)
                middle.progress(share, f"Step {progress.step:,} of {progress.total_steps:,} · loss {progress.loss:.3f}")
            else:
                middle.caption(job.error.message or history.when(job))
            right.page_link(
                VIEWS / "jobs.py", label="Open", icon=":material/arrow_forward:", query_params={"job": job.id}
            )


def one_job(job_id: str) -> None:
    job = connect().client.jobs.get(job_id)
    past = state.setdefault("histories", {}).setdefault(job_id, history.History())
    running = job.state not in history.ENDED

    @st.fragment(run_every=LIVE_S if running else None)
    def live() -> None:
        past.catch_up(connect().streaming, job_id)
        now = connect().client.jobs.get(job_id)
        overview(now, past)
        printed(job_id)
        if running and now.state in history.ENDED:
            st.rerun()  # stops looking, and shows what to do next

    live()
    if job.state == pb.JOB_STATE_SUCCEEDED and job.HasField("validate_dataset"):
        with st.container(border=True):
            st.html(markup.findings(sentences(connect().client.datasets.report(job.validate_dataset.dataset))))
    elif job.state == pb.JOB_STATE_SUCCEEDED:
        made(job)
    elif running:
        with st.container(horizontal=True):
            pause(job)
            cancel(job)


def overview(job: pb.Job, past: history.History) -> None:
    with st.container(border=True):
        st.html(markup.job_title(history.title(job), history.state_name(job.state), job.id))
        progress = job.progress
        share = min(1.0, progress.step / progress.total_steps) if progress.total_steps else 0.0
        st.progress(
            share, f"Step {progress.step:,} of {progress.total_steps:,}" if progress.total_steps else history.when(job)
        )
        left = history.duration(progress.seconds_left) if job.state == pb.JOB_STATE_RUNNING and progress.step else "–"
        st.html(
            markup.facts(
                [
                    ("Loss", f"{progress.loss:.4f}" if progress.step else "–"),
                    ("Tokens/s", f"{progress.tokens_per_second:,.0f}" if progress.step else "–"),
                    ("Learning rate", f"{progress.learning_rate:.2e}" if progress.step else "–"),
                    ("Gradient norm", f"{progress.grad_norm:.3f}" if progress.step else "–"),
                    ("Tokens seen", f"{progress.tokens_seen:,}"),
                    ("Samples seen", f"{progress.samples_seen:,}"),
                    ("Model FLOP/s", history.flops(progress.model_flops_per_second) if progress.step else "–"),
                    ("Hardware FLOP/s", history.flops(progress.hardware_flops_per_second) if progress.step else "–"),
                    ("Time left", left),
                    ("Running for", history.duration(history.seconds_running(job, time.time()))),
                    ("Attempts", str(job.attempts)),
                ]
            )
        )
        if job.state == pb.JOB_STATE_FAILED:
            where = f" ({job.error.parameter})" if job.error.parameter else ""
            st.error(f"**{job.error.code}{where}**", icon="⚠️")
            st.code(job.error.message, language=None, wrap_lines=True)
    if past.points:
        with st.container(border=True):
            st.altair_chart(history.loss_chart(past.points), width="stretch")
        if past.validation:
            with st.container(border=True):
                st.altair_chart(history.validation_chart(past.validation), width="stretch")
        with st.expander("Learning rate, gradient norm, speed"):
            for column, (field, title) in zip(st.columns(4), history.OTHER_CURVES, strict=True):
                column.altair_chart(history.curve(past.points, field, title, height=150), width="stretch")
    with st.expander("Events", expanded=not past.points):
        st.html(markup.log(past.messages))


def printed(job_id: str) -> None:
    """The last lines of the job's output."""
    if lines := list(connect().client.jobs.logs(job_id, tail=LOG_LINES)):
        with st.expander(f"Output, its last {LOG_LINES} lines"):
            st.code("\n".join(lines), language=None, height=400)


def pause(job: pb.Job) -> None:
    """A button that pauses it, or lets it go on."""
    if job.state == pb.JOB_STATE_PAUSED or job.pause_requested:
        if st.button("Resume this job", icon=":material/play_circle:"):
            connect().client.jobs.resume(job.id)
            st.rerun()
    elif not job.cancel_requested and st.button("Pause this job", icon=":material/pause_circle:"):
        connect().client.jobs.pause(job.id)
        st.rerun()


def cancel(job: pb.Job) -> None:
    if job.cancel_requested:
        st.caption("Asked to stop; it ends at its next step.")
    elif st.button("Cancel this job", icon=":material/cancel:"):
        connect().client.jobs.cancel(job.id)
        st.rerun()


def made(job: pb.Job) -> None:
    if job.HasField("evaluate"):
        model = job.evaluate.version.split("@")[0]
        st.page_link(
            VIEWS / "models.py",
            label="Results, beside published ones",
            icon=":material/query_stats:",
            query_params={"model": model},
        )
        return
    if job.tokenizer_digest:
        with st.container(border=True):
            st.html(markup.card_title("New tokenizer", "give its digest where a model is pre-trained"))
            st.code(job.tokenizer_digest, language=None)
        return
    if job.dataset:
        rows = connect().client.datasets.get(job.dataset).num_rows
        with st.container(border=True):
            st.html(markup.card_title(f"New dataset: {job.dataset}", f"{rows:,} rows"))
        return
    version = connect().client.models.get_version(job.model_version)
    with st.container(border=True):
        details = f"{version.parameters:,} parameters, {version.licence}"
        st.html(markup.card_title(f"New version: {version.name}", details))
        offer_version(version)
        st.page_link(
            VIEWS / "models.py",
            label="Lineage, licence, files",
            icon=":material/account_tree:",
            query_params={"model": version.model},
        )


main()
