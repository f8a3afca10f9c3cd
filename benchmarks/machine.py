"""What this machine can do at most, and whether it is idle: `python -m benchmarks.machine [--threads N]`."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.contestants import WORK
from services.common.settings import ROOT

REPETITIONS = 15
GEMM_SHAPES = ((512, 1024, 4096), (512, 4096, 1024), (2048, 2048, 2048))  # (M, K, N): two of a prefill, one square
GEMM_S = 2.0  # of a shape: a library takes minutes where the processor has no instructions for the dtype
IDLE_SHARE = 0.15  # of one core
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, kw_only=True, slots=True)
class CpuTime:
    """Seconds of all cores since boot."""

    busy_s: float
    stolen_s: float  # by the hypervisor

    @classmethod
    def now(cls) -> "CpuTime":
        user, nice, system, _, _, irq, softirq, steal = (
            int(field) / _TICKS_PER_S for field in Path("/proc/stat").read_text().split(None, 9)[1:9]
        )
        return cls(busy_s=user + nice + system + irq + softirq + steal, stolen_s=steal)


def wait_until_idle(timeout_s: float) -> bool:
    """False when something else still computed at the end."""
    end = time.monotonic() + timeout_s
    while True:
        before, start = CpuTime.now(), time.monotonic()
        time.sleep(1.5)
        if (CpuTime.now().busy_s - before.busy_s) / (time.monotonic() - start) < IDLE_SHARE:
            return True
        if time.monotonic() > end:
            return False


def read_bandwidth_gb_s(threads: int, folder: Path = WORK) -> list[float]:
    """Raises OSError when there is no C compiler."""
    source, program = ROOT / "benchmarks" / "read_bandwidth.c", folder / "read_bandwidth"
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        folder.mkdir(parents=True, exist_ok=True)
        compiler = [os.environ.get("CC", "cc"), "-O3", "-march=native", "-fopenmp", "-o", str(program), str(source)]
        try:
            subprocess.run(compiler, check=True)
        except FileNotFoundError:
            raise OSError(f"no C compiler {compiler[0]!r} for {source}; install gcc or set CC") from None
    done = subprocess.run([program, str(threads), str(REPETITIONS)], capture_output=True, text=True, check=True)
    return [float(line) for line in done.stdout.split()]


def gemm_gflops(threads: int, dtype: str) -> list[float]:
    """Of the best shape, each repetition; of the first alone where it takes longer than GEMM_S."""
    import torch

    torch.set_num_threads(threads)
    by_shape: list[list[float]] = []
    for m, k, n in GEMM_SHAPES:
        left, right = (torch.randn(shape).to(getattr(torch, dtype)) for shape in ((m, k), (k, n)))
        rates: list[float] = []
        begin = time.perf_counter()
        while len(rates) < REPETITIONS and time.perf_counter() - begin < GEMM_S:
            start = time.perf_counter()
            left @ right
            rates.append(2 * m * k * n / (time.perf_counter() - start) / 1e9)
        by_shape.append(rates[2:] or rates)
        if len(rates) == 1:
            break
    return max(by_shape, key=statistics.median)


def measure(threads: int) -> dict[str, float]:
    """Medians: GB/s read, GFLOP/s of bfloat16 and float32 matrix products."""
    return {
        "read_gb_s": round(statistics.median(read_bandwidth_gb_s(threads)), 2),
        "bf16_gflops": round(statistics.median(gemm_gflops(threads, "bfloat16")), 1),
        "fp32_gflops": round(statistics.median(gemm_gflops(threads, "float32")), 1),
    }


def measure_apart(threads: int) -> dict[str, float]:
    """`measure` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.machine", "--threads", str(threads)]
    env = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(os.sched_getaffinity(0))} cores of {names[0] if names else 'an unnamed CPU'}"


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.machine", description="The limits of this machine.")
    parser.add_argument("--threads", type=int, default=2)
    return parser


if __name__ == "__main__":
    print(json.dumps(measure(parser().parse_args().threads)))
