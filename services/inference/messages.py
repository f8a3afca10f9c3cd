"""What the worker and its engine processes tell each other: msgspec structs over a local ZeroMQ socket."""

from typing import Any, Literal

import msgspec

from services.inference.config import EngineConfig
from services.inference.sampling import SamplingParams


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Encoded as a tagged array: several are sent for every token."""


# worker -> engine


class Start(Message, frozen=True):
    """The first message: what to serve, and how."""

    model_dir: str
    num_token_ids: int  # of the tokenizer; ids from here on are never drawn
    config: EngineConfig


class Request(Message, frozen=True, kw_only=True):
    """What every request says of itself, whatever it asks for."""

    priority: int = 0  # lower runs first, -100 to 100
    client: str = ""  # requests of one client share with those of others as one; "" is a client too
    deadline_s: float | None = None  # left when it was sent; past it the request is dropped


class Generate(Request, frozen=True):
    """Answered with `Token`s, after a `PromptLogprobs` where those are asked for."""

    request_id: int
    prompt_ids: list[int]
    sampling: SamplingParams


class Score(Request, frozen=True):
    """Answered with `Scored`."""

    request_id: int
    context_ids: list[int]
    target_ids: list[int]


class Embed(Request, frozen=True):
    """Answered with `Embedded`."""

    request_id: int
    ids: list[int]
    pooling: Literal["mean", "last"]  # of the hidden states after the last LayerNorm
    normalize: bool  # to length 1


class Abort(Message, frozen=True):
    request_id: int


class Stop(Message, frozen=True):
    """End the process; what is under way is lost."""


# engine -> worker


class Ready(Message, frozen=True):
    """The model is loaded."""

    device: str
    dtype: str
    max_sequence_tokens: int
    num_blocks: int
    block_size: int


class LoadFailed(Message, frozen=True):
    error: str


class Token(Message, frozen=True):
    """One drawn token, and with a choice's last one why it ended ("STOP", "LENGTH").

    The request has ended when all its `n` choices have.
    """

    request_id: int
    id: int
    logprob: float | None = None
    top_logprobs: list[tuple[int, float]] = []
    finish: str | None = None
    num_cached_tokens: int = 0  # set with `finish`
    choice: int = 0  # 0 to n - 1; with best_of > n the best first


class PromptLogprobs(Message, frozen=True):
    """Of every prompt token but the first: its log-probability, and the likeliest ids in its place with theirs."""

    request_id: int
    logprobs: list[float]
    top_logprobs: list[list[tuple[int, float]]]


class Scored(Message, frozen=True):
    """Of each target: its log-probability, and the likeliest id in its place with that one's."""

    request_id: int
    logprobs: list[float]
    best: list[tuple[int, float]]


class Embedded(Message, frozen=True):
    """The pooled hidden states, as many as the model is wide."""

    request_id: int
    values: list[float]


class Refused(Message, frozen=True):
    """The request has ended without a result: the queue is full, its deadline has passed, it can never fit."""

    request_id: int
    error: str
    status: Literal["RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "INVALID_ARGUMENT"] = "RESOURCE_EXHAUSTED"
    retry_delay_s: float | None = None  # with RESOURCE_EXHAUSTED: when there may be room


class Stats(Message, frozen=True):
    num_running: int = 0  # sequences: each choice is one
    num_waiting: int = 0
    num_blocks: int = 0
    num_free_blocks: int = 0
    num_preemptions: int = 0  # since the start, as the next two
    num_prompt_tokens: int = 0  # of requests that were admitted
    num_prefix_hit_tokens: int = 0  # of those, answered by the prefix cache
    step_s: float = 0.0  # the last step
    tokens_per_s: float = 0.0  # drawn, over the last seconds


Event = Token | PromptLogprobs | Scored | Embedded | Refused


class StepDone(Message, frozen=True):
    """Everything that one step, or what arrived before it, brought about."""

    events: list[Event]
    stats: Stats


ToEngine = Start | Generate | Score | Embed | Abort | Stop
ToWorker = Ready | LoadFailed | StepDone

_encoder = msgspec.msgpack.Encoder()
_to_engine: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
_to_worker: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)


def encode(message: Any) -> bytes:
    return _encoder.encode(message)


def decode_to_engine(data: bytes) -> ToEngine:
    return _to_engine.decode(data)


def decode_to_worker(data: bytes) -> ToWorker:
    return _to_worker.decode(data)
