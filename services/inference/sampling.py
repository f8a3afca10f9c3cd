"""How a request wants its tokens drawn."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Literal

from services.common.errors import InvalidArgument

MAX_LOGPROBS = 20
MAX_SEED = (1 << 64) - 1
MAX_CHOICES = 128
MAX_PENALTY = 2.0  # presence and frequency, either side of 0, as in OpenAI's API
MAX_BIAS = 100.0  # on a logit, either side of 0, as in OpenAI's API
MAX_BIASED_IDS = 1024
MAX_SEQUENCES = 128  # bad words, stop sequences
MAX_SEQUENCE_IDS = 64  # in one of them

IdSequences = tuple[tuple[int, ...], ...]
Pooling = Literal["mean", "last"]  # of the hidden states after the last LayerNorm


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """Settings of one request. Raises InvalidArgument, naming parameter, value and remedy, for what is out of range
    or contradicts itself. Ids are checked against the vocabulary where that is known, in the service.

    What each filter does, and in which order they apply, stands in `sampler`.
    """

    seed: int  # the same seed gives the same ids whatever else is in the batch; choice i draws with `choice_seed`
    temperature: float = 1.0  # 0: greedy
    top_k: int = 0  # 0: off
    top_p: float = 1.0
    min_p: float = 0.0  # least probability, as a share of the likeliest token's
    typical_p: float = 1.0
    repetition_penalty: float = 1.0  # over prompt and output, as in Keskar et al. 2019 (CTRL)
    presence_penalty: float = 0.0  # taken from the logit of each id that the output has
    frequency_penalty: float = 0.0  # the same, times how often the output has it
    logit_bias: dict[int, float] = field(default_factory=dict)  # id -> what is added to its logit
    bad_words: IdSequences = ()  # none of these is ever completed
    min_tokens: int = 0  # no stop id is drawn, and no stop sequence ends generation, before so many tokens
    max_tokens: int = 64
    stop_ids: frozenset[int] = frozenset()  # generation ends after one of these
    stop_sequences: IdSequences = ()  # and after one of these
    n: int = 1  # choices
    best_of: int = 1  # choices drawn, of which the n with the highest mean log-probability are reported
    logprobs: int | None = None  # alternatives reported beside the drawn token; None: no log-probabilities
    prompt_logprobs: int | None = None  # the same of every prompt token but the first, which follows nothing

    def __post_init__(self) -> None:
        self._check_ranges()
        _check_sequences("bad_words", self.bad_words)
        _check_sequences("stop_sequences", self.stop_sequences)
        self._check_bias()
        self._check_contradictions()

    def ids(self) -> dict[str, frozenset[int]]:
        """All ids that are spoken of, by the parameter that does."""
        return {
            "logit_bias": frozenset(self.logit_bias),
            "bad_words": frozenset(chain.from_iterable(self.bad_words)),
            "stop_ids": self.stop_ids,
            "stop_sequences": frozenset(chain.from_iterable(self.stop_sequences)),
        }

    def may_be_banned(self) -> frozenset[int]:
        """Ids that some step may not draw."""
        last = frozenset(word[-1] for word in self.bad_words)
        return last | self.stop_ids if self.min_tokens else last

    def _check_ranges(self) -> None:
        for name, allowed, holds in (
            ("temperature", "0 (greedy) or more", 0 <= self.temperature < math.inf),
            ("top_k", "0 (off) or more", self.top_k >= 0),
            ("top_p", "above 0, at most 1", 0 < self.top_p <= 1),
            ("min_p", "0 (off) to 1", 0 <= self.min_p <= 1),
            ("typical_p", "above 0, at most 1", 0 < self.typical_p <= 1),
            ("repetition_penalty", "above 0 (1 is off)", 0 < self.repetition_penalty < math.inf),
            ("presence_penalty", f"-{MAX_PENALTY} to {MAX_PENALTY}", abs(self.presence_penalty) <= MAX_PENALTY),
            ("frequency_penalty", f"-{MAX_PENALTY} to {MAX_PENALTY}", abs(self.frequency_penalty) <= MAX_PENALTY),
            ("min_tokens", "0 or more", self.min_tokens >= 0),
            ("max_tokens", "1 or more", self.max_tokens >= 1),
            ("n", f"1 to {MAX_CHOICES}", 1 <= self.n <= MAX_CHOICES),
            ("best_of", f"1 to {MAX_CHOICES}", 1 <= self.best_of <= MAX_CHOICES),
            ("seed", f"0 to {MAX_SEED}", 0 <= self.seed <= MAX_SEED),
            ("logprobs", f"0 to {MAX_LOGPROBS}", 0 <= (self.logprobs or 0) <= MAX_LOGPROBS),
            ("prompt_logprobs", f"0 to {MAX_LOGPROBS}", 0 <= (self.prompt_logprobs or 0) <= MAX_LOGPROBS),
        ):
            if not holds:
                raise InvalidArgument(f"{name}={getattr(self, name)} is out of range; use {allowed}")

    def _check_bias(self) -> None:
        if len(self.logit_bias) > MAX_BIASED_IDS:
            raise InvalidArgument(f"logit_bias has {len(self.logit_bias)} ids; give at most {MAX_BIASED_IDS}")
        for token_id, bias in self.logit_bias.items():
            if not abs(bias) <= MAX_BIAS:
                raise InvalidArgument(
                    f"logit_bias of id {token_id} is {bias}, out of range; use -{MAX_BIAS} to {MAX_BIAS} "
                    "(bad_words bans an id altogether)"
                )

    def _check_contradictions(self) -> None:
        if self.best_of < self.n:
            raise InvalidArgument(f"best_of={self.best_of} is below n={self.n}; raise best_of or leave it out")
        if self.best_of > self.n and self.temperature == 0:
            raise InvalidArgument(
                f"best_of={self.best_of} with temperature=0: greedy choices are all the same; "
                "use a temperature above 0 or leave best_of out"
            )
        if self.min_tokens > self.max_tokens:
            raise InvalidArgument(
                f"min_tokens={self.min_tokens} is above max_tokens={self.max_tokens}; lower it or raise max_tokens"
            )


def choice_seed(seed: int, choice: int) -> int:
    """The seed of choice `choice` (from 0) of a request: its own for the first, SplitMix64 of both for the others."""
    return seed if choice == 0 else mix64(mix64(seed) ^ choice)


def mix64(state: int) -> int:
    """SplitMix64's output function: 64 bits to 64 bits, one to one. Source: Steele et al. 2014."""
    state = (state + 0x9E3779B97F4A7C15) & MAX_SEED
    state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & MAX_SEED
    state = (state ^ state >> 27) * 0x94D049BB133111EB & MAX_SEED
    return state ^ state >> 31


def _check_sequences(name: str, sequences: Sequence[Sequence[int]]) -> None:
    if len(sequences) > MAX_SEQUENCES:
        raise InvalidArgument(f"{name} has {len(sequences)} sequences; give at most {MAX_SEQUENCES}")
    for number, ids in enumerate(sequences):
        if not 1 <= len(ids) <= MAX_SEQUENCE_IDS:
            raise InvalidArgument(f"{name}[{number}] has {len(ids)} ids; give 1 to {MAX_SEQUENCE_IDS}")
