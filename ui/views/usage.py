"""Usage: requests and tokens, by day and by who, what and in which language."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

import altair as alt
import streamlit as st
from anthesis.v1.project_pb2 import UsageRecord

from ui import markup
from ui.chrome import page
from ui.platform import connect

BY = {"Model": "model_version", "Language": "language", "Project": "project", "Principal": "principal"}
NOT_STATED = {"language": "not stated", "project": "the platform"}
COUNTS = ("requests", "prompt_tokens", "completion_tokens")


def main() -> None:
    with page("Usage", "Who asked how much of which model."):
        days_column, by_column = st.columns(2)
        days = days_column.selectbox(
            "Days", (7, 30, 90), index=1, format_func=lambda n: f"The last {n}", key="usage_days"
        )
        by = by_column.selectbox("By", list(BY), key="usage_by")
        since = datetime.now(UTC).date() - timedelta(days=days - 1)
        records = list(connect().client.projects.usage(since=since))
        if not records:
            st.info("**Nothing was asked yet** in these days. Try a model on the Playground page.", icon="🌱")
            return
        show(records, BY[by], by, since)


def show(records: Sequence[UsageRecord], field: str, by: str, since: date) -> None:
    prompts, completions = (sum(getattr(r, name) for r in records) for name in COUNTS[1:])
    requests = f"{sum(record.requests for record in records):,}"
    figures = [("Requests", requests), ("Prompt tokens", f"{prompts:,}"), ("Completion tokens", f"{completions:,}")]
    st.html(markup.facts(figures))
    st.altair_chart(chart(per_day(records, field), by, since), width="stretch")
    st.dataframe(totals(records, field, by), hide_index=True, width="stretch")


def totals(records: Iterable[UsageRecord], field: str, by: str) -> list[dict[str, str | int]]:
    """A row for each value of `field`, most tokens first."""
    sums: dict[str, list[int]] = defaultdict(lambda: [0] * len(COUNTS))
    for record in records:
        for place, name in enumerate(COUNTS):
            sums[named(record, field)][place] += getattr(record, name)
    rows = sorted(sums.items(), key=lambda row: (-row[1][1] - row[1][2], row[0]))
    return [
        {by: value, "Requests": asked, "Prompt tokens": read, "Completion tokens": written}
        for value, (asked, read, written) in rows
    ]


def per_day(records: Iterable[UsageRecord], field: str) -> list[dict[str, str | int]]:
    """Tokens of prompts and completions."""
    sums: dict[tuple[str, str], int] = defaultdict(int)
    for record in records:
        sums[record.day, named(record, field)] += record.prompt_tokens + record.completion_tokens
    return [{"day": day, "of": value, "tokens": tokens} for (day, value), tokens in sorted(sums.items())]


def named(record: UsageRecord, field: str) -> str:
    return getattr(record, field) or NOT_STATED.get(field, "–")


def chart(points: Sequence[dict[str, str | int]], by: str, since: date) -> Any:
    days = [(since + timedelta(days=n)).isoformat() for n in range((datetime.now(UTC).date() - since).days + 1)]
    return (
        alt.Chart({"values": list(points)})
        .mark_bar()
        .encode(
            x=alt.X("day:O", title=None, scale=alt.Scale(domain=days), axis=alt.Axis(labelOverlap=True, labelAngle=0)),
            y=alt.Y("tokens:Q", title="tokens"),
            color=alt.Color("of:N", title=by),
            tooltip=["day:O", "of:N", alt.Tooltip("tokens:Q", format=",")],
        )
        .properties(height=280)
    )


main()
