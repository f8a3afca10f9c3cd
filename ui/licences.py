"""What a user has to accept before a version is used: its licence, what that forbids, and a button."""

from collections.abc import Iterable

import streamlit as st
from anthesis.v1.licence_pb2 import Licence

from ui.platform import connect


def ask_to_accept(versions: Iterable[str]) -> bool:
    """Show what is still to be accepted before `versions` (or aliases) are used; say whether there is any."""
    missing = {licence.id: licence for version in versions for licence in connect().client.licences.missing(version)}
    for licence in missing.values():
        _offer(licence)
    return bool(missing)


def _offer(licence: Licence) -> None:
    with st.container(border=True):
        st.warning(f"**{licence.name} comes first.** Whoever uses this model agrees to its terms.", icon="📜")
        if licence.use_restrictions:
            st.markdown("##### What it forbids, in its own words")
            st.code(licence.use_restrictions, language=None, wrap_lines=True, height=320)
        with st.expander("The whole licence"):
            st.code(licence.text, language=None, wrap_lines=True, height=480)
        st.caption(f"Accepted for the name of this playground's API key. {licence.digest}")
        if st.button("I have read and accept it", key=f"accept-{licence.id}", icon=":material/check:", type="primary"):
            connect().client.licences.accept(licence.id, licence.digest)
            st.rerun()
