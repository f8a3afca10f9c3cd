"""The JSON of OpenAI's completions, models and errors. Source: OpenAI's API reference, Completions (legacy)."""

import time
import uuid
from collections.abc import Iterable
from typing import Annotated, Any

import grpc
from anthesis.decoding import Vocabulary
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from services.common.errors import DomainError, NotFound
from services.gateway.completions import Completion, CompletionRequest
from services.gateway.generation import InvalidParameter, Piece, PlacedToken, Prompt, Sampling
from services.gateway.registry_client import ListedModel

Json = dict[str, Any]
DEFAULT_MAX_TOKENS = 16
MAX_LOGPROBS = 5
MAX_CHOICES = 128  # of all prompts of a request
MAX_STOPS = 4
_FINISH = {"STOP": "stop", "LENGTH": "length", "CANCELLED": "cancelled"}
_STATUS = {  # canonical code -> HTTP status, OpenAI's type, OpenAI's code
    grpc.StatusCode.INVALID_ARGUMENT: (400, "invalid_request_error", None),
    grpc.StatusCode.FAILED_PRECONDITION: (400, "invalid_request_error", None),
    grpc.StatusCode.UNAUTHENTICATED: (401, "invalid_request_error", "invalid_api_key"),
    grpc.StatusCode.PERMISSION_DENIED: (403, "invalid_request_error", "permission_denied"),
    grpc.StatusCode.NOT_FOUND: (404, "invalid_request_error", "model_not_found"),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (429, "rate_limit_error", "rate_limit_exceeded"),
    grpc.StatusCode.UNAVAILABLE: (503, "server_error", "service_unavailable"),
}


def _whole_characters(text: str) -> str:
    """JSON can spell half a surrogate pair, which UTF-8 and so protobuf cannot carry."""
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise ValueError("it holds half a surrogate pair, which is no character")
    return text


Text = Annotated[str, AfterValidator(_whole_characters)]


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    include_usage: bool | None = None


class CompletionBody(BaseModel):
    """Body of POST /v1/completions; None is what is left out. `top_k` and `repetition_penalty` are ours."""

    model_config = ConfigDict(strict=True, extra="forbid")

    model: Text
    prompt: Text | list[Text] | list[int] | list[list[int]] = ""
    max_tokens: int | None = Field(None, ge=0)
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    best_of: int | None = None
    seed: int | None = None
    stop: Text | list[Text] | None = None
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    echo: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    suffix: str | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    user: str | None = None

    def to_request(self) -> CompletionRequest:
        """Raises InvalidParameter for what is out of range or not offered here."""
        self._refuse_what_is_not_offered()
        prompts, num_choices = self._prompts(), self.n or 1
        if len(prompts) * num_choices > MAX_CHOICES:
            asked = f"{len(prompts)} prompts with n={num_choices}"
            raise InvalidParameter("prompt", f"{asked} make more than {MAX_CHOICES} choices; send fewer at a time")
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stops) > MAX_STOPS:
            raise InvalidParameter("stop", f"stop has {len(stops)} strings; give at most {MAX_STOPS}")
        return CompletionRequest(
            model=self.model,
            prompts=prompts,
            sampling=Sampling(
                temperature=self.temperature,
                top_k=self.top_k,
                top_p=self.top_p,
                repetition_penalty=self.repetition_penalty,
                seed=self.seed,
                logprobs=self.logprobs,
            ),
            max_tokens=DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens,
            num_choices=num_choices,
            stops=stops,
            echo=bool(self.echo),
        )

    def _prompts(self) -> list[Prompt]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        if not self.prompt:
            raise InvalidParameter("prompt", "prompt is an empty list; send a text, token ids, or a list of either")
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)

    def _refuse_what_is_not_offered(self) -> None:
        if self.suffix:
            raise InvalidParameter("suffix", "suffix is not supported: BLOOM writes from left to right only")
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise InvalidParameter("best_of", f"best_of={self.best_of} is not supported; leave it out and use n")
        for name in ("presence_penalty", "frequency_penalty"):
            if getattr(self, name):
                raise InvalidParameter(name, f"{name} is not supported; use repetition_penalty")
        if self.logit_bias:
            raise InvalidParameter("logit_bias", "logit_bias is not supported; leave it out")


class CompletionWriter:
    """Writes the answers to one request, whole or in chunks."""

    def __init__(self, completion: Completion) -> None:
        self._vocabulary = completion.model.vocabulary
        self._with_logprobs = completion.request.sampling.logprobs is not None
        self._prompt_tokens = completion.num_prompt_tokens
        self._completion_tokens = 0
        self._head: Json = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": completion.model.version,
        }

    def chunk(self, index: int, piece: Piece, *, with_usage: bool) -> Json:
        """One event of a stream. With usage asked for, all but the last say that they have none."""
        return {**self._head, "choices": [self._choice(index, piece)], **({"usage": None} if with_usage else {})}

    def usage_chunk(self) -> Json:
        return {**self._head, "choices": [], "usage": self._usage()}

    def whole(self, choices: Iterable[Piece]) -> Json:
        written = [self._choice(index, piece) for index, piece in enumerate(choices)]
        return {**self._head, "choices": written, "usage": self._usage()}

    def _choice(self, index: int, piece: Piece) -> Json:
        self._completion_tokens += piece.completion_tokens
        return {
            "index": index,
            "text": piece.text,
            "logprobs": _logprobs(self._vocabulary, piece.tokens) if self._with_logprobs else None,
            "finish_reason": _FINISH[piece.finish] if piece.finish else None,
        }

    def _usage(self) -> Json:
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": self._completion_tokens,
            "total_tokens": self._prompt_tokens + self._completion_tokens,
        }


def _logprobs(vocabulary: Vocabulary, tokens: Iterable[PlacedToken]) -> Json:
    tokens = list(tokens)
    return {
        "tokens": [_name(vocabulary, placed.token.id) for placed in tokens],
        "token_logprobs": [_finite(placed.token.logprob) for placed in tokens],
        "top_logprobs": [_top_logprobs(vocabulary, placed) for placed in tokens],
        "text_offset": [placed.text_offset for placed in tokens],
    }


def _top_logprobs(vocabulary: Vocabulary, placed: PlacedToken) -> dict[str, float | None] | None:
    """The most likely tokens and the token itself; None for the first of a prompt, which follows nothing."""
    token = placed.token
    if token.logprob is None:
        return None
    ranked = (*token.top, (token.id, token.logprob))
    return {_name(vocabulary, token_id): _finite(logprob) for token_id, logprob in ranked}


def _finite(logprob: float | None) -> float | None:
    """JSON has no infinity: OpenAI writes -9999 for what cannot be."""
    return None if logprob is None else max(logprob, -9999.0)


def _name(vocabulary: Vocabulary, token_id: int) -> str:
    """A token as OpenAI writes it: its text, or "bytes:\\xe4\\xba" for part of a character."""
    data = vocabulary.bytes_of(token_id)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def model_json(model: ListedModel) -> Json:
    return {"id": model.name, "object": "model", "created": model.created_s, "owned_by": "anthesis"}


def error_json(message: str, kind: str, *, param: str | None = None, code: str | None = None) -> Json:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def domain_error_json(error: DomainError) -> tuple[int, Json]:
    """HTTP status and body."""
    status, kind, code = _STATUS.get(error.status, (500, "server_error", None))
    param = "model" if isinstance(error, NotFound) else None
    if isinstance(error, InvalidParameter):
        param, code = error.param, error.code
    return status, error_json(str(error), kind, param=param, code=code)
