"""What a dataset is called: "udhr" means its newest version, "udhr@2" that one. What refers to one for good pins it."""

from collections.abc import Sequence
from functools import cache

from sqlalchemy import Select, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from services.common.errors import InvalidArgument, NotFound
from services.registry.tables import Dataset


@cache  # to make an alias and a statement with it costs more than to ask
def newest_datasets() -> Select[Dataset]:
    """The newest version of each."""
    later = aliased(Dataset)
    is_newest = ~select(later.name).where(later.dataset == Dataset.dataset, later.number > Dataset.number).exists()
    return select(Dataset).where(is_newest)


async def find_newest(session: AsyncSession, dataset: str) -> Dataset | None:
    """The newest version of a dataset, if there is one."""
    query = select(Dataset).where(Dataset.dataset == dataset).order_by(Dataset.number.desc()).limit(1)
    return (await session.scalars(query)).one_or_none()


async def find_dataset(session: AsyncSession, name: str) -> Dataset:
    """Raises NotFound."""
    return (await check_datasets_exist(session, [name]))[0]


async def check_datasets_exist(session: AsyncSession, names: Sequence[str]) -> list[Dataset]:
    """The datasets called `names`, in that order. Raises NotFound, InvalidArgument for one named twice."""
    found: dict[str, Dataset] = {}
    if pinned := [name for name in names if "@" in name]:
        found |= {row.name: row for row in await session.scalars(select(Dataset).where(Dataset.name.in_(pinned)))}
    if plain := [name for name in names if "@" not in name]:
        newest = newest_datasets().where(Dataset.dataset.in_(plain))
        found |= {row.dataset: row for row in await session.scalars(newest)}
    if missing := [name for name in names if name not in found]:
        raise no_dataset(missing[0])
    rows = [found[name] for name in names]
    if len({row.name for row in rows}) != len(rows):
        raise InvalidArgument(f"datasets {', '.join(names)[:500]} name one twice; name each once")
    return rows


def no_dataset(name: str) -> NotFound:
    return NotFound(f"no dataset {name[:200]!r}; upload it: `anthesis datasets upload`")
