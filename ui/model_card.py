"""A model's card. What people wrote is drawn as Markdown without HTML, and without pictures, which a browser would
fetch from wherever they say.
"""

import streamlit as st
from anthesis.errors import AbortedError
from anthesis.v1.registry_pb2 import ModelCard

from ui import markup
from ui.platform import connect

state = st.session_state


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
        offer_writing(card)
        st.download_button("README.md", card.markdown, file_name="README.md", key=f"card-{name}")


def offer_writing(card: ModelCard) -> None:
    seen, text = f"card-seen-{card.name}", f"card-text-{card.name}"
    state.setdefault(seen, card.generation)  # when the text was taken into the form
    with st.popover("Write on it", icon=":material/edit:"), st.form(f"card-form-{card.name}", border=False):
        st.caption("Markdown; `## Title` begins a section, the registry's or one more. What the registry makes stays.")
        st.text_area("Text", written(card), height=280, key=text)
        if st.form_submit_button("Save", type="primary"):
            try:
                connect().client.models.update_card(card.name, state[text], if_generation=state[seen])
            except AbortedError:
                state[seen] = card.generation
                st.warning(f"**{card.updated_by} changed it meanwhile**, as shown above. Save again to replace that.")
            else:
                del state[seen], state[text]
                st.rerun()


def written(card: ModelCard) -> str:
    """What people wrote on the card itself, as `update_card` takes it."""
    own = [section for section in card.sections if section.text]
    return "\n\n".join(f"## {each.title}\n\n{each.text}" if each.title else each.text for each in own)


def without_pictures(text: str) -> str:
    """Each picture as the Markdown that it is written in."""
    return text.replace("![", "!\\[")
