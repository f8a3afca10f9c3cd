"""A model's card. What people wrote is drawn as Markdown without HTML, and without pictures, which a browser would
fetch from wherever they say.
"""

import streamlit as st

from ui import markup
from ui.platform import connect


def show_card(name: str) -> None:
    """The card of a model or a version, folded."""
    card = connect().client.models.card(name)
    with st.expander("Model card", icon=":material/description:"):
        for section in card.sections:
            if not (section.text or section.inherited or section.generated):
                continue
            if section.title:
                st.html(markup.card_title(section.title))
            for text in (section.text, section.inherited, section.generated):
                if text:
                    st.markdown(without_pictures(text))
        if card.updated_by:
            st.caption(f"Last changed by {card.updated_by}, generation {card.generation}.")
        st.download_button("README.md", card.markdown, file_name="README.md", key=f"card-{name}")


def without_pictures(text: str) -> str:
    """Each picture as the Markdown that it is written in."""
    return text.replace("![", "!\\[")
