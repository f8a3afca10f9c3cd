"""What things may be called: the SDK's rules, which clients check before they send anything, and ids."""

import secrets
from datetime import UTC, datetime, timedelta

from anthesis import names

from services.common.errors import InvalidArgument

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def check_model_name(name: str) -> str:
    """Return `name`; raise InvalidArgument unless it may name a model: "bigscience/bloom-560m"."""
    try:
        return names.check_model_name(name)
    except ValueError as error:
        raise InvalidArgument(str(error)) from None


def check_name(kind: str, name: str) -> str:
    """Return `name`; raise InvalidArgument unless it may name a `kind` (alias, dataset, deployment)."""
    try:
        return names.check_name(kind, name)
    except ValueError as error:
        raise InvalidArgument(str(error)) from None


def new_id(prefix: str, now: datetime) -> str:
    """An unguessable id that sorts by creation time: "job-0643b1f2c4d5e0-9f3a61"."""
    return f"{id_at(prefix, now)}-{secrets.token_hex(4)}"


def id_at(prefix: str, time: datetime) -> str:
    """What ids made at `time` begin with: all that were made before sort below it."""
    microseconds = (time - _EPOCH) // timedelta(microseconds=1)
    return f"{prefix}-{min(max(0, microseconds), 16**14 - 1):014x}"
