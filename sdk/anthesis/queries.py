"""What lists can be asked for: all that is said holds of all that is listed."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal, TypedDict

from anthesis.keys import to_timestamp
from anthesis.v1.registry_pb2 import LIST_ORDER_NEWEST, LIST_ORDER_OLDEST

_ORDERS = {"newest": LIST_ORDER_NEWEST, "oldest": LIST_ORDER_OLDEST}


class _Query(TypedDict, total=False):
    text: str  # whatever its case
    created_by: str
    since: datetime  # made then or later; a time without zone is local time
    until: datetime  # and before
    order: Literal["newest", "oldest"]


class ModelQuery(_Query, total=False):
    """`text`: in name, description or a tag. Listed by name unless `order` is given."""

    licence: str  # one of the model's, by id
    language: str
    tag: str
    base_model: str
    ready: bool  # only those that have weights
    show_deleted: bool


class VersionQuery(_Query, total=False):
    """`text`: in the name, a tag, or what the model is found by."""

    licence: str
    language: str  # of the model
    tag: str
    parent: str  # a version's name
    dataset: str
    show_deleted: bool


class JobQuery(_Query, total=False):
    """`text`: in the name of the model that it makes, or of its base."""

    output_model: str
    base: str  # a version's name
    dataset: str


def fields(query: Mapping[str, Any]) -> dict[str, Any]:
    """The request's fields. Raises ValueError for an order that there is not."""
    found = dict(query)
    since, until, order = found.pop("since", None), found.pop("until", None), found.pop("order", None)
    if order is not None and order not in _ORDERS:
        raise ValueError(f"order {order!r} is not known; use {' or '.join(_ORDERS)}")
    return found | {"start_time": to_timestamp(since), "end_time": to_timestamp(until), "order": _ORDERS.get(order)}
