"""What the worker and its engine processes tell each other: msgspec structs over a local ZeroMQ socket."""

from typing import Any

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


class Generate(Message, frozen=True):
    request_id: int
    prompt_ids: list[int]
    sampling: SamplingParams


class Score(Message, frozen=True):
    request_id: int
    context_ids: list[int]
    target_ids: list[int]


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
    """One drawn token, and with the last one why generation ended ("STOP", "LENGTH")."""

    request_id: int
    id: int
    logprob: float | None = None
    top_logprobs: list[tuple[int, float]] = []
    finish: str | None = None
    num_cached_tokens: int = 0  # set with `finish`


class Scored(Message, frozen=True):
    """Of each target: its log-probability, and the likeliest id in its place with that one's."""

    request_id: int
    logprobs: list[float]
    best: list[tuple[int, float]]


class Refused(Message, frozen=True):
    """The queue is full."""

    request_id: int
    error: str


class Stats(Message, frozen=True):
    num_running: int = 0
    num_waiting: int = 0
    num_blocks: int = 0
    num_free_blocks: int = 0


Event = Token | Scored | Refused


class StepDone(Message, frozen=True):
    """Everything that one step, or what arrived before it, brought about."""

    events: list[Event]
    stats: Stats


ToEngine = Start | Generate | Score | Abort | Stop
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
