"""What can be done with a version: try it, deploy it, point an alias at it."""

import streamlit as st
from anthesis.v1.registry_pb2 import ModelVersion

from ui.chrome import VIEWS
from ui.platform import connect

LOOK_S = 2.0  # how often a page looks whether a worker has loaded the version


def offer_version(version: ModelVersion) -> None:
    """Buttons for one version; while a worker loads it they look again by themselves."""
    mine = [d for d in connect().client.deployments.list() if d.version == version.name]
    loading = bool(mine) and not any(d.ready_replicas or d.errors for d in mine)

    @st.fragment(run_every=LOOK_S if loading else None)
    def buttons() -> None:
        deployments = [d for d in connect().client.deployments.list() if d.version == version.name]
        ready = any(d.ready_replicas for d in deployments)
        with st.container(horizontal=True, vertical_alignment="center"):
            if ready:
                st.page_link(
                    VIEWS / "playground.py",
                    label="Try it",
                    icon=":material/local_florist:",
                    query_params={"model": version.name},
                )
            elif deployments:
                st.markdown(":gray[A worker is loading it…]")
            else:
                _offer_deployment(version)
            _offer_alias(version)
        for error in (error for deployment in deployments for error in deployment.errors):
            st.code(error, language=None, wrap_lines=True)
        if loading and ready:
            st.rerun()  # the page shows it as ready, and stops looking

    buttons()


def _offer_deployment(version: ModelVersion) -> None:
    if st.button("Deploy", key=f"deploy-{version.name}", icon=":material/rocket_launch:", type="primary"):
        connect().client.deployments.create(version.name, name=deployment_name(version.name))
        st.rerun()


def deployment_name(version: str) -> str:
    """Deployments are named without "/" and "@": "bigscience/bloom-560m@1" -> "bigscience.bloom-560m.1"."""
    return version.replace("/", ".").replace("@", ".")


def _offer_alias(version: ModelVersion) -> None:
    with st.popover("Set alias", icon=":material/label:"):
        alias = st.text_input("Alias", version.model.split("/")[-1], key=f"alias-{version.name}")
        st.caption("Who asks for the alias gets this version from now on; the alias's deployment follows.")
        if st.button("Point it here", key=f"point-{version.name}", disabled=not alias):
            connect().client.aliases.set(alias, version.name)
            st.rerun()
