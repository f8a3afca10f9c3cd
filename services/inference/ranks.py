"""Ranks of an engine beside its first, each in a process of its own.

An engine starts those of its own machine itself. Those of other machines are started by torchrun, wait for the engine,
serve it to its end, then wait for the next; `<address>` is the engine's ANTHESIS_INFERENCE_RANKS_ADDRESS:

    torchrun --nnodes 2 --node-rank 0 --nproc-per-node 7 --master-addr a --master-port 29400 \
        -m services.inference.ranks --engine <address>
"""

import argparse
import logging
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import torch

from bloom.checkpoint import open_checkpoint
from services.common.logs import set_up_logging
from services.common.settings import ROOT
from services.inference.kv_cache import CacheSize
from services.inference.parent import die_with_parent
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
    Room,
    watch,
)
from services.inference.rank_group import RankGroup
from services.inference.resources import choose_device
from services.inference.share import Share, load_share

RETRY_S = 0.5  # between two looks for the engine
log = logging.getLogger(__name__)


def main() -> None:
    parser = argparse.ArgumentParser(description="Ranks of an inference engine beside its first.")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--engine", metavar="HOST:PORT", help="serve engines that listen there, one after another")
    where.add_argument("--once", metavar="HOST:PORT", help="serve one engine that listens there")
    where.add_argument("--socket", type=int, metavar="FD", help="serve the engine at the other end of this socket")
    parser.add_argument("--parent", type=int, metavar="PID", help="end when this process does")
    arguments = parser.parse_args()
    set_up_logging("inference-rank")
    if arguments.parent:
        die_with_parent(arguments.parent)
    if arguments.engine:
        serve_engines(arguments.engine)
    elif arguments.once:
        serve(connect(arguments.once))
    else:
        serve(Channel(socket.socket(fileno=arguments.socket)))


def serve_engines(address: str) -> None:
    """A process for every engine: what torch, CUDA and NCCL keep of a broken group ends with it."""
    command = [sys.executable, "-m", "services.inference.ranks", "--once", address, "--parent", str(os.getpid())]
    while True:
        code = subprocess.run(command, cwd=ROOT).returncode
        log.info("the engine has ended (exit code %d); waiting for the next", code)
        time.sleep(RETRY_S)


def connect(address: str) -> Channel:
    """Wait for the engine to listen, and say who this is: torchrun's RANK 0 is the engine's rank 1."""
    host, port = address.rsplit(":", 1)
    while True:
        try:
            channel = Channel(socket.create_connection((host, int(port))))
        except OSError:
            time.sleep(RETRY_S)
            continue
        channel.send(Hello(int(os.environ.get("RANK", 0)) + 1, socket.gethostname()))
        return channel


def serve(channel: Channel) -> None:
    """Load what the first message names, then compute what each further one asks for, until the engine has ended."""
    join = channel.receive()
    if join is None or isinstance(join, Failed):
        log.error("the engine does not want this rank: %s", "it has closed" if join is None else join.error)
        return
    assert isinstance(join, Join)
    watch([channel], lambda _: os._exit(0))  # at once: it may be waiting in a collective, and has nothing to save
    log.info("rank %d of %s", join.rank, join.model_dir)
    try:
        group, share = load(join)
    except Exception as error:
        log.exception("cannot load %s", join.model_dir)
        channel.send(Failed(f"{type(error).__name__}: {error}"))
        channel.receive()  # nothing comes: the engine reads why, then closes
        return
    channel.send(Loaded())
    while (message := channel.receive()) is not None:
        match message:
            case Forward():
                group.forward(share, message.batch())
            case Logits():
                shape = (message.num_rows, group.hidden_size)
                group.logits(share, torch.empty(shape, dtype=share.hidden_dtype, device=share.device))
            case Connect():
                group.connect(join.store_host, join.store_port, share.device)
                channel.send(Room(share.max_blocks(num_sharing=join.num_sharing)))
            case Allocate():
                size = CacheSize(
                    num_blocks=message.num_blocks,
                    block_size=message.block_size,
                    max_sequence_tokens=message.max_sequence_tokens,
                )
                share.allocate(size)


def load(join: Join) -> tuple[RankGroup, Share]:
    """Raises ValueError, naming file, tensor or setting."""
    model_dir = Path(join.model_dir)
    if choose_device(join.config).type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    group = RankGroup(open_checkpoint(model_dir).config, join.config, join.rank)
    return group, load_share(model_dir, join.config, group.shard, group.all_reduce)


if __name__ == "__main__":
    main()
