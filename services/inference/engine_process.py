"""An engine in a process of its own: `python -m services.inference.engine_process <socket> <parent's pid>`.

The worker starts it, one per loaded model version. It dies with the worker, whatever kills that.
"""

import gc
import logging
import signal
import sys
from pathlib import Path

import zmq

from services.common.logs import set_up_logging
from services.inference.engine import Engine, load_engine
from services.inference.messages import (
    Event,
    LoadFailed,
    Start,
    StepDone,
    Stop,
    ToEngine,
    decode_to_engine,
    encode,
)
from services.inference.parent import die_with_parent

log = logging.getLogger(__name__)


def main() -> None:
    """Load what the first message names, then step until told to stop."""
    address, parent_pid = sys.argv[1], int(sys.argv[2])
    die_with_parent(parent_pid)
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to the whole group: the worker drains, then says Stop
        signal.signal(number, signal.SIG_IGN)
    set_up_logging("inference-engine")
    with zmq.Context() as context, context.socket(zmq.PAIR) as socket:
        socket.set_hwm(0)  # a step never waits for the worker to read
        socket.connect(address)
        start = decode_to_engine(socket.recv())
        assert isinstance(start, Start)
        try:
            engine, ready = load_engine(Path(start.model_dir), start.config, num_token_ids=start.num_token_ids)
        except Exception as error:
            log.exception("cannot load %s", start.model_dir)
            socket.send(encode(LoadFailed(f"{type(error).__name__}: {error}")))
            return
        socket.send(encode(ready))
        gc.collect()
        gc.freeze()  # what loading left is never looked through again in the middle of a step
        try:
            run(engine, socket)
        finally:
            engine.close()


def run(engine: Engine, socket: "zmq.Socket[bytes]") -> None:
    """Between two steps take what has arrived; without work wait for it. An exception ends the process."""
    socket.send(encode(StepDone([], engine.stats)))
    while True:
        events: list[Event] = []
        for message in receive(socket, wait=not engine.has_work):
            if isinstance(message, Stop):
                return
            assert not isinstance(message, Start)
            events += engine.handle(message)
        if engine.has_work:
            events += engine.step()
        socket.send(encode(StepDone(events, engine.stats)))


def receive(socket: "zmq.Socket[bytes]", *, wait: bool) -> list[ToEngine]:
    """All messages that have arrived; at least one with `wait`."""
    messages = [decode_to_engine(socket.recv())] if wait else []
    while True:
        try:
            messages.append(decode_to_engine(socket.recv(zmq.NOBLOCK)))
        except zmq.Again:
            return messages


if __name__ == "__main__":
    main()
