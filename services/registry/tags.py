"""Tags: labels by which people find models and versions."""

import re
import unicodedata
from collections.abc import Iterable

from sqlalchemy.ext.asyncio import AsyncSession

from services.common.errors import InvalidArgument
from services.registry import audit
from services.registry.database import Clock, Database, utc_now
from services.registry.tables import Model, ModelVersion
from services.registry.text import searchable
from services.registry.version_states import check_not_deleted, check_ready, lock_model, lock_version

MAX_TAGS = 20
MAX_BYTES = 64  # of a tag, in UTF-8
_TAG = re.compile(r"\w[\w.:+/-]*")


def normal_tag(tag: str) -> str:
    """The one way in which a tag is written: "Gold Standard" -> "gold-standard". Raises InvalidArgument."""
    normal = "-".join(unicodedata.normalize("NFKC", tag).casefold().split())
    if not _TAG.fullmatch(normal) or len(normal.encode(errors="replace")) > MAX_BYTES:
        raise InvalidArgument(
            f"tag {tag[:MAX_BYTES]!r} is not allowed; use letters and digits of any script and '_.:+/-', starting "
            f"with a letter, digit or '_', at most {MAX_BYTES} bytes"
        )
    return normal


def check_tags(tags: Iterable[str]) -> list[str]:
    """`tags` as they are kept: normal, sorted, each once. Raises InvalidArgument."""
    kept = sorted(set(map(normal_tag, tags)))
    if len(kept) > MAX_TAGS:
        raise InvalidArgument(f"{len(kept)} tags are too many; keep at most {MAX_TAGS}, or remove some")
    return kept


class Tags:
    def __init__(self, database: Database, clock: Clock = utc_now) -> None:
        self._database = database
        self._clock = clock

    async def update(self, name: str, add: Iterable[str], remove: Iterable[str]) -> list[str]:
        """Change the tags of a model, or of a version ("<model>@<number>"); return all it has then.

        Raises InvalidArgument, NotFound.
        """
        added, removed = set(map(normal_tag, add)), set(map(normal_tag, remove))
        if both := sorted(added & removed):
            raise InvalidArgument(f"tag {both[0]!r} is to be added and removed; say one of the two")
        async with self._database.write() as session:
            row = await _lock(session, name)
            tags = check_tags((set(row.tags) | added) - removed)
            if tags != row.tags:
                row.tags = tags
                if isinstance(row, Model):
                    row.search_text = searchable(row.name, row.description, *tags)
                kind = "model" if isinstance(row, Model) else "version"
                audit.record(session, self._clock(), f"{kind}/{name}", f"tags {', '.join(tags)}")
        return tags


async def _lock(session: AsyncSession, name: str) -> Model | ModelVersion:
    if "@" in name:
        return check_ready(await lock_version(session, name))
    return check_not_deleted(await lock_model(session, name))
