"""A version's ancestry as a Graphviz graph."""

from collections.abc import Sequence

from anthesis.v1.registry_pb2 import ModelVersion

_HEAD = (
    'digraph { rankdir=LR; bgcolor="transparent"; nodesep=0.25; ranksep=0.5; '
    'node [shape=box style="rounded,filled" fontname="Noto Sans, sans-serif" fontsize=11 color="#E7DCD6" '
    'fillcolor="#F8F2EE" fontcolor="#2A1F2D" margin="0.18,0.09"]; edge [color="#A8959E" arrowsize=0.7 '
    'fontname="Noto Sans, sans-serif" fontsize=9 fontcolor="#75666F"]; '
)


def dot(version: ModelVersion, ancestors: Sequence[ModelVersion]) -> str:
    """`ancestors`: nearest first. Datasets are ovals; each version's job is named on its edges."""
    nodes = [_node(version.name, _details(version), 'fillcolor="#F9DFE9" color="#A32D62"')]
    nodes += [_node(ancestor.name, _details(ancestor)) for ancestor in ancestors]
    edges = []
    for child in (version, *ancestors):
        made_by = f" [label={_quote(child.job_id[:12])}]" if child.job_id else ""
        for parent in filter(None, (child.parent, *child.other_parents)):
            edges.append(f"{_quote(parent)} -> {_quote(child.name)}{made_by};")
        for dataset in child.datasets:
            nodes.append(_node(f"dataset {dataset}", dataset, 'shape=ellipse fillcolor="#E4F0E8" color="#BBD3C2"'))
            label = "" if child.parent else made_by
            edges.append(f"{_quote(f'dataset {dataset}')} -> {_quote(child.name)}{label};")
    return _HEAD + " ".join((*nodes, *edges)) + " }"


def _details(version: ModelVersion) -> str:
    return f"{version.name}\n{version.licence}"


def _node(name: str, label: str, style: str = "") -> str:
    return f"{_quote(name)} [label={_quote(label)} {style}];"


def _quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
