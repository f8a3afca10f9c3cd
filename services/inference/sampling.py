"""How a request wants its tokens drawn."""

import math
from dataclasses import dataclass

from services.common.errors import InvalidArgument

MAX_LOGPROBS = 20
MAX_SEED = (1 << 64) - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """Settings of one request. Raises InvalidArgument, naming parameter, value and range, when one is out of range."""

    seed: int  # the same seed gives the same ids whatever else is in the batch
    temperature: float = 1.0  # 0: greedy
    top_k: int = 0  # 0: off
    top_p: float = 1.0
    repetition_penalty: float = 1.0  # over prompt and output, as in Keskar et al. 2019 (CTRL)
    max_tokens: int = 64
    stop_ids: frozenset[int] = frozenset()  # generation ends after one of these
    logprobs: int | None = None  # alternatives reported beside the drawn token; None: no log-probabilities

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, "0 or more", 0 <= self.temperature < math.inf)
        _check("top_k", self.top_k, "0 (off) or more", self.top_k >= 0)
        _check("top_p", self.top_p, "above 0, at most 1", 0 < self.top_p <= 1)
        _check(
            "repetition_penalty", self.repetition_penalty, "above 0 (1 is off)", 0 < self.repetition_penalty < math.inf
        )
        _check("max_tokens", self.max_tokens, "1 or more", self.max_tokens >= 1)
        _check("seed", self.seed, f"0 to {MAX_SEED}", 0 <= self.seed <= MAX_SEED)
        if self.logprobs is not None:
            _check("logprobs", self.logprobs, f"0 to {MAX_LOGPROBS}", 0 <= self.logprobs <= MAX_LOGPROBS)


def _check(name: str, value: float, allowed: str, holds: bool) -> None:
    if not holds:
        raise InvalidArgument(f"{name}={value} is out of range; use {allowed}")
