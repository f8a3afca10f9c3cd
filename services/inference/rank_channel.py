"""What rank 0 and the other ranks of an engine tell each other, and how each notices the other's end.

Tensors go over torch.distributed. What to do next goes over one stream socket per rank: it also breaks when a process
or a machine ends, whatever collective the one at its other end is waiting in.
"""

import contextlib
import select
import socket
import threading
from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from services.inference.cache_size import CacheSize
from services.inference.config import EngineConfig
from services.inference.step_batch import StepBatch

_LENGTH_BYTES = 8
_KEEPALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3}  # s, s, tries: of a machine that is gone


class _Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    pass


# rank -> rank 0


class Hello(_Message, frozen=True):
    rank: int
    host: str


class Loaded(_Message, frozen=True):
    """The rank's weights are there; it is ready for the first collective."""


class Failed(_Message, frozen=True):
    """It cannot be loaded, and why."""

    error: str


class Room(_Message, frozen=True):
    max_blocks: int


# rank 0 -> rank


class Join(_Message, frozen=True):
    """The first message: which rank of what."""

    rank: int
    model_dir: str
    config: EngineConfig
    num_sharing: int  # ranks on that machine
    store_host: str  # where the process group meets
    store_port: int


class Connect(_Message, frozen=True):
    """All are loaded: join the process group, see how many blocks there is room for."""


class Allocate(_Message, frozen=True):
    size: CacheSize


class Forward(_Message, frozen=True):
    """A StepBatch."""

    num_sequences: int
    input_ids: bytearray
    query_starts: bytearray
    context_lens: bytearray
    block_tables: bytearray
    num_needed: bytearray
    copies: bytearray

    @classmethod
    def of(cls, batch: StepBatch) -> "Forward":
        arrays = (batch.input_ids, batch.query_starts, batch.context_lens, batch.block_tables, batch.num_needed)
        return cls(len(batch.context_lens), *(bytearray(array.tobytes()) for array in (*arrays, batch.copies)))

    def batch(self) -> StepBatch:
        return StepBatch(
            input_ids=np.frombuffer(self.input_ids, dtype=np.int64),
            query_starts=np.frombuffer(self.query_starts, dtype=np.int32),
            context_lens=np.frombuffer(self.context_lens, dtype=np.int32),
            block_tables=np.frombuffer(self.block_tables, dtype=np.int32).reshape(self.num_sequences, -1),
            num_needed=np.frombuffer(self.num_needed, dtype=np.int32),
            copies=np.frombuffer(self.copies, dtype=np.int32).reshape(-1, 2),
        )


class Logits(_Message, frozen=True):
    """Of rows that rank 0 broadcasts within its stage."""

    num_rows: int


Message = Hello | Loaded | Failed | Room | Join | Connect | Allocate | Forward | Logits

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    """With its length, as `Channel.send_encoded` takes it."""
    content = _encoder.encode(message)
    return len(content).to_bytes(_LENGTH_BYTES, "little") + content


class Channel:
    """One end of a rank's socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._reader = sock.makefile("rb")
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in _KEEPALIVE.items():
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, message: Message) -> None:
        self.send_encoded(encode(message))

    def send_encoded(self, data: bytes) -> None:
        """Nothing where the other end is gone: whoever waits for its answer gets none, and `watch` tells."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._socket.sendall(data)

    def receive(self) -> Message | None:
        """Wait for the next message; None when the other end has closed."""
        try:
            size = int.from_bytes(self._reader.read(_LENGTH_BYTES), "little")
            content = self._reader.read(size)
        except ConnectionResetError:
            return None
        return _decoder.decode(content) if content and len(content) == size else None

    def shut(self) -> None:
        """Let the other end know that this one is done."""
        with contextlib.suppress(OSError):  # it has ended before
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._reader.close()
        self._socket.close()


def watch(channels: Sequence[Channel], ended: Callable[[int], None]) -> None:
    """Call `ended` with a channel's index, in a thread, as soon as the other end of any is gone. Once."""

    def wait() -> None:
        poll = select.poll()
        indices = {channel.fileno(): i for i, channel in enumerate(channels)}
        for descriptor in indices:
            poll.register(descriptor, select.POLLRDHUP)
        (descriptor, _), *_ = poll.poll()
        ended(indices[descriptor])

    threading.Thread(target=wait, name="rank-watch", daemon=True).start()
