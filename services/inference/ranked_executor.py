"""The executor of an engine whose model is shared by several processes: rank 0's side.

T = packed tokens, M = rows whose logits are needed, H = hidden size, V = rows of the head
"""

import logging
import os
import socket
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from bloom.checkpoint import open_checkpoint
from services.common.settings import ROOT
from services.inference.cache_size import CacheSize
from services.inference.config import EngineConfig
from services.inference.rank_channel import (
    Allocate,
    Channel,
    Connect,
    Failed,
    Forward,
    Hello,
    Join,
    Loaded,
    Logits,
    Message,
    Room,
    encode,
    watch,
)
from services.inference.rank_group import RankGroup
from services.inference.resources import choose_device
from services.inference.share import Share, load_share
from services.inference.step_batch import StepBatch

STOP_TIMEOUT_S = 5.0
LOOPBACK = "127.0.0.1"
log = logging.getLogger(__name__)
_Answer = TypeVar("_Answer", Loaded, Room)


class RankedExecutor:
    """Rank 0 of the engine's ranks: computes its share, and has the others compute theirs.

    The end of another rank ends this process with exit code 1: what waits for that rank would wait for ever.
    """

    def __init__(self, model_dir: Path, config: EngineConfig) -> None:
        """Start the other ranks, or wait until they join at `ranks_address`, and load every rank's share.

        Raises ValueError, naming file, tensor or setting, when that cannot be.
        """
        self._tp_size = config.tensor_parallel
        self._num_ranks = config.tensor_parallel * config.pipeline_parallel
        self._group = RankGroup(open_checkpoint(model_dir).config, config, 0)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._closing = False
        if config.ranks_address:
            self._channels, hosts = accept_ranks(config.ranks_address, self._num_ranks)
        else:
            config = _divided(config, self._num_ranks)
            self._channels, hosts = self._start_ranks(config), [socket.gethostname()] * self._num_ranks
        watch(self._channels, self._rank_ended)
        try:
            self._load(model_dir, config, hosts)
        except BaseException:
            self.close()
            raise

    def max_blocks(self) -> int:
        """Cache blocks that every rank has room for."""
        self._tell(Connect())
        host, port = self._listener.getsockname()[:2]
        self._group.connect(host, port, self._share.device, listener=self._listener)
        own = self._share.max_blocks(num_sharing=self._num_sharing)
        return min(own, *(room.max_blocks for room in self._answers(Room)))

    def allocate(self, size: CacheSize) -> None:
        self._tell(Allocate(size))
        self._share.allocate(size)

    @torch.inference_mode()
    def forward(self, batch: StepBatch) -> Any:
        self._tell(Forward.of(batch))
        return self._group.forward(self._share, batch)

    @torch.inference_mode()
    def logits(self, hidden: Any) -> Any:
        for channel in self._channels[: self._tp_size - 1]:  # the last stage's
            channel.send(Logits(len(hidden)))
        logits = self._group.logits(self._share, hidden)
        assert logits is not None
        return logits

    def close(self) -> None:
        """End the other ranks."""
        self._closing = True
        for channel in self._channels:
            channel.shut()
        if dist.is_initialized():
            self._group.close()
        for process in self._processes:
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for channel in self._channels:
            channel.close()

    def _start_ranks(self, config: EngineConfig) -> list[Channel]:
        """A process for every other rank, each with a socket to this one. They end with this process."""
        if choose_device(config) == "cuda" and torch.cuda.device_count() < self._num_ranks:
            raise ValueError(
                f"tensor_parallel={config.tensor_parallel} x pipeline_parallel={config.pipeline_parallel} needs "
                f"{self._num_ranks} CUDA devices but there are {torch.cuda.device_count()}; lower one, or set "
                "ANTHESIS_INFERENCE_RANKS_ADDRESS and start the other ranks with torchrun"
            )
        channels = []
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        for rank in range(1, self._num_ranks):
            ours, theirs = socket.socketpair()
            command = ["-m", "services.inference.ranks", "--socket", str(theirs.fileno()), "--parent", str(os.getpid())]
            env = os.environ | {"OMP_NUM_THREADS": str(config.threads), "LOCAL_RANK": str(rank)}
            with theirs:
                self._processes.append(
                    subprocess.Popen([sys.executable, *command], cwd=ROOT, env=env, pass_fds=[theirs.fileno()])
                )
            channels.append(Channel(ours))
        return channels

    def _load(self, model_dir: Path, config: EngineConfig, hosts: list[str]) -> None:
        store_host = config.ranks_address.rsplit(":", 1)[0] or LOOPBACK
        self._listener = socket.create_server((store_host, 0))
        port = self._listener.getsockname()[1]
        num_on = Counter(hosts)
        self._num_sharing = num_on[hosts[0]]
        for rank, channel in enumerate(self._channels, start=1):
            channel.send(Join(rank, str(model_dir), config, num_on[hosts[rank]], store_host, port))
        self._share: Share = load_share(model_dir, config, self._group.shard, self._group.all_reduce)
        self.hidden_dtype, self.device = self._share.hidden_dtype, self._share.device
        self._answers(Loaded)

    def _tell(self, message: Message) -> None:
        data = encode(message)
        for channel in self._channels:
            channel.send_encoded(data)

    def _answers(self, kind: type[_Answer]) -> list[_Answer]:
        """One of each rank. Raises ValueError with what a rank says is wrong."""
        answers = []
        for rank, channel in enumerate(self._channels, start=1):
            answer = channel.receive()
            if isinstance(answer, Failed):
                raise ValueError(f"rank {rank}: {answer.error}")
            if not isinstance(answer, kind):  # None: it has ended, which `watch` is about to notice
                raise ValueError(f"rank {rank} ended while it was loaded")
            answers.append(answer)
        return answers

    def _rank_ended(self, index: int) -> None:
        """In the watch's thread."""
        if not self._closing:
            log.critical("rank %d has ended; the engine ends with it", index + 1)
            os._exit(1)


def accept_ranks(address: str, num_ranks: int) -> tuple[list[Channel], list[str]]:
    """Wait until ranks 1 to num_ranks - 1 have joined; their channels, and the host of every rank, this one first."""
    joined: dict[int, tuple[Channel, str]] = {}
    with _listen(address) as listener:
        log.info("waiting at %s for %d ranks", address, num_ranks - 1)
        while len(joined) < num_ranks - 1:
            channel = Channel(listener.accept()[0])
            hello = channel.receive()
            if not isinstance(hello, Hello):
                channel.close()
            elif not 0 < hello.rank < num_ranks:
                error = f"{num_ranks - 1} processes are wanted, torchrun started at least {hello.rank}: start fewer"
                channel.send(Failed(error))
                channel.close()
            else:
                joined[hello.rank] = channel, hello.host  # in place of one that has ended meanwhile
                log.info("rank %d of %d has joined from %s", hello.rank, num_ranks, hello.host)
    ordered = [joined[rank] for rank in range(1, num_ranks)]
    return [channel for channel, _ in ordered], [socket.gethostname(), *(host for _, host in ordered)]


def _listen(address: str) -> socket.socket:
    host, port = address.rsplit(":", 1)
    try:
        return socket.create_server((host, int(port)))
    except OSError as error:
        raise ValueError(
            f"cannot listen for ranks at {address}: {error}; set ANTHESIS_INFERENCE_RANKS_ADDRESS to a free port "
            "of this machine, and give this worker one model version at a time"
        ) from error


def _divided(config: EngineConfig, num_ranks: int) -> EngineConfig:
    """The threads of one rank among those of this machine."""
    return replace(config, threads=max(1, config.threads // num_ranks))
