"""The gateway as the harness's model: its `local-completions`, told of our tokenizer and our keys."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import requests
from lm_eval.models.openai_completions import LocalCompletionsAPI
from lm_eval.models.utils import postprocess_generated_text

from services.common.auth import PROJECT_HEADER
from services.trainer.encoder import Encoder
from services.trainer.failure import JobFailure
from services.trainer.harness.spec import HarnessSpec

PROMPTS = 16  # of a request
REQUESTS = 4  # at a time
MAX_LENGTH = 2048  # tokens of a question with its answer, as BLOOM was trained; what is longer loses its beginning
MAX_ANSWER = MAX_LENGTH // 2  # tokens of a text that answers
MAX_STOPS = 4  # that the gateway takes; of an answer the rest is cut off here
PRIORITY = 10  # behind whoever waits for an answer
ATTEMPTS = 8  # of a request: about 40 s
TIMEOUT_S = 600
ASK_AGAIN_S = 1.0

Headers = dict[str, str]
Answered = Callable[[int, int, int, float], None]
"""Told of each request's answers: how many, of how many tokens, of how many of these scored, with how many nats."""


def headers_for(spec: HarnessSpec, key: str) -> Headers:
    headers = {"Authorization": f"Bearer {key}"}
    return headers | ({PROJECT_HEADER: spec.project} if spec.project else {})


def wait_until_served(url: str, version: str, headers: Headers, patience_s: float) -> None:
    """Return once the gateway answers for the version. Raises JobFailure (NOT_SERVED) when it does not in time."""
    give_up = time.monotonic() + patience_s
    while reason := _refusal(url, version, headers):
        if time.monotonic() > give_up:
            remedy = f"deploy it first: `anthesis deploy {version}`"
            raise JobFailure("NOT_SERVED", f"the gateway at {url} does not serve {version}: {reason}; {remedy}")
        time.sleep(ASK_AGAIN_S)


def _refusal(url: str, version: str, headers: Headers) -> str:
    """Why the gateway does not answer for the version now; "": it does."""
    body: Any = {"model": version, "prompt": [1], "max_tokens": 1, "priority": PRIORITY}
    try:
        response = requests.post(f"{url}/v1/completions", json=body, headers=headers, timeout=TIMEOUT_S)
        return "" if response.ok else str(response.json()["error"]["message"])
    except (requests.RequestException, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"[:500]


class Gateway(LocalCompletionsAPI):  # type: ignore[misc]  # untyped
    """Scores and continues texts by a version that is served."""

    def __init__(self, spec: HarnessSpec, headers: Headers, encoder: Encoder, answered: Answered) -> None:
        super().__init__(
            base_url=f"{spec.gateway_url}/v1/completions",
            model=spec.version,
            tokenizer_backend="None",
            num_concurrent=REQUESTS,
            batch_size=PROMPTS,
            max_length=MAX_LENGTH,
            max_retries=ATTEMPTS,
            timeout=TIMEOUT_S,
            header=headers,
        )
        self.tokenizer = encoder
        self.tokenized_requests = True
        self._answered = answered
        self.num_requests = 0  # that the harness has asked for

    @property
    def prefix_token_id(self) -> int:
        """What a text without a context follows: <s>, as the harness has it of this tokenizer elsewhere."""
        found = self.tokenizer.id_of("<s>")
        return int(self.tokenizer.eos or 0) if found is None else int(found)

    def tok_encode(self, string: Any, *_: Any, **__: Any) -> Any:
        """Ids of a text, or of each of several."""
        return self.tokenizer.encode([string])[0] if isinstance(string, str) else self.tokenizer.encode(list(string))

    def _create_payload(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        payload: dict[str, Any] = super()._create_payload(*args, **kwargs) | {"priority": PRIORITY}
        if stops := payload.get("stop"):
            payload["stop"] = stops[:MAX_STOPS]
        return payload

    def _loglikelihood_tokens(self, requests: Any, **kwargs: Any) -> Any:
        self.num_requests += len(requests)
        return super()._loglikelihood_tokens(requests, **kwargs)

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        self.num_requests += len(requests)
        for request in requests:  # the harness leaves the question what an answer leaves, which may be nothing
            if request.args[1].get("max_gen_toks", 0) > MAX_ANSWER:
                request.args[1]["max_gen_toks"] = MAX_ANSWER
        texts = super().generate_until(requests, disable_tqdm)
        untils = [request.args[1].get("until") for request in requests]
        return [postprocess_generated_text(text, until, None) for text, until in zip(texts, untils, strict=True)]

    def parse_logprobs(self, outputs: Any, tokens: Any = None, ctxlens: Any = None, **kwargs: Any) -> Any:
        found = super().parse_logprobs(outputs, tokens, ctxlens, **kwargs)
        num_tokens = sum(map(len, tokens))
        self._answered(len(found), num_tokens, num_tokens - sum(ctxlens), -sum(answer[0] for answer in found))
        return found

    def parse_generations(self, outputs: Any, **kwargs: Any) -> Any:
        found: Sequence[str] = super().parse_generations(outputs, **kwargs)
        self._answered(len(found), _tokens(outputs), 0, 0.0)
        return found


def _tokens(outputs: Any) -> int:
    """That a request read and wrote."""
    return sum(int(output["usage"]["total_tokens"]) for output in (outputs if isinstance(outputs, list) else [outputs]))
