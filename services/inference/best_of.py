"""The best of several choices."""

from statistics import fmean

import msgspec

from services.inference.messages import Token
from services.inference.sampling import SamplingParams


class BestOf:
    """Holds back the tokens of `best_of` choices until all have ended, then gives the `n` likeliest, best first.

    Choices are ranked by the mean log-probability of their tokens; of equals the first drawn comes first.
    """

    def __init__(self, sampling: SamplingParams) -> None:
        self._num_reported = sampling.n
        self._num_open = sampling.best_of
        self._with_logprobs = sampling.logprobs is not None
        self._choices: list[list[Token]] = [[] for _ in range(sampling.best_of)]

    def add(self, token: Token) -> list[Token]:
        """Take the next token of a choice; return what can be sent: nothing until the last choice ends."""
        self._choices[token.choice].append(token)
        self._num_open -= token.finish is not None
        if self._num_open:
            return []
        best = sorted(self._choices, key=_mean_logprob, reverse=True)[: self._num_reported]
        return [self._reported(token, choice) for choice, tokens in enumerate(best) for token in tokens]

    def _reported(self, token: Token, choice: int) -> Token:
        logprob = token.logprob if self._with_logprobs else None
        return msgspec.structs.replace(token, choice=choice, logprob=logprob)


def _mean_logprob(tokens: list[Token]) -> float:
    return fmean(token.logprob for token in tokens if token.logprob is not None)
