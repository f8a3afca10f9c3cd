"""The JSON of OpenAI's completions and models. Source: OpenAI's API reference, Completions (legacy).

Fields that OpenAI lacks are named as vLLM's server names them, for clients that know that one.
"""

import time
import uuid
from collections.abc import Iterable
from typing import Annotated, Any

from anthesis.decoding import Vocabulary
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from services.gateway.completions import Completion, CompletionRequest
from services.gateway.generation import Caller, InvalidParameter, Piece, PlacedToken, Prompt, Sampling
from services.gateway.registry_client import ListedModel

Json = dict[str, Any]
DEFAULT_MAX_TOKENS = 16
MAX_LOGPROBS = 5
MAX_CHOICES = 128  # of all prompts of a request
MAX_STOPS = 4
_FINISH = {"STOP": "stop", "LENGTH": "length", "CANCELLED": "cancelled"}


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
    """Body of POST /v1/completions; None is what is left out. What follows `user` is not OpenAI's."""

    model_config = ConfigDict(strict=True, extra="forbid")

    model: Text
    prompt: Text | list[Text] | list[int] | list[list[int]] = ""
    max_tokens: int | None = Field(None, ge=0)
    temperature: float | None = None
    top_p: float | None = None
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
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    stop_token_ids: list[int] | None = None
    bad_words: list[Text] | None = None
    ignore_eos: bool | None = None
    priority: int | None = None

    def to_request(self, client: str) -> CompletionRequest:
        """Raises InvalidParameter for what is out of range, contradicts itself or is not offered here."""
        if self.suffix:
            raise InvalidParameter("suffix", "suffix is not supported: BLOOM writes from left to right only")
        prompts = as_prompts("prompt", self.prompt)
        sampling = self._sampling()
        if len(prompts) * sampling.num_drawn > MAX_CHOICES:
            asked = f"{len(prompts)} prompts with {sampling.num_drawn} answers each"
            raise InvalidParameter("prompt", f"{asked} make more than {MAX_CHOICES} choices; send fewer at once")
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stops) > MAX_STOPS:
            raise InvalidParameter("stop", f"stop has {len(stops)} strings; give at most {MAX_STOPS}")
        return CompletionRequest(
            model=self.model,
            prompts=prompts,
            sampling=sampling,
            with_output=self.max_tokens != 0,
            stops=stops,
            bad_words=self.bad_words or (),
            ignore_eos=bool(self.ignore_eos),
            echo=bool(self.echo),
            caller=Caller(client=client, priority=self.priority or 0),
        )

    def _sampling(self) -> Sampling:
        return Sampling(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            typical_p=self.typical_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias={_token_id(name): bias for name, bias in (self.logit_bias or {}).items()},
            seed=self.seed,
            min_tokens=self.min_tokens,
            max_tokens=DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens or None,
            stop_ids=tuple(self.stop_token_ids or ()),
            n=self.n,
            best_of=self.best_of,
            logprobs=self.logprobs,
        )


def as_prompts(param: str, given: str | list[str] | list[int] | list[list[int]]) -> list[Prompt]:
    """A text, ids, or a list of either as a list. Raises InvalidParameter when it is empty."""
    if isinstance(given, str):
        return [given]
    if not given:
        raise InvalidParameter(param, f"{param} is an empty list; send a text, token ids, or a list of either")
    if isinstance(given[0], int):
        return [given]
    return list(given)


def _token_id(name: str) -> int:
    if not name.isdecimal():
        raise InvalidParameter("logit_bias", f"logit_bias has the key {name!r}, which is no token id; use ids")
    return int(name)


class CompletionWriter:
    """Writes the answers to one request, whole or in chunks."""

    def __init__(self, completion: Completion) -> None:
        self._vocabulary = completion.model.vocabulary
        self._with_logprobs = completion.sampling.logprobs is not None
        self._prompt_tokens = completion.num_prompt_tokens
        self._completion_tokens = 0
        self._head: Json = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": completion.model.version,
        }

    def chunk(self, piece: Piece, *, with_usage: bool) -> Json:
        """One event of a stream. With usage asked for, all but the last say that they have none."""
        return {**self._head, "choices": [self._choice(piece.choice, piece)], **({"usage": None} if with_usage else {})}

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
