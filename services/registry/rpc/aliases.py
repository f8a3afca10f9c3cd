"""Aliases <-> messages."""

from datetime import datetime
from typing import Any

from anthesis.v1 import registry_pb2

from services.common.auth import current_principal
from services.registry import tables
from services.registry.alias_changes import NewChange
from services.registry.rpc.messages import read_time, timestamp


def alias(row: tables.Alias) -> registry_pb2.Alias:
    return registry_pb2.Alias(
        name=row.name,
        project=row.project,
        version=row.version or "",
        update_time=timestamp(row.update_time),
        generation=row.generation,
    )


def alias_change(row: tables.AliasChange) -> registry_pb2.AliasChange:
    return registry_pb2.AliasChange(
        alias=row.alias,
        generation=row.generation,
        kind=registry_pb2.AliasChangeKind.Value(f"ALIAS_CHANGE_KIND_{row.kind}"),
        version=row.version or "",
        time=timestamp(row.time),
        principal=row.principal,
        reason=row.reason,
        restored_generation=row.restored_generation or 0,
        overridden=row.overridden,
    )


def new_change(request: Any) -> NewChange:
    """By who calls."""
    return NewChange(
        principal=current_principal().name,
        reason=request.reason,
        if_generation=request.if_generation if request.HasField("if_generation") else None,
        override_gate=getattr(request, "override_gate", False),  # SetAlias alone asks the gate
    )


def time_asked(request: registry_pb2.ResolveAliasRequest) -> datetime | None:
    """None: now. Raises InvalidArgument for what is no time."""
    return read_time(request.at, "at") if request.HasField("at") else None
