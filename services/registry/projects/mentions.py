"""Which tables a statement mentions: in joins, subqueries, aliases, EXISTS and CTEs, or by a column alone.

Rather too many than too few: a statement that holds what is not looked into counts as one that mentions every table.
"""

from typing import Any

from sqlalchemy import ColumnElement, Executable, FromClause, TableClause
from sqlalchemy.orm.context import FromStatement
from sqlalchemy.sql.elements import TextClause
from sqlalchemy.sql.selectable import TextualSelect

_OPAQUE = (TextClause, TextualSelect, FromStatement)  # tables are named in a string there


def mentioned_tables(statement: Executable) -> frozenset[str] | None:
    """Their names; None: perhaps any, where there is text, or options, which may load what is not mentioned."""
    if statement._with_options:
        return None
    names: set[str] = set()
    seen: dict[int, Any] = {}  # by id; kept, so that no other one gets the same
    stack: list[Any] = [statement]
    while stack:
        element = stack.pop()
        if isinstance(element, _OPAQUE):
            return None
        if isinstance(element, TableClause):
            names.add(element.name)
        elif id(element) not in seen:
            seen[id(element)] = element
            stack.extend(element.get_children())
            if isinstance(element, ColumnElement) and isinstance(table := getattr(element, "table", None), FromClause):
                stack.append(table)
    return frozenset(names)
