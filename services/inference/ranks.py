"""Ranks of an engine beside its first, each in a process of its own.

An engine starts those of its own machine itself. Those of other machines are started by torchrun on each of them, wait
for the engine, serve it to its end, then wait for the next. ADDRESS is the engine's ANTHESIS_INFERENCE_RANKS_ADDRESS,
and the engine's own GPU is not theirs. Two machines of 8 GPUs, with the engine on the first:

    CUDA_VISIBLE_DEVICES=1,2,3,4,5,6,7 torchrun --nnodes 2 --node-rank 0 --nproc-per-node 7 \
        --master-addr FIRST --master-port 29400 -m services.inference.ranks --engine ADDRESS
    torchrun --nnodes 2 --node-rank 1 --nproc-per-node 8 \
        --master-addr FIRST --master-port 29400 -m services.inference.ranks --engine ADDRESS

The model's folder has the same path on all of them. Source of the wire format: rank_channel.py.
"""

import argparse
import logging
import os
import socket
import subprocess
import sys
import time

from services.common.logs import set_up_logging
from services.common.settings import ROOT
from services.inference.parent import die_with_parent

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
    from services.inference.rank_process import join, serve  # torch: not in the process that only waits for others

    serve(join(arguments.once) if arguments.once else socket.socket(fileno=arguments.socket))


def serve_engines(address: str) -> None:
    """A process for every engine: what torch, CUDA and NCCL keep of a broken group ends with it. Never returns."""
    command = [sys.executable, "-m", "services.inference.ranks", "--once", address, "--parent", str(os.getpid())]
    while True:
        code = subprocess.run(command, cwd=ROOT).returncode
        log.info("the engine has ended (exit code %d); waiting for the next", code)
        time.sleep(RETRY_S)


if __name__ == "__main__":
    main()
