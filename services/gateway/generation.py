"""The gateway's own words for a generation: what is asked, what a worker draws, what a client is shown."""

import math
from dataclasses import dataclass, field

from services.common.errors import InvalidArgument

MAX_TOP_LOGPROBS = 20
MAX_SEED = (1 << 64) - 1
MAX_COUNT = (1 << 32) - 1  # what the contract's uint32 carries
Prompt = str | list[int]
Ranked = tuple[tuple[int, float], ...]  # the most likely ids with their log-probabilities, best first


class InvalidParameter(InvalidArgument):
    """A parameter of a request is not what it may be. `code` is OpenAI's, where it has one for the case."""

    def __init__(self, param: str, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How tokens are drawn; None leaves the worker its default. Raises InvalidParameter with name, value and range."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    stop_ids: tuple[int, ...] = ()
    logprobs: int | None = None  # how many alternatives to report

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, 0 <= _of(self.temperature) < math.inf, "0 (greedy) or more")
        _check("top_k", self.top_k, 0 <= _of(self.top_k) <= MAX_COUNT, f"0 (off) to {MAX_COUNT}")
        _check("top_p", self.top_p, 0 < _of(self.top_p) <= 1, "above 0, at most 1")
        _check(
            "repetition_penalty",
            self.repetition_penalty,
            0 < _of(self.repetition_penalty) < math.inf,
            "above 0; 1 is off",
        )
        _check("seed", self.seed, 0 <= _of(self.seed) <= MAX_SEED, f"0 to {MAX_SEED}")
        _check("max_tokens", self.max_tokens, 1 <= _of(self.max_tokens) <= MAX_COUNT, f"1 to {MAX_COUNT}")
        _check("logprobs", self.logprobs, 0 <= _of(self.logprobs) <= MAX_TOP_LOGPROBS, f"0 to {MAX_TOP_LOGPROBS}")


def _of(value: float | None) -> float:
    """1, which every range includes, for what is unset."""
    return 1 if value is None else value


def _check(name: str, value: float | None, holds: bool, allowed: str) -> None:
    if not holds:
        raise InvalidParameter(name, f"{name}={value} is out of range; use {allowed}")


@dataclass(frozen=True, slots=True)
class Token:
    """One token that a worker drew or scored; log-probabilities are natural, None where not asked for."""

    id: int
    logprob: float | None = None
    top: Ranked = ()


@dataclass(frozen=True, slots=True)
class Drawn:
    """One message of a worker. `finish` is set in the last: "STOP", "LENGTH" or "CANCELLED"."""

    tokens: list[Token]
    finish: str | None = None


@dataclass(frozen=True, slots=True)
class PlacedToken:
    """A token and where its text starts, in code points from the start of the completion."""

    token: Token
    text_offset: int


@dataclass(slots=True)
class Piece:
    """Text that has become certain, and the tokens it is made of. The last one has `finish` and the count of tokens."""

    text: str = ""
    tokens: list[PlacedToken] = field(default_factory=list)
    finish: str | None = None
    completion_tokens: int = 0

    def extend(self, more: "Piece") -> None:
        """Append the piece that follows."""
        self.text += more.text
        self.tokens += more.tokens
        self.finish = more.finish
        self.completion_tokens = more.completion_tokens
