"""Where an alias has pointed, and the way back."""

from itertools import islice

import streamlit as st
from anthesis.v1.registry_pb2 import Alias, AliasChange, AliasChangeKind

from ui.platform import connect

NUM_SHOWN = 50  # newest changes


def offer_history(alias: Alias) -> None:
    """The alias's newest changes, and a button that undoes the last one."""
    client = connect().client
    with st.expander(f"History of alias `{alias.name}`", icon=":material/history:"):
        st.dataframe(list(map(_row, islice(client.aliases.history(alias.name), NUM_SHOWN))), hide_index=True)
        # The generation is in the keys: a click on a page that shows an older one undoes nothing.
        reason = st.text_input("Reason", key=f"reason-{alias.name}-{alias.generation}", max_chars=1000)
        if st.button("Roll back", key=f"rollback-{alias.name}-{alias.generation}", icon=":material/undo:"):
            client.aliases.rollback(alias.name, if_generation=alias.generation, reason=reason)
            st.rerun()
        st.caption(f"From {alias.version} to the version before it; again goes on back.")


def _row(change: AliasChange) -> dict[str, object]:
    kind = AliasChangeKind.Name(change.kind).removeprefix("ALIAS_CHANGE_KIND_").lower()
    if change.overridden:
        kind += " over its gate"
    return {
        "generation": change.generation,
        "version": change.version or "–",
        "change": f"{kind} to {change.restored_generation}" if change.restored_generation else kind,
        "time": change.time.ToDatetime().strftime("%Y-%m-%d %H:%M:%S UTC"),
        "by": change.principal or "–",
        "reason": change.reason,
    }
