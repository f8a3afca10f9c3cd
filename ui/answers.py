"""Completions under way: one or two calls, streamed side by side."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from anthesis import AnthesisError, AsyncClient, SamplingParams
from anthesis.v1.generation_pb2 import GenerateResponse
from anthesis.v1.inference_pb2 import FINISH_REASON_LENGTH, FINISH_REASON_STOP, FinishReason

from ui.languages import Language
from ui.platform import Servable
from ui.streams import Stream

REDRAW_S = 0.05  # while tokens come
TICK_S = 0.2  # while none does; each drawing is where Streamlit notices the Stop button

_ENDINGS: dict[FinishReason.ValueType | None, str] = {
    FINISH_REASON_STOP: "came to its end",
    FINISH_REASON_LENGTH: "reached the token limit",
}


@dataclass(kw_only=True, slots=True)
class Answer:
    """What one model has said so far."""

    model: Servable
    prompt: str
    language: Language
    text: str = ""
    num_tokens: int = 0
    num_prompt_tokens: int = 0
    started: float = 0.0  # monotonic seconds
    first: float = 0.0
    last: float = 0.0
    version: str = ""
    finish: FinishReason.ValueType | None = None  # None until it ended by itself
    error: AnthesisError | None = None
    ended: bool = False  # by itself
    stopped: bool = False  # by the user: set by whichever run of the page comes next

    @property
    def running(self) -> bool:
        return not (self.ended or self.stopped)

    def add(self, at: float, part: GenerateResponse) -> None:
        self.text += part.text
        self.num_tokens += len(part.tokens)
        if part.tokens:
            self.first = self.first or at
            self.last = at
        if part.finish_reason:
            self.finish = part.finish_reason
            self.version = part.model_version
            self.num_prompt_tokens = part.usage.prompt_tokens

    @property
    def tokens_per_second(self) -> float | None:
        """After the first token, which also waits for the prompt."""
        return (self.num_tokens - 1) / (self.last - self.first) if self.last > self.first else None

    @property
    def ending(self) -> str:
        if self.running:
            return "writing…"
        if self.error:
            return "failed"
        return _ENDINGS.get(self.finish, "stopped by you")


def stream_answers(
    client: AsyncClient, answers: Sequence[Answer], sampling: SamplingParams, draw: Callable[[Answer], None]
) -> None:
    """Run all until they end or are stopped, calling `draw` as they grow; its exceptions cancel the calls."""
    with ExitStack() as stack:
        under_way = []
        for answer in answers:
            answer.started = time.monotonic()
            call = Stream[GenerateResponse](
                lambda a=answer: client.generate(a.model.name, a.prompt, sampling)  # type: ignore[misc]
            )
            under_way.append((answer, stack.enter_context(call)))
        while under_way:
            for answer, call in under_way:
                _advance(answer, call)
                draw(answer)
            under_way = [pair for pair in under_way if pair[0].running]


def _advance(answer: Answer, call: Stream[GenerateResponse]) -> None:
    try:
        parts = call.take(TICK_S if not answer.num_tokens else REDRAW_S)
    except AnthesisError as error:
        answer.error, answer.ended = error, True
        return
    for at, part in parts:
        answer.add(at, part)
    answer.ended = call.ended
    if parts and answer.running:
        time.sleep(REDRAW_S)  # several tokens a drawing
