"""Lists in pages. A token names the last row seen, so rows that come or go in between neither repeat nor vanish."""

import base64
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from sqlalchemy import Integer, Select, literal, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from services.common.errors import InvalidArgument
from services.registry.tables import UtcDateTime

DEFAULT_PAGE = 50
MAX_PAGE = 200
MAX_ID = 2**31 - 1
Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class PageRequest:
    size: int = 0  # 0: the default; more than the maximum: the maximum
    token: str = ""  # "": the first page


@dataclass(frozen=True, slots=True)
class Page(Generic[Row]):
    rows: list[Row]
    next_token: str  # "": this is the last page


async def read_page(
    session: AsyncSession,
    query: Select[Row],
    key: InstrumentedAttribute[Any],
    request: PageRequest,
    *,
    scope: str,
    newest_first: bool = False,
    first: InstrumentedAttribute[datetime] | None = None,
    same: InstrumentedAttribute[Any] | None = None,
    keys_first: bool = False,
) -> Page[Row]:
    """One page of `query`, ordered by the unique column `key`. `scope` tells one list's tokens from another's.

    `first`: a time to order by before `key`. `same`: a joined table's column that equals `key`, whose index has the
    rows in order. `keys_first`, without `first`: find the keys, then their rows, so that wide rows are neither read nor
    sorted to be left out. Raises InvalidArgument for a token that this list has not given out.
    """
    size = min(request.size or DEFAULT_PAGE, MAX_PAGE)
    names = [key.key] if first is None else [first.key, key.key]
    columns = [same or key] if first is None else [first, key]
    if request.token:
        last = _decode(request.token, scope, columns)
        place = tuple_(*columns)
        seen = tuple_(*(literal(value, column.type) for value, column in zip(last, columns, strict=True)))
        query = query.where(place < seen if newest_first else place > seen)
    order = [column.desc() if newest_first else column.asc() for column in columns]
    query = query.order_by(*order).limit(size + 1)
    if keys_first:
        keys = list(await session.scalars(query.with_only_columns(columns[-1])))
        query = select(key.class_).where(key.in_(keys)).order_by(key.desc() if newest_first else key.asc())
    rows = list(await session.scalars(query))
    more = len(rows) > size
    rows = rows[:size]
    return Page(rows, _encode(scope, [getattr(rows[-1], name) for name in names]) if more else "")


def _encode(scope: str, last: list[Any]) -> str:
    plain = [value.isoformat() if isinstance(value, datetime) else value for value in last]
    return base64.urlsafe_b64encode(json.dumps([scope, *plain]).encode()).decode()


def _decode(token: str, scope: str, columns: list[InstrumentedAttribute[Any]]) -> list[Any]:
    try:
        found, *last = json.loads(base64.urlsafe_b64decode(token.encode()))
        values = [_read(value, column) for value, column in zip(last, columns, strict=True)]
    except (ValueError, TypeError, RecursionError):
        found, values = None, []
    if found != scope:
        raise InvalidArgument(f"page_token {token[:40]!r} is not from this list; leave it empty to start over")
    return values


def _read(value: Any, column: InstrumentedAttribute[Any]) -> Any:
    """Raises ValueError, TypeError for what the column cannot hold."""
    if isinstance(column.type, Integer):
        if type(value) is not int or abs(value) > MAX_ID:
            raise ValueError
        return value
    if not isinstance(value, str):
        raise TypeError
    if not isinstance(column.type, UtcDateTime):
        return value
    time = datetime.fromisoformat(value)
    return time if time.tzinfo else time.replace(tzinfo=UTC)
