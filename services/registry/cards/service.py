"""Cards as people meet them: read, and written on."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from services.common.errors import Aborted, InvalidArgument
from services.registry import audit
from services.registry.aliases import resolve
from services.registry.cards.document import Section, parse, write, write_own
from services.registry.cards.facts import read_facts
from services.registry.cards.front_matter import write_front_matter
from services.registry.cards.sections import generated
from services.registry.database import Clock, Database, insert_if_absent, utc_now
from services.registry.projects.session import check_usable
from services.registry.tables import Model, ModelCard, ModelVersion
from services.registry.version_states import check_not_deleted, hold, lock_model


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    name: str  # of the model or the version
    front_matter: str  # YAML
    sections: list[Section]
    generation: int  # number of the changes of what people wrote
    update_time: datetime | None
    updated_by: str

    @property
    def markdown(self) -> str:
        """The whole README.md."""
        return write(self.front_matter, self.name, self.sections)


class Cards:
    def __init__(self, database: Database, clock: Clock = utc_now) -> None:
        self._database = database
        self._clock = clock

    async def get(self, name: str) -> Card:
        """A model's card, by its name, with its newest version; else that of the version that `name` means.

        Raises NotFound, FailedPrecondition.
        """
        async with self._database.read() as session:
            model = await session.get(Model, name)
            if model:
                return await _read(session, check_not_deleted(model), None)
            version = await resolve(session, name)
            return await _read(session, await session.get_one(Model, version.model), version)

    async def update(self, name: str, text: str, principal: str, if_generation: int | None = None) -> Card:
        """Replace what people wrote on the card of a model, or a version ("<model>@<number>").

        Raises Aborted when the card is not at `if_generation`; InvalidArgument for HTML, and for changes of what the
        registry makes, which would be lost; NotFound.
        """
        async with self._database.write() as session:
            version = await hold(session, name) if "@" in name else None
            model = await session.get_one(Model, version.model) if version else await lock_model(session, name)
            check_not_deleted(model)
            await check_usable(session, (Model, model.name))
            kept = await _lock(session, name, self._clock())
            if if_generation not in (None, kept.generation):
                raise Aborted(
                    f"the card of {name!r} is at generation {kept.generation}, changed by {kept.updated_by!r}, not at "
                    f"if_generation={if_generation}; get it again (`anthesis models card {name}`) and change that"
                )
            own = _check(text, await _read(session, model, version))
            if own != kept.text:
                kept.text, kept.generation = own, kept.generation + 1
                kept.update_time, kept.updated_by = self._clock(), principal
                kind = "version" if version else "model"
                audit.record(session, self._clock(), f"{kind}/{name}", f"card, generation {kept.generation}")
                await session.flush()
            return await _read(session, model, version)


async def _lock(session: AsyncSession, name: str, now: datetime) -> ModelCard:
    """The card's row, made when missing, nobody else's to change until the transaction ends."""
    await insert_if_absent(session, ModelCard, name=name, text="", generation=0, update_time=now, updated_by="")
    return await session.get_one(ModelCard, name, with_for_update=True, populate_existing=True)


async def _read(session: AsyncSession, model: Model, version: ModelVersion | None) -> Card:
    """The card of `version`; of `model` itself where that is None."""
    name = version.name if version else model.name
    newest = version or await _newest(session, model)
    facts = await read_facts(session, model, newest)
    made = generated(facts)
    kept = await session.get(ModelCard, name)
    own = parse(kept.text, name, list(made)).own if kept else {}
    of_model = await session.get(ModelCard, model.name) if version else None
    inherited = parse(of_model.text, name, list(made)).own if of_model else {}
    return Card(
        name=name,
        front_matter=write_front_matter(facts),
        sections=[
            Section(
                title=title,
                text=own.get(title, ""),
                inherited="" if own.get(title) else inherited.get(title, ""),
                generated=made.get(title, ""),
            )
            for title in dict.fromkeys([*made, *own, *inherited])
        ],
        generation=kept.generation if kept else 0,
        update_time=kept.update_time if kept and kept.generation else None,
        updated_by=kept.updated_by if kept else "",
    )


async def _newest(session: AsyncSession, model: Model) -> ModelVersion | None:
    """None: it has no weights yet."""
    query = select(ModelVersion).where(ModelVersion.name == f"{model.name}@{model.latest_version}")
    return await session.scalar(query) if model.latest_version else None


def _check(text: str, card: Card) -> str:
    """What people wrote in `text`, as it is kept. Raises InvalidArgument."""
    parsed = parse(text, card.name, [section.title for section in card.sections if section.generated])
    if parsed.front_matter and parsed.front_matter != card.front_matter.strip():
        raise InvalidArgument(
            "the front matter is made from what the registry knows, and is other than yours; leave it out, and change "
            f"tags by `anthesis models tag {card.name}`"
        )
    made = {(section.title, mark, body) for section in card.sections for mark, body in section.marked}
    for title, mark, body in parsed.marked:
        if (title, mark, body) not in made:
            raise InvalidArgument(
                f"section {title or 'before the first heading'!r}: what stands between the registry's marks was "
                "changed, or is made otherwise by now; leave it out and write outside of them"
            )
    return write_own(parsed.own)
