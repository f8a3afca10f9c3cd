import os
from dataclasses import replace

import pytest

from bloom.cluster import CLUSTERS, GIB, Cluster, cpu_cluster, named_cluster


def test_the_default_is_the_176b_runs_48_nodes():
    cluster = named_cluster("jean-zay")
    assert cluster == Cluster()
    assert (cluster.num_gpus, cluster.gpus_per_node, cluster.memory_bytes) == (384, 8, 80 * GIB)


def test_this_machine_is_its_cores_and_its_memory():
    cluster = named_cluster("this-machine")
    assert cluster.num_gpus == len(os.sched_getaffinity(0))
    assert cluster.num_gpus * cluster.memory_bytes == pytest.approx(
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), rel=1e-6
    )


@pytest.mark.parametrize("name", CLUSTERS)
def test_every_named_cluster_takes_another_number_of_gpus(name: str):
    assert named_cluster(name, 3).num_gpus == 3


def test_processes_share_a_machine_without_gpus():
    two = cpu_cluster(cores=2, memory_bytes=24 * GIB)
    eight = two.shared_by(8)
    for figure in ("memory_bytes", "flops_16bit", "flops_fp32", "memory_bandwidth", "gpu_kw"):
        assert getattr(two, figure) == pytest.approx(4 * getattr(eight, figure))
    assert eight.num_gpus == 8
    assert eight.shared_by(2) == two


def test_gpus_are_not_shared():
    assert Cluster().shared_by(2) == Cluster()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_gpus": 0}, "num_gpus=0 computes nothing; use at least 1"),
        ({"gpus_per_node": 0}, "gpus_per_node=0"),
        ({"flops_16bit": 0}, "flops_16bit=0 is nothing; use a figure above 0"),
        ({"network_bandwidth": -1.0}, r"network_bandwidth=-1\.0"),
        ({"matmul_efficiency": 1.5}, r"matmul_efficiency=1\.5 is no share"),
        ({"usable_memory": 0.0}, r"usable_memory=0\.0 is no share"),
        ({"gpu_kw": -1}, "gpu_kw=-1 is below zero"),
        ({"memory_bandwidth": float("nan")}, "memory_bandwidth=nan"),
    ],
)
def test_a_figure_that_no_machine_has_is_named(change: dict[str, float], message: str):
    with pytest.raises(ValueError, match=message):
        replace(Cluster(), **change)


def test_an_unknown_cluster_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="no cluster 'moon'; choose one of jean-zay, h100, laptop, this-machine"):
        named_cluster("moon")
