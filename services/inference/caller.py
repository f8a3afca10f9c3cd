"""Who asks, how urgent it is, and for how long the answer is awaited."""

from dataclasses import dataclass

from services.common.errors import DeadlineExceeded, InvalidArgument

MAX_PRIORITY = 100
MAX_CLIENT_CHARS = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """Raises InvalidArgument for a value out of range, DeadlineExceeded when no time is left."""

    priority: int = 0  # lower runs first
    client: str = ""  # clients get equal shares; "" is one client
    deadline_s: float | None = None  # from now; None: none

    def __post_init__(self) -> None:
        if not -MAX_PRIORITY <= self.priority <= MAX_PRIORITY:
            raise InvalidArgument(
                f"priority={self.priority} is out of range; use {-MAX_PRIORITY} (first) to {MAX_PRIORITY}"
            )
        if len(self.client) > MAX_CLIENT_CHARS:
            raise InvalidArgument(f"client has {len(self.client)} characters; use at most {MAX_CLIENT_CHARS}")
        if self.deadline_s is not None and self.deadline_s <= 0:
            raise DeadlineExceeded("the deadline had passed when the call came; allow it more time")


ANONYMOUS = Caller()
