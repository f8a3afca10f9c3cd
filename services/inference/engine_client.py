"""The worker's side of an engine process: starts it, talks to it, notices its end."""

import asyncio
import itertools
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import zmq
import zmq.asyncio

from services.common.errors import DeadlineExceeded, DomainError, InvalidArgument, ResourceExhausted, Unavailable
from services.common.settings import ROOT
from services.inference.caller import ANONYMOUS, Caller
from services.inference.messages import (
    Abort,
    Embed,
    Embedded,
    Event,
    Generate,
    LoadFailed,
    Ready,
    Refused,
    Score,
    Scored,
    Start,
    Stats,
    StepDone,
    Stop,
    ToEngine,
    Token,
    ToWorker,
    decode_to_worker,
    encode,
)
from services.inference.sampling import Pooling, SamplingParams

STOP_TIMEOUT_S = 5.0
LAST_WORDS_S = 0.5  # for what a process sent just before it ended
# OpenMP threads spin this often (tens of microseconds: until the next operation of a step), then sleep. The default,
# milliseconds, made steps 3 to 6 times as long whenever another process wanted the cores.
SPIN_COUNT = "1000"
log = logging.getLogger(__name__)


class EngineFailed(Exception):
    """The engine could not be started; the message is for who asked for the version."""


class Call:
    """One request under way. Iterate over it for its events, several at a time when they came while nobody waited."""

    def __init__(self, engine: "EngineClient", request_id: int, *, num_choices: int = 1) -> None:
        self.request_id = request_id
        self._engine = engine
        self._num_open = num_choices  # that have not ended
        self._events: list[Event] = []
        self._error: DomainError | None = None
        self._ended = False
        self._arrived = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[list[Event]]:
        """Raises ResourceExhausted when the queue was full, DeadlineExceeded, Unavailable when the engine died."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            events, self._events = self._events, []
            if events:
                yield events
            if self._error is not None:
                raise self._error
            if self._ended and not self._events:
                return

    def close(self) -> None:
        """The caller has gone, or has all it wants: the engine drops the request before its next step."""
        if not self._ended:
            self._end()
            self._engine.abort(self.request_id)

    def push(self, event: Event) -> None:
        if isinstance(event, Refused):
            self.fail(_error_of(event))
            return
        self._events.append(event)
        self._arrived.set()
        if isinstance(event, Scored | Embedded) or (isinstance(event, Token) and event.finish is not None):
            self._num_open -= 1
            if not self._num_open:
                self._end()

    def fail(self, error: DomainError) -> None:
        self._error = error
        self._end()

    def _end(self) -> None:
        self._ended = True
        self._arrived.set()
        self._engine.forget(self.request_id)


def _error_of(refused: Refused) -> DomainError:
    if refused.status == "RESOURCE_EXHAUSTED":
        return ResourceExhausted(refused.error, retry_delay_s=refused.retry_delay_s)
    return DeadlineExceeded(refused.error) if refused.status == "DEADLINE_EXCEEDED" else InvalidArgument(refused.error)


def _request(caller: Caller) -> dict[str, Any]:
    return {"priority": caller.priority, "client": caller.client, "deadline_s": caller.deadline_s}


class EngineClient:
    """One engine process from its start to its end."""

    def __init__(self, name: str) -> None:
        self.name = name  # of the model version, for messages
        self.stats = Stats()
        self._calls: dict[int, Call] = {}
        self._ids = itertools.count()
        self._closed = False
        self._reader: asyncio.Task[None] | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    async def start(self, start: Start) -> Ready:
        """Start the process and load the model. Raises EngineFailed, saying why."""
        self._folder = Path(tempfile.mkdtemp(prefix="an-"))  # short: a socket's path has at most 107 bytes
        # One context for all engines: the end of one of its own could wait for ever after an engine that was killed.
        self._socket = zmq.asyncio.Context.instance().socket(zmq.PAIR)
        self._socket.set_hwm(0)
        address = f"ipc://{self._folder}/engine.sock"
        self._socket.bind(address)
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "services.inference.engine_process",
            address,
            str(os.getpid()),
            cwd=ROOT,
            env={"GOMP_SPINCOUNT": SPIN_COUNT} | os.environ | {"OMP_NUM_THREADS": str(start.config.threads)},
        )
        self._exit = asyncio.create_task(self._process.wait())
        try:
            answer = await self._first_answer(start)
        except BaseException:
            await self.close()
            raise
        if isinstance(answer, LoadFailed):
            await self.close()
            raise EngineFailed(answer.error)
        self._reader = asyncio.create_task(self._read())
        return answer

    @property
    def num_calls(self) -> int:
        """Requests running and waiting."""
        return len(self._calls)

    def generate(self, prompt_ids: list[int], sampling: SamplingParams, caller: Caller = ANONYMOUS) -> Call:
        """Its events are `Token`s, after a `PromptLogprobs` where those are asked for."""
        call = self._open(sampling.n)
        self._send(Generate(call.request_id, prompt_ids, sampling, **_request(caller)))
        return call

    async def score(self, context_ids: list[int], target_ids: list[int], caller: Caller = ANONYMOUS) -> Scored:
        """Log-probability of each target id given all before it."""
        call = self._open()
        self._send(Score(call.request_id, context_ids, target_ids, **_request(caller)))
        scored = await self._answer(call)
        assert isinstance(scored, Scored)
        return scored

    async def embed(
        self, ids: list[int], pooling: Pooling, *, normalize: bool, caller: Caller = ANONYMOUS
    ) -> list[float]:
        """The hidden states of `ids` as one vector."""
        call = self._open()
        self._send(Embed(call.request_id, ids, pooling, normalize, **_request(caller)))
        embedded = await self._answer(call)
        assert isinstance(embedded, Embedded)
        return embedded.values

    def abort(self, request_id: int) -> None:
        if not self._closed:
            self._send(Abort(request_id))

    def forget(self, request_id: int) -> None:
        self._calls.pop(request_id, None)
        if not self._calls:
            self._idle.set()

    async def drained(self) -> None:
        """Return when no call is under way."""
        await self._idle.wait()

    async def exited(self) -> int:
        """Wait for the process to end by itself; fail what was under way; return its exit code."""
        code = await asyncio.shield(self._exit)
        self._fail_calls(f"the engine of {self.name} died (exit code {code}); it is being restarted: try again")
        return code

    async def close(self) -> None:
        """End the process; calls under way fail."""
        if self._closed:
            return
        self._send(Stop())
        self._closed = True
        try:
            await asyncio.wait_for(asyncio.shield(self._exit), STOP_TIMEOUT_S)
        except TimeoutError:
            self._process.kill()
            await self._exit
        finally:
            if self._reader is not None:
                self._reader.cancel()
            self._fail_calls(f"{self.name} was unloaded; ask again for where it is served")
            self._socket.close(linger=0)
            shutil.rmtree(self._folder, ignore_errors=True)

    async def _first_answer(self, start: Start) -> Ready | LoadFailed:
        """What the process says once it has loaded the model. Raises EngineFailed when it ends without a word."""

        async def ask() -> ToWorker:
            await self._socket.send(encode(start))  # waits until the process has connected
            return await self._receive()

        asking = asyncio.create_task(ask())
        await asyncio.wait({asking, self._exit}, return_when=asyncio.FIRST_COMPLETED)
        try:
            answer = await asyncio.wait_for(asking, LAST_WORDS_S)  # done already, unless the process has ended
        except TimeoutError:
            code = self._exit.result()
            raise EngineFailed(f"the engine process ended with exit code {code} while it loaded the model") from None
        assert isinstance(answer, Ready | LoadFailed)
        return answer

    async def _read(self) -> None:
        while True:
            message = await self._receive()
            assert isinstance(message, StepDone)
            self.stats = message.stats
            for event in message.events:
                call = self._calls.get(event.request_id)
                if call is not None:  # else it was closed meanwhile
                    call.push(event)

    async def _receive(self) -> ToWorker:
        return decode_to_worker(await self._socket.recv())

    def _send(self, message: ToEngine) -> None:
        """Never waits, as the socket has no high-water mark. Lost when the process has ended: its calls fail then."""
        sent: Any = self._socket.send(encode(message), zmq.NOBLOCK)  # a future that is done already
        sent.exception()

    async def _answer(self, call: Call) -> Event:
        """The only event of a call, which is dropped when nobody waits for it any more."""
        try:
            async for events in call:
                return events[0]
        finally:
            call.close()
        raise Unavailable(f"the call to the engine of {self.name} was closed")

    def _open(self, num_choices: int = 1) -> Call:
        call = Call(self, next(self._ids), num_choices=num_choices)
        self._calls[call.request_id] = call
        self._idle.clear()
        return call

    def _fail_calls(self, reason: str) -> None:
        for call in list(self._calls.values()):
            call.fail(Unavailable(reason))
