"""The gateway's own words for a generation: what is asked, what a worker draws, what a client is shown."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from services.common.errors import InvalidArgument

MAX_TOP_LOGPROBS = 20
MAX_SEED = (1 << 64) - 1
MAX_COUNT = (1 << 32) - 1  # what the contract's uint32 carries
MAX_CHOICES = 128
MAX_PRIORITY = 100
MAX_BIAS = 100
Prompt = str | list[int]
IdSequences = tuple[tuple[int, ...], ...]
Ranked = tuple[tuple[int, float], ...]  # the most likely ids with their log-probabilities, best first


class InvalidParameter(InvalidArgument):
    """A parameter of a request is not what it may be. `code` is OpenAI's, where it has one for the case."""

    def __init__(self, param: str, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How tokens are drawn; None leaves the worker its default. Raises InvalidParameter with name, value and remedy."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    bad_words: IdSequences = ()
    seed: int | None = None
    min_tokens: int | None = None
    max_tokens: int | None = None
    stop_ids: tuple[int, ...] = ()
    stop_sequences: IdSequences = ()
    n: int | None = None
    best_of: int | None = None
    logprobs: int | None = None  # how many alternatives to report
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        for name, least, most, allowed in _RANGES:
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise InvalidParameter(name, f"{name}={value} is out of range; use {allowed}")
        for token_id, bias in self.logit_bias.items():
            if not -MAX_BIAS <= bias <= MAX_BIAS:
                message = f"logit_bias of id {token_id} is {bias}, out of range; use -{MAX_BIAS} to {MAX_BIAS}"
                raise InvalidParameter("logit_bias", f"{message} (bad_words bans an id altogether)")
        if self.best_of is not None and self.best_of < self.num_choices:
            message = f"best_of={self.best_of} is below n={self.num_choices}; raise best_of or leave it out"
            raise InvalidParameter("best_of", message)
        if self.best_of is not None and self.best_of > self.num_choices and self.temperature == 0:
            message = f"best_of={self.best_of} with temperature=0: greedy choices are all the same; use a temperature"
            raise InvalidParameter("best_of", f"{message} above 0 or leave best_of out")
        if self.min_tokens is not None and self.max_tokens is not None and self.min_tokens > self.max_tokens:
            message = (
                f"min_tokens={self.min_tokens} is above max_tokens={self.max_tokens}; lower it or raise max_tokens"
            )
            raise InvalidParameter("min_tokens", message)

    @property
    def num_choices(self) -> int:
        """Choices that are reported."""
        return self.n or 1

    @property
    def num_drawn(self) -> int:
        """Choices of which these are the best."""
        return self.best_of or self.num_choices


_TINY, _HUGE = math.ulp(0.0), math.nextafter(math.inf, 0)
_RANGES = (
    ("temperature", 0, _HUGE, "0 (greedy) or more"),
    ("top_k", 0, MAX_COUNT, f"0 (off) to {MAX_COUNT}"),
    ("top_p", _TINY, 1, "above 0, at most 1"),
    ("min_p", 0, 1, "0 (off) to 1"),
    ("typical_p", _TINY, 1, "above 0, at most 1"),
    ("repetition_penalty", _TINY, _HUGE, "above 0; 1 is off"),
    ("presence_penalty", -2, 2, "-2 to 2"),
    ("frequency_penalty", -2, 2, "-2 to 2"),
    ("seed", 0, MAX_SEED, f"0 to {MAX_SEED}"),
    ("min_tokens", 0, MAX_COUNT, f"0 to {MAX_COUNT}"),
    ("max_tokens", 1, MAX_COUNT, f"1 to {MAX_COUNT}"),
    ("n", 1, MAX_CHOICES, f"1 to {MAX_CHOICES}"),
    ("best_of", 1, MAX_CHOICES, f"1 to {MAX_CHOICES}"),
    ("logprobs", 0, MAX_TOP_LOGPROBS, f"0 to {MAX_TOP_LOGPROBS}"),
    ("prompt_logprobs", 0, MAX_TOP_LOGPROBS, f"0 to {MAX_TOP_LOGPROBS}"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """Whose request it is, how it queues, and for how long it is awaited."""

    client: str = ""  # opaque; clients get equal shares of a worker
    priority: int = 0  # lower runs first
    timeout_s: float | None = None

    def __post_init__(self) -> None:
        if not -MAX_PRIORITY <= self.priority <= MAX_PRIORITY:
            message = f"priority={self.priority} is out of range; use {-MAX_PRIORITY} (first) to {MAX_PRIORITY}"
            raise InvalidParameter("priority", message)


ANONYMOUS = Caller()


@dataclass(frozen=True, kw_only=True, slots=True)
class Pooling:
    """How hidden states become a vector: "mean" or "last" token's, and whether it gets length 1."""

    kind: str = "mean"
    normalize: bool = True


@dataclass(frozen=True, slots=True)
class Token:
    """One token that a worker drew or scored; log-probabilities are natural, None where not asked for."""

    id: int
    logprob: float | None = None
    top: Ranked = ()


@dataclass(frozen=True, slots=True)
class Drawn:
    """One message of a worker, on one choice. `finish` is set in its last: "STOP", "LENGTH" or "CANCELLED"."""

    tokens: list[Token]
    finish: str | None = None
    choice: int = 0
    prompt: list[Token] = field(default_factory=list)  # where asked for, in a message of its own before all others


@dataclass(frozen=True, slots=True)
class PlacedToken:
    """A token and where its text starts, in code points from the start of the completion."""

    token: Token
    text_offset: int


@dataclass(slots=True)
class Piece:
    """Text of a choice that has become certain, and the tokens it is made of. The choice's last one has `finish` and
    the count of tokens."""

    text: str = ""
    tokens: list[PlacedToken] = field(default_factory=list)
    finish: str | None = None
    completion_tokens: int = 0
    choice: int = 0
    prompt: list[Token] = field(default_factory=list)  # as in `Drawn`

    def extend(self, more: "Piece") -> None:
        """Append the piece that follows."""
        self.text += more.text
        self.tokens += more.tokens
        self.finish = more.finish
        self.completion_tokens = more.completion_tokens
