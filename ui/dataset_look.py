"""A look into the datasets of a fine-tune before it starts: some rows, and what a report found in all of them."""

from collections.abc import Sequence
from typing import Any

import streamlit as st
from anthesis import ValidateDatasetSpec
from anthesis.datasets import pinned
from anthesis.report_text import sentences
from anthesis.v1.registry_pb2 import DATASET_FORMAT_BLEND, DATASET_FORMAT_MIXTURE, Dataset

from ui import markup
from ui.chrome import VIEWS
from ui.platform import connect

NO_ROWS = (DATASET_FORMAT_BLEND, DATASET_FORMAT_MIXTURE)
NUM_ROWS = 5
state = st.session_state


def look_into(datasets: Sequence[Dataset], base: str) -> None:
    """base: whose tokenizer a report counts tokens by."""
    by_name = {pinned(dataset): dataset for dataset in datasets if dataset.format not in NO_ROWS}
    if not by_name:
        return
    with st.expander("Look into the data", icon=":material/search:"):
        name = st.selectbox("Dataset", list(by_name), key="look")
        if st.button("Draw other rows", icon=":material/casino:", key="draw"):
            state["seed"] = state.get("seed", 0) + 1
        st.dataframe(rows(name, by_name[name].digest, state.get("seed")), hide_index=True)
        show_report(by_name[name], base)


@st.cache_data(max_entries=64, show_spinner=False)
def rows(name: str, digest: str, seed: int | None) -> list[dict[str, Any]]:
    """digest: of the version, so that it is another one where a platform is set up anew."""
    found = connect().client.datasets.preview(name, num_rows=NUM_ROWS, seed=seed).rows
    return [{"row": row.number} | {field.name: field.text for field in row.fields} for row in found]


@st.cache_data(max_entries=64, show_spinner=False)
def report(name: str, digest: str) -> dict[str, Any]:
    """digest: of the report, so that a newer one is another."""
    return connect().client.datasets.report(name)


def show_report(dataset: Dataset, base: str) -> None:
    name = pinned(dataset)
    if dataset.report_digest:
        st.html(markup.findings(sentences(report(name, dataset.report_digest))))
    else:
        st.caption("No report on all of its rows yet: bad ones, duplicates, lengths in tokens, languages.")
    asked: dict[str, str] = state.setdefault("asked", {})
    if st.button("Check every row", icon=":material/fact_check:", key="check"):
        asked[name] = connect().client.jobs.create(ValidateDatasetSpec(dataset=name, base=base)).id
    if name in asked:
        st.page_link(
            VIEWS / "jobs.py",
            label=f"{name} is being looked through",
            icon=":material/arrow_forward:",
            query_params={"job": asked[name]},
        )
