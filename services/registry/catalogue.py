"""The published models of the BLOOM family: known from the start, their weights imported by who has them."""

import json
from dataclasses import dataclass
from pathlib import Path

from bloom.config import BloomConfig
from services.registry.database import Clock, Database, insert_if_absent, utc_now
from services.registry.tables import Model
from services.registry.text import searchable

DATA = Path(__file__).with_name("catalogue.json")
_PROMPTS = {
    "xP3": "English prompts for tasks in 46 languages",
    "xP3mt": "prompts translated by machine for tasks in 46 languages",
    "P3": "English tasks only",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedModel:
    name: str
    description: str
    licence: str
    languages: list[str]
    config: BloomConfig
    base: str  # "": pre-trained from scratch


def read_catalogue() -> list[PublishedModel]:
    data = json.loads(DATA.read_text())
    languages = [*data["natural_languages"], *data["programming_languages"]]
    return [
        PublishedModel(
            name=entry["name"],
            description=_describe(entry),
            licence=data["licence"],
            languages=languages,
            config=BloomConfig.preset(entry["preset"]),
            base=entry.get("base", ""),
        )
        for entry in data["models"]
    ]


def _describe(entry: dict[str, str]) -> str:
    if "base" not in entry:
        return f"BLOOM {entry['preset']}: pre-trained on ROOTS, 46 natural and 13 programming languages"
    tuned_on = entry["tuned_on"]
    return f"BLOOMZ {entry['preset']}: {entry['base']} tuned on {tuned_on} ({_PROMPTS[tuned_on]})"


async def seed_catalogue(database: Database, clock: Clock = utc_now) -> None:
    """Put the catalogue's models into the database; those that are there stay as they are."""
    async with database.write() as session:
        for published in read_catalogue():
            await insert_if_absent(
                session,
                Model,
                name=published.name,
                description=published.description,
                licence=published.licence,
                languages=published.languages,
                config_json=json.dumps(published.config.to_hf(), indent=2, sort_keys=True),
                base_model=published.base,
                in_catalogue=True,
                parameters=published.config.parameters,
                create_time=clock(),
                search_text=searchable(published.name, published.description),
            )
