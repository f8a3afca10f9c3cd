"""The memory a process may still take, on machines made of files."""

from pathlib import Path

import pytest

from services.inference import host_memory
from services.inference.host_memory import free_host_bytes, host_peak_bytes

GIB = 1 << 30
V2 = ("memory.max", "memory.current", "inactive_file")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes a machine of `available` bytes; groups: path -> (limit, used, cached pages of files not used lately)."""

    def make(available: int, own: str, groups: dict[str, tuple[object, int, int]], names=V2, root="groups") -> None:
        (tmp_path / "meminfo").write_text(f"MemTotal:  99999999 kB\nMemAvailable:  {available // 1024} kB\n")
        (tmp_path / "own").write_text(own)
        for path, (limit, used, cached) in groups.items():
            group = tmp_path / root / path
            group.mkdir(parents=True, exist_ok=True)
            (group / names[0]).write_text(f"{limit}\n")
            (group / names[1]).write_text(f"{used}\n")
            (group / "memory.stat").write_text(f"anon 1\n{names[2]} {cached}\nactive_file 5\n")
        monkeypatch.setattr(host_memory, "_MEMINFO", tmp_path / "meminfo")
        monkeypatch.setattr(host_memory, "_OWN_GROUPS", tmp_path / "own")
        monkeypatch.setattr(host_memory, "_GROUPS", tmp_path / "groups")

    return make


def test_without_a_limit_it_is_what_the_machine_has(machine):
    machine(8 * GIB, "0::/\n", {})
    assert free_host_bytes() == 8 * GIB
    machine(8 * GIB, "0::/\n", {"": ("max", 5 * GIB, 0)})
    assert free_host_bytes() == 8 * GIB


def test_cached_pages_of_a_group_are_free(machine):
    machine(20 * GIB, "0::/pod\n", {"pod": (8 * GIB, 7 * GIB, 5 * GIB)})
    assert free_host_bytes() == 6 * GIB


def test_the_tightest_of_nested_groups_counts(machine):
    groups = {"": ("max", 9 * GIB, 0), "pod": (4 * GIB, 3 * GIB, 0), "pod/worker": (3 * GIB, GIB, 0)}
    machine(20 * GIB, "0::/pod/worker\n", groups)
    assert free_host_bytes() == GIB


def test_in_a_container_whose_path_is_the_hosts_the_root_counts(machine):
    machine(20 * GIB, "0::/kubepods/pod7/worker\n", {"": (2 * GIB, GIB, 0)})
    assert free_host_bytes() == GIB


def test_groups_of_the_first_version_count_too(machine):
    own = "9:name=systemd:/\n4:memory:/pod/worker\n1:cpu,cpuacct:/\n0::/\n"
    groups = {"": (9223372036854771712, 9 * GIB, 0), "pod/worker": (4 * GIB, 3 * GIB, GIB)}
    machine(20 * GIB, own, groups, V1, "groups/memory")
    assert free_host_bytes() == 2 * GIB


def test_a_group_over_its_limit_has_nothing_left(machine):
    machine(20 * GIB, "0::/pod\n", {"pod": (GIB, 2 * GIB, 0)})
    assert free_host_bytes() == 0


def test_this_machine_can_be_asked():
    assert 0 < free_host_bytes() < 1 << 50


def test_what_was_freed_before_does_not_hide_what_a_computation_takes():
    def take() -> list[bytearray]:
        return [bytearray(100_000) for _ in range(640)]  # each from the heap: what is larger gets pages of its own

    freed, kept = take(), bytearray(100_000)  # behind the others, so that the heap cannot simply end before them
    freed.clear()
    assert 60e6 < host_peak_bytes(take) < 80e6
    del kept
