"""What the registry writes into a card's sections. Text of users in it is escaped, so that it is no markup."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from services.registry.cards.facts import Facts
from services.registry.cards.front_matter import emissions
from services.registry.job_energy import energy_of
from services.registry.licences.carried import parents_of
from services.registry.licences.terms import use_restrictions
from services.registry.tables import Job

_MARKUP = re.compile(r"([\\`*_{}\[\]<>#!|~&$])")
NOT_RECORDED = "Not recorded."
_SOURCES = {"package_joules": "processors", "dram_joules": "memory", "gpu_joules": "GPUs"}


def generated(facts: Facts) -> dict[str, str]:
    """Title -> Markdown, in order; "" comes before the first heading."""
    return {
        "": _summary(facts),
        "Intended use and restrictions": _use(facts),
        "Training data": _data(facts),
        "Training procedure": _procedure(facts),
        "Evaluation": _evaluation(facts),
        "Environmental impact": _environment(facts),
        "Lineage": _lineage(facts),
        "How to use": _usage(facts),
    }


def escape(text: str) -> str:
    """One line of plain text."""
    return _MARKUP.sub(r"\\\1", " ".join(text.split()))


def fenced(text: str, language: str = "") -> str:
    """A code block, whatever is in `text`."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text.strip()}\n{fence}"


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [[str(cell) for cell in row] for row in (header, ["---"] * len(header), *rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _summary(facts: Facts) -> str:
    model, version = facts.model, facts.version
    what = [escape(model.description)] if model.description else []
    if version is None:
        return "\n\n".join([*what, f"A BLOOM model under {model.licence}; its weights are not in this registry."])
    by = f" by {escape(version.created_by)}" if version.created_by else ""
    made = f"registered {version.create_time:%Y-%m-%d %H:%M} UTC{by}"
    what.append(
        f"`{version.name}`: a BLOOM model of {version.parameters:,} parameters under {version.licence}, {made}."
    )
    if facts.languages:
        what.append(f"Languages: {', '.join(map(escape, facts.languages))}.")
    return "\n\n".join(what)


def _use(facts: Facts) -> str:
    parts = [f"Under {' AND '.join(f'{one.id} ({escape(one.name)})' for one in facts.licences)}."]
    restricting = [(licence, words) for licence in facts.licences if (words := use_restrictions(licence.text))]
    for licence, words in restricting:
        parts += [f"{licence.id} forbids, in its own words:", fenced(words, "text")]
    if not restricting:
        parts.append("Its licence has no list of forbidden uses.")
    parts.append("What it writes is machine-generated: say so where you show it.")
    return "\n\n".join(parts)


def _data(facts: Facts) -> str:
    if not facts.datasets:
        return NOT_RECORDED
    rows = [
        (f"`{one.name}`", one.format, f"{one.num_rows:,}", f"{one.size_bytes:,}", escape(", ".join(one.languages)))
        for one in facts.datasets
    ]
    return _table(("data set", "format", "rows", "bytes", "languages"), rows)


def _procedure(facts: Facts) -> str:
    job, version = facts.job, facts.version
    if version is None or job is None:
        return "Imported: how it was trained is not recorded here." if version else NOT_RECORDED
    base = job.spec.get("base")
    parts = [
        f"Job `{job.id}`, {f'from `{base}`' if base else 'from new weights'}, {_span(job.start_time, job.end_time)}."
    ]
    asked = job.spec["options"] | {f"lora.{key}": value for key, value in (job.spec.get("lora") or {}).items()}
    rows = [(key, escape(f"{value}")) for key, value in asked.items() if value not in (None, "", False)]
    parts.append(_table(("hyper-parameter", "value"), rows))
    parts.append("What is not named was left to its default.")
    if any(file["path"] == "training.json" for file in version.files):
        parts.append("`training.json` says each, and on which machines it ran with what code.")
    return "\n\n".join(parts)


def _span(start: Any, end: Any) -> str:
    return f"{start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC" if start and end else "whose times are not recorded"


def _evaluation(facts: Facts) -> str:
    if not facts.evaluations:
        return NOT_RECORDED
    rows = [
        (f"`{row.dataset}`", escape(row.language) or "–", escape(row.metric), f"{row.value:.4f}", escape(row.source))
        for row in facts.evaluations
    ]
    return _table(("data set", "language", "metric", "value", "measured on"), rows)


def _environment(facts: Facts) -> str:
    job = facts.job
    if job is None:
        return NOT_RECORDED
    return "\n\n".join([*_measured_energy(job), *_planned_energy(facts, job)]) or NOT_RECORDED


def _measured_energy(job: Job) -> list[str]:
    energy = energy_of(job.energy)
    if energy is None:
        return []
    left_out = [escape(reason) for reason in energy.unmeasured]
    if not energy.joules:
        return [f"Nothing was measured ({'; '.join(left_out)})."]
    of_each = ", ".join(f"{_SOURCES[name]} {joules / 3.6e6:.3g}" for name, joules in energy.joules.items())
    unmeasured_attempts = job.attempts - energy.attempts
    if unmeasured_attempts > 0:
        left_out.append(f"{unmeasured_attempts} of {job.attempts} attempts")
    if "package_joules" in energy.joules and "dram_joules" not in energy.joules:
        left_out.append(_SOURCES["dram_joules"])
    left_out.append("power supplies, cooling, disks and network")
    return [
        f"Measured: {energy.kwh:.3g} kWh ({of_each}), by the machines' own counters of processors and GPUs as a whole, "
        f"so with what else ran on them. Not in it: {'; '.join(left_out)}."
    ]


def _planned_energy(facts: Facts, job: Job) -> list[str]:
    found = emissions(facts)
    if found is None or job.estimate is None:
        return []
    figures = f"{job.estimate['energy_kwh']:.3g} kWh and {found['emissions']:.4g} g of CO2 equivalents"
    return [f"{figures}, {found['source']}; {found['hardware_used']}."]


def _lineage(facts: Facts) -> str:
    if facts.version is None:
        return f"Tuned from {', '.join(facts.base_models)}." if facts.base_models else NOT_RECORDED
    return "\n".join(f"- `{one.name}`, {one.licence}, {_origin(one)}" for one in (facts.version, *facts.ancestors))


def _origin(version: Any) -> str:
    parents = " and ".join(f"`{name}`" for name in parents_of(version))
    how = f"trained by `{version.job_id}`" if version.job_id else "imported"
    return f"{how} from {parents}" if parents else how


def _usage(facts: Facts) -> str:
    if facts.version is None:
        return fenced(f"anthesis models import {facts.model.name} --from DIR", "sh")
    name = facts.version.name
    code = [
        "from anthesis import Client, SamplingParams",
        "",
        "with Client() as client:",
        f'    print(client.complete("{name}", "…", SamplingParams(max_tokens=40)).text)',
    ]
    parts = ["On the platform:", fenced("\n".join(code), "python")]
    parts += ["Elsewhere:", fenced(f"anthesis models download {name} --to DIR", "sh")]
    load = 'from transformers import AutoModelForCausalLM\n\nmodel = AutoModelForCausalLM.from_pretrained("DIR")'
    return "\n\n".join([*parts, fenced(load, "python")])
