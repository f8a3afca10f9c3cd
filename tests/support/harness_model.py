"""A model of the harness that answers as told, and says what it was asked."""

from collections.abc import Callable, Sequence
from typing import Any

from lm_eval.api.model import LM

Answer = tuple[float, bool]  # log-likelihood, and whether each token was the likeliest


class Scripted(LM):
    def __init__(self, answer: Callable[[str, str], Answer] = lambda context, continuation: (-1.0, False)) -> None:
        super().__init__()
        self.asked: list[tuple[str, str]] = []
        self._answer = answer

    def loglikelihood(self, requests: Sequence[Any]) -> list[Answer]:
        self.asked += [request.args for request in requests]
        return [self._answer(*request.args) for request in requests]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        return [self._answer("", request.args[0])[0] for request in requests]

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        raise NotImplementedError
