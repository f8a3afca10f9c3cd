"""Tokens: how a model's tokenizer cuts a text, and how evenly it treats the languages."""

import altair as alt
import streamlit as st

from ui import markup
from ui.chrome import page
from ui.languages import BY_CODE, LANGUAGES, Language
from ui.pieces import Fertility, group_tokens
from ui.platform import connect, servable

state = st.session_state
UNSPACED = {"zhs", "zht"}  # words are not separated: per character is what tells


def main() -> None:
    with page("Tokens", "See a text as the model does."):
        client = connect().client
        choices = servable(client.deployments.list(), client.aliases.list())
        if not choices:
            st.info("**No model is deployed yet**, so there is no tokenizer to ask. See the Models page.", icon="🌱")
            return
        first, second = st.columns(2)
        model = first.selectbox(
            "Model", choices, format_func=lambda c: c.label, key="token_model", persist_state="session"
        )
        if "token_text" not in state:
            state["token_language"], state["token_text"] = LANGUAGES[0].code, LANGUAGES[0].article
        code = second.selectbox(
            "Language",
            [language.code for language in LANGUAGES],
            key="token_language",
            on_change=take_text,
            format_func=lambda c: BY_CODE[c].label,
            persist_state="session",
        )
        boxes, languages = st.tabs(["This text", "All languages"])
        with boxes:
            show_tokens(model.name, BY_CODE[code])
        with languages:
            compare_languages(model.name)


def take_text() -> None:
    language = BY_CODE[state["token_language"]]
    state["token_text"] = language.article or language.prompts[0]


def show_tokens(model: str, language: Language) -> None:
    text = st.text_area("Text", key="token_text", height=130, persist_state="session")
    show_ids = st.toggle("Show ids under the tokens", value=True, key="show_ids", persist_state="session")
    answer = connect().client.tokenize(model, text)
    how_fine = Fertility.of(text, len(answer.ids))
    unspaced = language.code in UNSPACED
    st.html(
        markup.facts(
            [
                ("Tokens", f"{how_fine.tokens:,}"),
                ("Words", "–" if unspaced else f"{how_fine.words:,}"),
                ("Characters", f"{how_fine.characters:,}"),
                ("Bytes", f"{how_fine.num_bytes:,}"),
                ("Tokens per word", "–" if unspaced else f"{how_fine.tokens_per_word:.2f}"),
                ("Tokens per character", f"{how_fine.tokens_per_character:.2f}"),
                ("Tokens per byte", f"{how_fine.tokens_per_byte:.2f}"),
            ]
        )
    )
    with st.container(border=True):
        st.html(markup.token_boxes(group_tokens(answer.ids, answer.tokens), language, show_ids=show_ids))
    st.caption(
        "Hover over a token for its id and bytes. A dashed frame holds tokens that are parts of characters, written as "
        "bytes. · is a space, ↵ a line's end, → a tab."
    )


def compare_languages(model: str) -> None:
    """Tokens that the same statement takes in each language."""
    spoken = [language for language in LANGUAGES if language.article]
    counts = connect().client.count(model, [language.article for language in spoken])
    rows = [
        {"language": language.label, "tokens": count, "per byte": count / len(language.article.encode())}
        for language, count in zip(spoken, counts, strict=True)
    ]
    st.markdown(
        "Tokens that article 1 of the Universal Declaration of Human Rights takes, the same statement everywhere."
    )
    chart = (
        alt.Chart({"values": rows})
        .mark_bar(cornerRadiusEnd=3, height=11)
        .encode(
            x=alt.X("tokens:Q", title="tokens", axis=alt.Axis(tickCount=6)),
            y=alt.Y("language:N", sort="x", title=None, axis=alt.Axis(labelLimit=240, labelOverlap=False)),
            tooltip=["language:N", "tokens:Q", alt.Tooltip("per byte:Q", format=".2f")],
        )
        .properties(height=19 * len(rows))
    )
    st.altair_chart(chart, width="stretch")


main()
