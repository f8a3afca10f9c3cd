"""Who may do what: permissions, the roles that have them, and the tables in which services say what a call needs.

A table names every RPC of a service (or every route of the gateway). What has no entry keeps its server from starting.
"""

from collections.abc import Collection, Iterable, Mapping
from enum import StrEnum


class Permission(StrEnum):
    READ = "read"  # look at models, versions, aliases, datasets, jobs, deployments; download
    GENERATE = "generate"  # let models and tokenizers compute
    TRAIN = "train"  # upload, register, submit and cancel jobs, move aliases, deploy
    ADMIN = "admin"  # keys and the audit log: of the platform, or of one's project
    INTERNAL = "internal"  # what the platform's own services do for each other
    OPERATE = "operate"  # what is the whole platform's: projects, licences, garbage


ROLES: Mapping[str, frozenset[Permission]] = {
    "viewer": frozenset({Permission.READ}),
    "user": frozenset({Permission.READ, Permission.GENERATE}),
    "trainer": frozenset({Permission.READ, Permission.GENERATE, Permission.TRAIN}),
    "admin": frozenset(Permission),
    "service": frozenset({Permission.READ, Permission.GENERATE, Permission.INTERNAL}),  # a job asks what it measures
}

PLATFORM_ONLY = frozenset({Permission.INTERNAL, Permission.OPERATE})  # nothing that a project's key may

Access = Mapping[str, Permission]
"""RPC ("ListModels") or route ("GET /v1/models") -> what a caller needs."""


def rights(role: str, scopes: Collection[str], project: str = "") -> frozenset[Permission]:
    """What a key may do: all that its role may, or of that only its `scopes`. A role nobody knows may nothing.

    A service that acts for a project stays one; other keys of a project have nothing that is the platform's.
    """
    allowed = ROLES.get(role, frozenset())
    if project and role != "service":
        allowed -= PLATFORM_ONLY
    return frozenset(permission for permission in allowed if permission in scopes) if scopes else allowed


def roles_with(permission: Permission) -> list[str]:
    return [role for role, permissions in ROLES.items() if permission in permissions]


def check_complete(service: str, served: Iterable[str], table: Collection[str]) -> None:
    """Raise RuntimeError unless `table` has an entry for everything that `service` serves, and no other."""
    served = set(served)
    if missing := sorted(served - set(table)):
        raise RuntimeError(f"{service}: nobody says who may call {', '.join(missing)}; add them to its table of access")
    if unknown := sorted(set(table) - served):
        raise RuntimeError(f"{service}: its table of access names {', '.join(unknown)}, which it does not serve")
