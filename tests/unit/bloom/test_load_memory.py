"""What a process holds and reads while it loads, asked of the kernel: a process of its own for each way of loading."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bloom.config import BloomConfig
from bloom.tensors import DTYPE_BYTES
from bloom.weights import TensorReader
from tests.support.random_folder import write_random_folder

CONFIG = BloomConfig(vocab_size=50_000, hidden_size=1024, n_layer=8, n_head=8)  # 152M parameters: 304 MB in bf16
LOAD = """
import json, sys, torch
torch.set_num_threads(1)
import bloom.weights as weights
from bloom.parallel import Shard
from bloom.int8 import quantize
quantize(torch.ones(1024, 256, dtype=torch.bfloat16))  # code that runs for the first time is read from disk, too

def kernel(file, key):
    lines = open(f"/proc/self/{file}").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))

how = json.loads(sys.argv[2])
shard = how["shard"] and Shard.of(weights.load_config(sys.argv[1]), **how["shard"])
dtype = getattr(torch, how["dtype"])
open("/proc/self/clear_refs", "w").write("5")  # VmHWM begins anew
before, file_before = kernel("status", "VmRSS:"), kernel("status", "RssFile:")
read = kernel("io", "rchar:")
model = weights.load_model(sys.argv[1], dtype=dtype, shard=shard, weights=how["weights"])
read = kernel("io", "rchar:") - read
peak = (kernel("status", "VmHWM:") - before) * 1024
held = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
mapped = (kernel("status", "RssFile:") - file_before) * 1024
print(json.dumps({"read": read, "peak": peak, "held": held, "mapped": mapped}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_folder(tmp_path_factory.mktemp("large"), CONFIG)


def measure(folder: Path, *, shard: dict[str, int] | None, weights: str | None, dtype: str) -> dict[str, int]:
    how = json.dumps({"shard": shard, "weights": weights, "dtype": dtype})
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(folder), how],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def stored_bytes(folder: Path) -> int:
    with TensorReader(folder) as reader:
        return sum(tensor.end - tensor.start for tensor in reader.checkpoint.tensors.values())


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("weights", [None, "int8"], ids=["floats", "int8"])
@pytest.mark.parametrize(
    ("shard", "part"),
    [
        (None, 1.0),
        ({"tp_rank": 1, "tp_size": 2}, 0.5),
        ({"pp_rank": 0, "pp_size": 2}, 0.67),  # the embedding lies in both stages
    ],
    ids=["whole", "1 of 2 TP ranks", "1 of 2 stages"],
)
def test_loading_holds_and_reads_the_ranks_share_alone(folder: Path, shard, part, weights, dtype):
    found = measure(folder, shard=shard, weights=weights, dtype=dtype)
    size = stored_bytes(folder)
    number_bytes = 1 if weights else {"bfloat16": 2, "float32": 4}[dtype]
    assert found["held"] == pytest.approx(part * size * number_bytes / DTYPE_BYTES["BF16"], rel=0.02)
    assert found["peak"] < 1.2 * found["held"]
    assert found["mapped"] < 4 << 20  # code that is run now for the first time; no page of the file
    assert found["read"] == pytest.approx(part * size, rel=0.02)
