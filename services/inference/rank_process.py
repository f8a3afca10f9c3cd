"""A rank beside an engine's first: loads its share, then computes what each message asks for. See ranks.py."""

import logging
import os
import socket
import time
from pathlib import Path

import torch

from bloom.checkpoint import open_checkpoint
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


def join(address: str) -> socket.socket:
    """Wait for the engine to listen, and say who this is: torchrun's RANK 0 is the engine's rank 1."""
    host, port = address.rsplit(":", 1)
    while True:
        try:
            sock = socket.create_connection((host, int(port)))
        except OSError:
            time.sleep(RETRY_S)
            continue
        Channel(sock).send(Hello(int(os.environ.get("RANK", "0")) + 1, socket.gethostname()))
        return sock


def serve(sock: socket.socket) -> None:
    """Load what the first message names, then compute what each further one asks for, until the engine has ended."""
    channel = Channel(sock)
    order = channel.receive()
    if not isinstance(order, Join):
        log.error("the engine does not want this rank: %s", order.error if isinstance(order, Failed) else "it ended")
        return
    watch([channel], lambda _: os._exit(0))  # at once: it may be waiting in a collective, and has nothing to save
    log.info("rank %d of %s", order.rank, order.model_dir)
    try:
        group, share = _load(order)
    except Exception as error:
        log.exception("cannot load %s", order.model_dir)
        channel.send(Failed(f"{type(error).__name__}: {error}"))
        channel.receive()  # nothing comes: the engine reads why, then closes
        return
    channel.send(Loaded())
    while (message := channel.receive()) is not None:
        match message:
            case Forward():
                group.forward(share, message.batch())
            case Logits():
                group.logits(share, group.empty(share, message.num_rows))
            case Connect():
                group.connect(order.store_host, order.store_port, share.device)
                channel.send(Room(share.max_blocks(num_sharing=order.num_sharing)))
            case Allocate():
                share.allocate(message.size)


def _load(order: Join) -> tuple[RankGroup, Share]:
    """Raises ValueError, naming file, tensor or setting."""
    model_dir = Path(order.model_dir)
    if choose_device(order.config) == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    group = RankGroup(open_checkpoint(model_dir).config, order.config, order.rank)
    return group, load_share(model_dir, order.config, group.shard, group.all_reduce)
