"""Results of a model's versions, beside those that were published for it and for the models it comes from."""

from collections.abc import Sequence

import streamlit as st
from anthesis import EvaluateSpec
from anthesis.v1 import evaluation_pb2 as pb

from ui.chrome import VIEWS
from ui.platform import connect

MEASURED_BY_JOBS = (pb.SUITE_KIND_BITS_PER_BYTE, pb.SUITE_KIND_LM_EVAL)


def suites_of(*kinds: "pb.SuiteKind.ValueType") -> list[str]:
    return [suite.name for suite in connect().client.evaluations.suites() if suite.kind in kinds]


def offer_measuring(version: str) -> None:
    """A button that submits a job; nothing where there is no suite to measure by."""
    if not (suites := suites_of(*MEASURED_BY_JOBS)):
        return
    with st.popover("Measure", icon=":material/query_stats:"):
        suite = st.selectbox("Suite", suites, key=f"measure-by-{version}")
        st.caption("A trainer computes its bits per byte in each language, or has it answer where it is served.")
        if st.button("Start", key=f"measure-{version}"):
            job = connect().client.jobs.create(EvaluateSpec(version=version, suite=suite))
            st.switch_page(VIEWS / "jobs.py", query_params={"job": job.id})


def offer_evaluations(model: str) -> None:
    """A table of one suite's results at a time; nothing where there is none."""
    found = list(connect().client.evaluations.list(model, beside_published=True))
    if not found:
        return
    own = {evaluation.suite for evaluation in found if evaluation.version}
    suites = sorted({evaluation.suite for evaluation in found}, key=lambda suite: (suite not in own, suite))
    with st.expander("Evaluations", icon=":material/query_stats:", expanded=bool(own)):
        suite = st.selectbox("Suite", suites, key="suite")
        shown = [evaluation for evaluation in found if evaluation.suite == suite]
        st.dataframe(table(shown), hide_index=True)
        for line in dict.fromkeys(map(source, shown)):
            st.caption(line)


def table(evaluations: Sequence[pb.Evaluation]) -> list[dict[str, str]]:
    """A row for each language and metric, a column for each model or version: its newest result, with its error."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for evaluation in reversed(evaluations):  # they come with the newest first
        for result in evaluation.results:
            better = "higher" if result.higher_is_better else "lower"
            start = {"language": result.language or "–", "metric": f"{result.metric} ({better} is better)"}
            row = rows.setdefault((result.language, result.metric), start)
            row[column(evaluation)] = figure(result)
    return [rows[key] for key in sorted(rows)]


def column(evaluation: pb.Evaluation) -> str:
    return evaluation.version or f"{evaluation.model}, published"


def figure(result: pb.EvaluationResult) -> str:
    """ "1.532 ± 0.012": the standard error behind it where it is known."""
    error = f" ± {result.standard_error:.3g}" if result.HasField("standard_error") else ""
    return f"{result.value:.4g}{error}"


def source(evaluation: pb.Evaluation) -> str:
    """Where a column comes from."""
    match evaluation.source:
        case pb.EVALUATION_SOURCE_PUBLISHED:
            return f"Published: {evaluation.reference}"
        case pb.EVALUATION_SOURCE_JOB:
            return f"{evaluation.version}: measured by job {evaluation.job_id}"
    told = f": {evaluation.reference}" if evaluation.reference else ""
    return f"{evaluation.version}: reported by {evaluation.created_by}{told}"
