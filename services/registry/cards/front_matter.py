"""A card's YAML front matter, as the Hugging Face Hub reads it.

Source: huggingface/hub-docs, modelcard.md; docs/hub/model-cards-co2.
"""

import re
from typing import Any

import yaml

from services.registry.cards.facts import Facts

# How the Hub calls the licences it knows; any other is "other", with its name.
_HUB_LICENCES = {"apache-2.0": "apache-2.0", "mit": "mit", "bigscience-rail-1.0": "bigscience-bloom-rail-1.0"}
_ISO_639 = re.compile(r"[a-z]{2,3}")
_CHINESE = {"zhs": "zh", "zht": "zh"}  # the BLOOM's data have the scripts apart; ISO 639 does not
_METRICS = {"bits_per_byte": "Bits per byte"}


def front_matter(facts: Facts) -> dict[str, Any]:
    """What is known; nothing is there empty."""
    found = {
        "language": _languages(facts.languages),
        **_licence(facts),
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": sorted({"bloom", *facts.tags}),
        "datasets": [dataset.name for dataset in facts.datasets],
        **_base(facts),
        "co2_eq_emissions": emissions(facts),
        "model-index": _model_index(facts),
    }
    return {key: value for key, value in found.items() if value}


def write_front_matter(facts: Facts) -> str:
    written: str = yaml.safe_dump(front_matter(facts), sort_keys=False, allow_unicode=True, width=10_000)
    return written


def _languages(languages: list[str]) -> list[str]:
    """ISO 639 codes, and "code" where there are programming languages, as the Hub has it."""
    return sorted({_CHINESE.get(name, name) if _ISO_639.fullmatch(name) else "code" for name in languages})


def _licence(facts: Facts) -> dict[str, str]:
    ids = [licence.id for licence in facts.licences]
    if len(ids) == 1 and ids[0] in _HUB_LICENCES:
        return {"license": _HUB_LICENCES[ids[0]]}
    link = f"LICENSES/{ids[0]}.txt" if len(ids) == 1 else "NOTICE"
    return {"license": "other", "license_name": " AND ".join(ids), "license_link": link}


def _base(facts: Facts) -> dict[str, Any]:
    models = facts.base_models
    found: dict[str, Any] = {"base_model": models[0] if len(models) == 1 else models}
    if facts.version and facts.version.other_parents:
        return found | {"base_model_relation": "merge"}
    if models and facts.job:
        return found | {"base_model_relation": "finetune"}
    return found


def emissions(facts: Facts) -> dict[str, Any] | None:
    """Of the job that made the version, as it was planned; None where no figure is known."""
    estimate = (facts.job and facts.job.estimate) or {}
    if not estimate.get("co2_kg"):
        return None
    pre_trained = bool(facts.job and facts.job.spec["kind"] == "pretrain")
    return {
        "emissions": float(f"{1000 * estimate['co2_kg']:.4g}"),  # grams
        "source": "estimated by Anthesis' planner before the run, not measured",
        "training_type": "pre-training" if pre_trained else "fine-tuning",
        "hardware_used": f"{estimate['num_gpus']} ranks on {estimate['cluster']}",
    }


def _model_index(facts: Facts) -> list[dict[str, Any]]:
    results = [
        {
            "task": {"type": "text-generation", "name": "Text generation"},
            "dataset": {"type": row.dataset, "name": row.dataset} | ({"config": row.language} if row.language else {}),
            "metrics": [{"type": row.metric, "value": row.value, "name": _METRICS.get(row.metric, row.metric)}],
        }
        for row in facts.evaluations
    ]
    return [{"name": facts.model.name, "results": results}] if results else []
