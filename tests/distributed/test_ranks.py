"""An engine's ranks against transformers: tensor parallel, pipeline stages, and what follows the end of a process."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from torch import Tensor

from bloom.cpu import load_library
from services.common.errors import Unavailable
from services.common.settings import ROOT
from services.inference.config import EngineConfig
from services.inference.engine_client import EngineClient, EngineFailed
from services.inference.executor import Executor, load_executor
from services.inference.messages import Start
from services.inference.step_batch import StepBatch
from tests.support.bloom_models import assert_discriminates, hf_logits, make_hf_folder, random_ids
from tests.support.inference_models import TOLERANCE, VOCAB, greedy, oracle

HEADS, LAYERS = 12, 3  # neither a power of two; the vocabulary of 211 is divided by no number of ranks
IDS = [random_ids(length, VOCAB, seed=length) for length in (40, 61)]
NOTICED_S = 5.0  # the bound on how long an end may go unnoticed, on a busy machine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hf_folder(tmp_path_factory.mktemp("model"), n_head=HEADS, n_layer=LAYERS, vocab=VOCAB)


def config_of(tensor_parallel: int = 1, pipeline_parallel: int = 1, **settings: object) -> EngineConfig:
    return EngineConfig(
        **({"cpu_operators": False, "dtype": "float32"} | settings),
        threads=1,
        max_kv_bytes=1 << 20,
        tensor_parallel=tensor_parallel,
        pipeline_parallel=pipeline_parallel,
    )


@contextmanager
def executor_of(folder: Path, config: EngineConfig) -> Iterator[Executor]:
    with closing(load_executor(folder, config).executor) as executor:
        yield executor
    assert rank_processes(os.getpid()) == []


def rank_processes(parent: int) -> list[psutil.Process]:
    """Those that an engine in process `parent` has started."""
    children = psutil.Process(parent).children()
    return [child for child in children if {"services.inference.ranks", "--socket"} <= set(child.cmdline())]


def batch(*rows: tuple[Tensor, int, list[int]], copies: tuple[tuple[int, int], ...] = ()) -> StepBatch:
    """Of (new ids, context after them, blocks) for each sequence."""
    width = max(len(blocks) for _, _, blocks in rows)
    return StepBatch(
        input_ids=torch.cat([ids for ids, _, _ in rows]).numpy(),
        query_starts=np.cumsum([0, *(len(ids) for ids, _, _ in rows)], dtype=np.int32),
        context_lens=np.array([context for _, context, _ in rows], dtype=np.int32),
        block_tables=np.array([blocks + [0] * (width - len(blocks)) for _, _, blocks in rows], dtype=np.int32),
        num_needed=np.ones(len(rows), dtype=np.int32),
        copies=np.array(copies, dtype=np.int32).reshape(-1, 2),
    )


def error(executor: Executor, folder: Path) -> float:
    """The largest distance from transformers' logits, over chunks, decodes, a shared prefix and a copied block."""
    first, second = IDS
    forked = torch.cat([first[:37], second[:3]])  # shares blocks 7 and 3 with `first`, has a copy of the third
    steps = [
        (batch((first[:1], 1, [7])), [first[:1]]),
        (batch((first[1:2], 2, [7, 3]), (second[:20], 20, [5, 0])), [first[:2], second[:20]]),
        (batch((first[2:37], 37, [7, 3, 9]), (second[20:55], 55, [5, 0, 8, 2])), [first[:37], second[:55]]),
        (
            batch(
                (first[37:38], 38, [7, 3, 9]),
                (forked[37:38], 38, [7, 3, 6]),
                (second[55:], 61, [5, 0, 8, 2]),
                copies=((9, 6),),
            ),
            [first[:38], forked[:38], second],
        ),
        (
            batch((first[38:39], 39, [7, 3, 9]), (forked[38:39], 39, [7, 3, 6])),
            [first[:39], forked[:39]],
        ),
    ]
    worst = 0.0
    for step, sequences in steps:
        logits = torch.as_tensor(executor.logits(executor.forward(step)))  # of each sequence's last token
        assert logits.shape == (len(sequences), VOCAB)
        for row, ids in zip(logits, sequences, strict=True):
            worst = max(worst, (row - hf_logits(oracle(folder), ids)[-1]).abs().max().item())
    return worst


def test_the_model_can_tell_right_from_wrong(folder: Path):
    assert_discriminates(lambda ids: hf_logits(oracle(folder), ids), IDS[1])


@pytest.mark.parametrize(
    ("tensor_parallel", "pipeline_parallel", "cpu_operators"),
    [
        pytest.param(1, 1, False, id="one rank"),
        pytest.param(2, 1, False, id="TP 2"),
        pytest.param(4, 1, False, id="TP 4"),
        pytest.param(1, 2, False, id="PP 2"),
        pytest.param(2, 2, False, id="TP 2 in PP 2"),
        pytest.param(4, 1, True, id="TP 4, operators of bloom.cpu"),
        pytest.param(2, 2, True, id="TP 2 in PP 2, operators of bloom.cpu"),
    ],
)
def test_logits_equal_transformers(folder: Path, tensor_parallel: int, pipeline_parallel: int, cpu_operators: bool):
    if cpu_operators:
        load_library()  # compiled here, if it has to be, and not by every rank at once
    with executor_of(folder, config_of(tensor_parallel, pipeline_parallel, cpu_operators=cpu_operators)) as executor:
        assert error(executor, folder) < TOLERANCE


def test_a_wrong_slope_or_a_bias_added_twice_on_one_rank_is_noticed(folder: Path):
    with executor_of(folder, config_of(2)) as executor:
        share = executor._share  # type: ignore[attr-defined]
        right = share._slopes
        share._slopes = right.flip(0)
        assert error(executor, folder) > 100 * TOLERANCE
        share._slopes = right
        assert error(executor, folder) < TOLERANCE
        with torch.no_grad():
            share._stage.model.h["1"].self_attention.dense.bias *= 2
        assert error(executor, folder) > 100 * TOLERANCE


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ((5, 1), "tp=5 does not divide 12 heads; choose 1, 2, 3, 4, 6 or 12"),
        ((1, 4), "pp=4 stages cannot share 3 layers; choose 1 to 3"),
    ],
)
def test_a_split_that_the_model_does_not_allow_is_refused(folder: Path, layout: tuple[int, int], message: str):
    with pytest.raises(ValueError, match=message):
        load_executor(folder, config_of(*layout))


def test_a_failed_load_leaves_no_process(folder: Path):
    with pytest.raises(ValueError, match="kv_dtype='fp8' needs CUDA"):
        load_executor(folder, config_of(2, kv_dtype="fp8"))
    assert rank_processes(os.getpid()) == []


async def start(folder: Path, config: EngineConfig) -> tuple[EngineClient, list[psutil.Process]]:
    """An engine in its own process, as the worker starts it; and its ranks' processes."""
    client = EngineClient("model@1")
    await client.start(Start(str(folder), VOCAB, config))
    return client, rank_processes(client._process.pid)


@pytest.mark.parametrize("busy", [True, False], ids=["in the middle of a step", "idle"])
async def test_a_killed_rank_fails_the_calls_and_ends_the_engine(folder: Path, busy: bool):
    client, ranks = await start(folder, config_of(3))
    assert len(ranks) == 2
    try:
        if busy:
            call = client.generate(IDS[0].tolist(), greedy(max_tokens=10_000))
            events = aiter(call)
            await anext(events)
        os.kill(ranks[1].pid, signal.SIGKILL)
        assert await asyncio.wait_for(client.exited(), NOTICED_S) == 1
        if busy:
            with pytest.raises(Unavailable, match="it is being restarted: try again"):
                async for _ in events:
                    pass
        assert psutil.wait_procs(ranks, timeout=NOTICED_S)[1] == []
    finally:
        await client.close()


async def test_a_rank_that_is_killed_while_it_loads_fails_the_load(folder: Path):
    client = EngineClient("model@1")
    loading = asyncio.create_task(client.start(Start(str(folder), VOCAB, config_of(2))))
    async with asyncio.timeout(60):
        # Nothing tells of a process that another one starts.
        while not (hasattr(client, "_process") and (ranks := rank_processes(client._process.pid))):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    os.kill(ranks[0].pid, signal.SIGKILL)
    with pytest.raises(EngineFailed, match=r"rank 1 ended while it was loaded|exit code 1 while it loaded the model"):
        await asyncio.wait_for(loading, 60)


async def test_a_killed_engine_takes_its_ranks_with_it(folder: Path):
    client, ranks = await start(folder, config_of(1, 2))
    try:
        os.kill(client._process.pid, signal.SIGKILL)
        assert await asyncio.wait_for(client.exited(), NOTICED_S) == -signal.SIGKILL
        assert psutil.wait_procs(ranks, timeout=NOTICED_S)[1] == []
    finally:
        await client.close()


async def test_ranks_that_torchrun_started_on_two_nodes_serve_one_engine_after_another(folder: Path):
    ports = free_ports(2)
    address = f"127.0.0.1:{ports[0]}"
    nodes = [torchrun(node, address, ports[1]) for node in range(2)]
    try:
        with executor_of(folder, config_of(3, ranks_address=address)) as executor:
            assert error(executor, folder) < TOLERANCE
        client, _ = await start(folder, config_of(1, 3, ranks_address=address))
        processes = [process for node in nodes for process in psutil.Process(node.pid).children(recursive=True)]
        os.kill(next(process.pid for process in processes if "--once" in process.cmdline()), signal.SIGKILL)
        assert await asyncio.wait_for(client.exited(), NOTICED_S) == 1
        await client.close()
    finally:
        for node in nodes:
            node.terminate()
    assert [node.wait(30) is not None for node in nodes] == [True, True]
    assert psutil.wait_procs(processes, timeout=NOTICED_S)[1] == []


def torchrun(node: int, address: str, port: int) -> "subprocess.Popen[bytes]":
    launcher = ["-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", str(node), "--nproc-per-node", "1"]
    meeting = ["--master-addr", "127.0.0.1", "--master-port", str(port)]
    command = [sys.executable, *launcher, *meeting, "-m", "services.inference.ranks", "--engine", address]
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"})


def free_ports(count: int) -> list[int]:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports
