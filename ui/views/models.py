"""Models: what the registry knows, what has weights, where each version came from."""

from collections.abc import Sequence

import streamlit as st
from anthesis.v1.registry_pb2 import Model, ModelVersion

from ui import lineage, markup
from ui.actions import offer_version
from ui.alias_history import offer_history
from ui.chrome import VIEWS, page
from ui.evaluations import offer_evaluations, offer_measuring
from ui.languages import label_of
from ui.model_card import show_card
from ui.platform import connect


def main() -> None:
    with page("Models", "Everything that can be served or tuned here, with its licence and lineage."):
        name = st.query_params.get("model", "")
        if name:
            one_model(name)
        else:
            all_models()


def all_models() -> None:
    text = st.text_input("Search", key="search", placeholder="name, description or tag", max_chars=200)
    models = connect().client.models.list(text=text)
    aliases: dict[str, list[str]] = {}
    for alias in connect().client.aliases.list():
        aliases.setdefault(alias.version.split("@")[0], []).append(alias.name)
    ours = [model for model in models if model.latest_version]
    rest = [model for model in models if not model.latest_version]
    st.markdown(f"##### With weights ({len(ours)})")
    if not ours and text:
        st.info("**None is found.** Try fewer letters, or a tag.", icon="🔎")
    elif not ours:
        st.info("**None yet.** `make demo` trains two small ones; or import one of those below.", icon="🌱")
    grid(ours, aliases)
    if rest:
        st.markdown(f"##### Published by BigScience, not imported ({len(rest)})")
        st.caption("Known here with configuration, languages and licence. Import the weights that you have:")
        st.code(f"anthesis models import {rest[0].name} --from DIR", language="bash")
        grid(rest, aliases)


def grid(models: Sequence[Model], aliases: dict[str, list[str]]) -> None:
    for start in range(0, len(models), 3):
        for column, model in zip(st.columns(3), models[start : start + 3], strict=False):
            with column.container(border=True, height="stretch"):
                card(model, aliases.get(model.name, []))


def card(model: Model, aliases: Sequence[str]) -> None:
    st.html(markup.card_title(model.name))
    st.html(markup.description(model.description))
    marks = [
        *(f"alias {alias}" for alias in aliases),
        f"{size(model.parameters)} parameters" if model.parameters else "",
        model.licence,
        f"{len(model.languages)} languages" if model.languages else "",
        *(f"#{tag}" for tag in model.tags),
    ]
    st.html(markup.chips([mark for mark in marks if mark]))
    label = f"Version {model.latest_version}" if model.latest_version else "Details"
    st.page_link(VIEWS / "models.py", label=label, icon=":material/arrow_forward:", query_params={"model": model.name})


def size(parameters: int) -> str:
    """ "559 M" """
    for unit, name in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if parameters >= unit:
            return f"{parameters / unit:.3g} {name}"
    return str(parameters)


def one_model(name: str) -> None:
    client = connect().client
    st.page_link(VIEWS / "models.py", label="All models", icon=":material/arrow_back:")
    model = client.models.get(name)
    with st.container(border=True):
        st.html(markup.card_title(model.name, f"{model.parameters:,} parameters"))
        st.html(markup.description(model.description))
        pairs = [("Licence", model.licence or "–"), ("Languages", str(len(model.languages)))]
        if model.base_model:
            pairs.append(("Tuned from", model.base_model))
        st.html(markup.facts(pairs))
        if model.languages:
            with st.expander("Languages"):
                st.html(markup.chips([label_of(name) for name in model.languages]))
        if model.config_json:
            with st.expander("Configuration"):
                st.json(model.config_json)
    show_card(name)
    for alias in client.aliases.list():
        if alias.version.split("@")[0] == name:
            offer_history(alias)
    offer_evaluations(name)
    versions = client.models.list_versions(name)
    if not versions:
        st.info("**Its weights are not here.** Import them from a folder with the published checkpoint:", icon="📦")
        st.code(f"anthesis models import {name} --from DIR", language="bash")
    for version in versions:
        one_version(version)


def one_version(version: ModelVersion) -> None:
    client = connect().client
    names = [alias.name for alias in client.aliases.list() if alias.version == version.name]
    deployed = [d for d in client.deployments.list() if d.version == version.name]
    ready = any(d.ready_replicas for d in deployed)
    with st.container(border=True):
        condition = "ready to generate" if ready else "being loaded" if deployed else "not deployed"
        st.html(markup.card_title(version.name, condition))
        if names or version.tags:
            st.html(markup.chips([*(f"alias {name}" for name in names), *(f"#{tag}" for tag in version.tags)]))
        facts = [
            ("Made", version.create_time.ToDatetime().strftime("%Y-%m-%d %H:%M UTC")),
            ("By", f"job {version.job_id}" if version.job_id else version.source),
            ("Licence", version.licence),
            ("Size", f"{version.size_bytes / 1e6:,.1f} MB"),
            ("Trained on", ", ".join(version.datasets) or "–"),
        ]
        st.html(markup.facts(facts))
        offer_version(version)
        offer_measuring(version.name)
        ancestors = client.models.lineage(version.name)
        st.graphviz_chart(lineage.dot(version, ancestors), alt=f"Lineage of {version.name}")
        with st.expander(f"Files ({len(version.files)})"):
            st.dataframe(
                [
                    {"file": f.path, "bytes": f.size_bytes, "sha256": f.digest.removeprefix("sha256:")}
                    for f in version.files
                ],
                hide_index=True,
            )
            st.caption(f"Tokenizer {version.tokenizer_digest}")


main()
