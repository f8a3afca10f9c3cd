"""What a run computes on, in figures that a data sheet or a benchmark states. Torch-free.

"GPU" is whatever a rank has to itself: a GPU, or a share of a machine without one. docs/planning.md lists every figure
with its source; what has none is called assumed, here and there.

Sources: JZ = bigscience-workshop/bigscience@9e64edec, train/tr11-176B-ml; ML = stas00/ml-engineering@744d01e (its
author ran BLOOM-176B's training).
"""

import os
from dataclasses import dataclass, replace

GIB = 1 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """The defaults are BLOOM-176B's: 48 nodes of Jean Zay. Bandwidths are bytes per second in one direction.

    Raises ValueError, naming value and remedy, for a figure that no machine has.
    """

    has_gpus: bool = True  # else processes share one machine
    num_gpus: int = 384  # JZ
    gpus_per_node: int = 8  # JZ
    memory_bytes: int = 80 * GIB  # of one GPU: A100-80GB
    usable_memory: float = 0.8  # share that tensors get: JZ's nvidia-smi showed 1.17 to 1.29 of what is counted here
    flops_16bit: float = 312e12  # per second, bf16 and fp16: A100 data sheet
    flops_fp32: float = 19.5e12  # per second: A100 data sheet, without TF32
    matmul_efficiency: float = 0.75  # of that; assumed: the best of all shapes is 0.869 (ML, MAMF table)
    memory_bandwidth: float = 1.7e12  # assumed: 85 % of the data sheet's 2.0e12 (ML)
    link_bandwidth: float = 235e9  # between GPUs of a node: all-reduce over NVLink 3 (ML: 234.89 GB/s bus bandwidth)
    network_bandwidth: float = 16.9e9  # out of one node: 135 Gbit/s from 4 Omni-Path links (ML, network/README.md)
    storage_bandwidth: float = 61.7e9  # a 2.47 TB checkpoint in 40 s (JZ)
    runtime_bytes: int = 1573 << 20  # per rank: the CUDA context (JZ, chronicles-prequel)
    gpu_kw: float = 0.4  # A100's maximum; the model card's carbon rule
    kg_co2_per_kwh: float = 0.057  # the French grid; the model card's carbon rule
    failures_per_gpu_week: float = 1.5 / 384  # JZ: one to two GPUs a week
    hours_lost_per_failure: float = 1.5  # JZ: on average

    def __post_init__(self) -> None:
        for key in ("num_gpus", "gpus_per_node"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}={getattr(self, key)} computes nothing; use at least 1")
        for key in ("memory_bytes", "flops_16bit", "flops_fp32", *_BANDWIDTHS):
            if not getattr(self, key) > 0:
                raise ValueError(f"{key}={getattr(self, key)} is nothing; use a figure above 0")
        for key in ("usable_memory", "matmul_efficiency"):
            if not 0 < getattr(self, key) <= 1:
                raise ValueError(f"{key}={getattr(self, key)} is no share; use a figure above 0 and at most 1")
        for key in _MAY_BE_ZERO:
            if not getattr(self, key) >= 0:
                raise ValueError(f"{key}={getattr(self, key)} is below zero; use 0 or more")

    @property
    def usable_bytes(self) -> int:
        """Of one GPU, for tensors and the runtime; fragments and communication buffers have the rest."""
        return int(self.usable_memory * self.memory_bytes)

    def shared_by(self, ranks: int) -> "Cluster":
        """What `ranks` processes have of it: a GPU each, or even shares of a machine without."""
        if self.has_gpus:
            return self
        share = self.num_gpus / ranks
        return replace(
            self,
            num_gpus=ranks,
            gpus_per_node=ranks,
            memory_bytes=self.memory_bytes * self.num_gpus // ranks,
            flops_16bit=self.flops_16bit * share,
            flops_fp32=self.flops_fp32 * share,
            memory_bandwidth=self.memory_bandwidth * share,
            gpu_kw=self.gpu_kw * share,
        )

    def flops(self, precision: str) -> float:
        """Of one GPU per second, at the peak."""
        return self.flops_fp32 if precision == "fp32" else self.flops_16bit


_BANDWIDTHS = ("memory_bandwidth", "link_bandwidth", "network_bandwidth", "storage_bandwidth")
_MAY_BE_ZERO = ("runtime_bytes", "gpu_kw", "kg_co2_per_kwh", "failures_per_gpu_week", "hours_lost_per_failure")


def cpu_cluster(*, cores: int, memory_bytes: int) -> Cluster:
    """A machine without GPUs; a rank per core, unless others share it.

    Speeds of one core are half those of a two-core machine that this project was built on: 419 GFLOP/s in bf16 and 187
    in fp32 as its products reach them, 40.5 GB/s of memory. Other processors differ several times over.
    """
    return Cluster(
        has_gpus=False,
        num_gpus=cores,
        gpus_per_node=cores,
        memory_bytes=memory_bytes // cores,
        usable_memory=0.9,  # assumed
        flops_16bit=419e9 / 2,
        flops_fp32=187e9 / 2,
        matmul_efficiency=0.7,  # assumed: whole steps of plain PyTorch reached 57 to 68 % of those speeds
        memory_bandwidth=40.5e9 / 2,
        link_bandwidth=1e9,  # assumed: gloo over loopback
        network_bandwidth=1e9,  # never used: it is one node
        storage_bandwidth=0.5e9,  # assumed
        runtime_bytes=300 << 20,  # measured, about: Python with torch and DeepSpeed
        gpu_kw=0.015,  # assumed: 15 W a core
        failures_per_gpu_week=0.0,  # assumed
    )


def h100_cluster(num_gpus: int) -> Cluster:
    """Nodes of eight H100-80GB with eight 400 Gbit/s links."""
    return Cluster(
        num_gpus=num_gpus,
        flops_16bit=989e12,  # H100 SXM data sheet
        flops_fp32=67e12,  # H100 SXM data sheet
        matmul_efficiency=0.70,  # assumed: the best of all shapes is 0.803 (ML, MAMF table)
        memory_bandwidth=2.85e12,  # assumed: 85 % of the data sheet's 3.35e12 (ML)
        link_bandwidth=368e9,  # all-reduce over NVLink 4 (ML: 367.61 GB/s bus bandwidth by rings, on H200)
        network_bandwidth=320e9,  # assumed: 80 % of 8 x 400 Gbit/s
        gpu_kw=0.7,  # H100 SXM's maximum
    )


CLUSTERS = ("jean-zay", "h100", "laptop", "this-machine")


def named_cluster(name: str, num_gpus: int | None = None) -> Cluster:
    """A cluster of CLUSTERS, of num_gpus GPUs; without GPUs, a machine that num_gpus processes share.

    Raises ValueError, naming the choices.
    """
    match name:
        case "jean-zay":
            return Cluster(num_gpus=num_gpus or 384)
        case "h100":
            return h100_cluster(num_gpus or 64)
        case "laptop":
            machine = cpu_cluster(cores=2, memory_bytes=24 * GIB)
        case "this-machine":
            machine = cpu_cluster(cores=_num_cores(), memory_bytes=_memory_bytes())
        case _:
            raise ValueError(f"no cluster {name!r}; choose one of {', '.join(CLUSTERS)}")
    return machine.shared_by(num_gpus or machine.num_gpus)


def _num_cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
