"""Energy is counted by the machine's own counters, in the kernel's files, and never at a job's cost."""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from services.trainer.energy import AttemptEnergy, Energy, EnergyMeter, HostEnergy
from services.trainer.energy_counters import find_gpus, find_rapl
from services.trainer.folder import JobFolder
from services.trainer.guard import watch_and_measure
from services.trainer.lease_file import LeaseFile, write_lease
from tests.support.powercap import Powercap


@pytest.fixture
def powercap(tmp_path: Path) -> Powercap:
    return Powercap(tmp_path / "powercap")


@pytest.fixture
def meter(powercap: Powercap) -> EnergyMeter:
    return EnergyMeter({"ANTHESIS_POWERCAP": str(powercap.root)})


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def wait_for_counters(meter: EnergyMeter) -> None:
    """Until they were read for the first time, from when on they count."""
    wait_until(lambda: bool(meter.energy.joules))


def test_packages_and_their_memory_are_counted_and_no_part_of_a_package_twice(powercap):
    zones = [
        powercap.zone("intel-rapl:0", "package-0"),
        powercap.zone("intel-rapl:0:0", "core"),
        powercap.zone("intel-rapl:0:1", "dram"),
        powercap.zone("intel-rapl:1", "package-1"),
        powercap.zone("intel-rapl:2", "psys"),
        powercap.zone("intel-rapl-mmio:0", "package-0"),
    ]
    counters, reasons = find_rapl(powercap.root)
    for zone in zones:
        powercap.use(zone, 2.5)
    assert [(counter.source, counter.joules()) for counter in counters] == [
        ("package", 2.5),
        ("dram", 2.5),
        ("package", 2.5),
    ]
    assert reasons == []


def test_zones_are_found_as_devices_in_each_other_and_as_the_kernels_links_to_them(tmp_path):
    devices, links = Powercap(tmp_path / "devices"), tmp_path / "class"
    paths = ["intel-rapl/intel-rapl:0", "intel-rapl/intel-rapl:0/intel-rapl:0:0"]
    zones = [devices.zone(path, name) for path, name in zip(paths, ("package-0", "dram"), strict=True)]
    links.mkdir()
    for target in (devices.root / "intel-rapl", *zones):
        (links / target.name).symlink_to(target)
    for root in (devices.root, links):
        counters, reasons = find_rapl(root)
        assert ([counter.source for counter in counters], reasons) == (["package", "dram"], [])


def test_a_counter_goes_on_over_its_end(powercap):
    zone = powercap.zone("intel-rapl:0", "package-0", counted=260.0, most=262.0)
    [counter], _ = find_rapl(powercap.root)
    powercap.use(zone, 5.0)
    assert int((zone / "energy_uj").read_text()) == 3_000_000
    assert counter.joules() == pytest.approx(5.0)
    powercap.use(zone, 261.0)
    assert counter.joules() == pytest.approx(266.0)


def test_a_machine_without_counters_says_so(tmp_path):
    assert find_rapl(tmp_path / "nothing") == ([], [f"processors: no counter (intel-rapl) is in {tmp_path}/nothing"])


def test_a_counter_for_root_alone_is_no_counter_and_says_what_to_do():
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    powercap = Powercap(folder / "powercap")
    zone = powercap.zone("intel-rapl:0", "package-0")
    (zone / "energy_uj").chmod(0o400 if os.geteuid() == 0 else 0)
    us = os.geteuid()
    try:
        if us == 0:
            os.seteuid(65534)
        counters, [reason] = find_rapl(powercap.root)
    finally:
        os.seteuid(us)
        shutil.rmtree(folder)
    assert counters == []
    assert reason.startswith(f"processors: {zone}/energy_uj is not for user ")
    assert reason.endswith("make it readable")


def test_without_nvml_gpus_are_not_measured_and_it_says_why(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert find_gpus(["0"]) == ([], ["GPUs: nvidia-ml-py is not installed"])
    assert find_gpus([]) == ([], [])


def test_a_driver_that_is_not_there_says_why():
    nvml = pytest.importorskip("pynvml")
    if Path("/dev/nvidiactl").exists():
        pytest.skip("there is a driver")
    assert find_gpus(["0"]) == ([], [f"GPUs: {nvml.NVMLError(nvml.NVML_ERROR_LIBRARY_NOT_FOUND)}"])


class Nvml(SimpleNamespace):
    """As much of NVML as is asked: three GPUs, which use a joule each time they are looked at."""

    class NVMLError(Exception):
        pass

    def __init__(self) -> None:
        self.used = {"0": 5000, "1": 7000, "GPU-2": 9000}

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        return str(index)

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        if handle not in self.used:
            raise self.NVMLError("Not Supported")
        self.used[handle] += 1000
        return self.used[handle]


def test_the_gpus_that_a_job_uses_are_counted_and_no_others(monkeypatch):
    nvml = Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    counters, reasons = find_gpus(["1", "GPU-2"])
    assert [(counter.source, counter.joules()) for counter in counters] == [("gpu", 1.0), ("gpu", 1.0)]
    assert reasons == []
    assert nvml.used["0"] == 5000


def test_where_one_of_the_gpus_cannot_say_none_is_counted(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", Nvml())
    assert find_gpus(["0", "3"]) == ([], ["GPUs: Not Supported"])


def test_what_is_used_while_a_stage_runs_is_counted_to_its_end_and_nothing_between_stages(powercap, meter):
    zone = powercap.zone("intel-rapl:0", "package-0")
    with meter.running():
        wait_for_counters(meter)
        powercap.use(zone, 4.0)
    assert meter.energy == Energy(joules={"package": 4.0})
    powercap.use(zone, 100.0)
    assert meter.energy == Energy(joules={"package": 4.0})


def test_a_counter_that_goes_away_leaves_what_it_has_counted(powercap, meter):
    zone = powercap.zone("intel-rapl:0", "package-0")
    with meter.running():
        wait_for_counters(meter)
        shutil.rmtree(zone)
    assert meter.energy.joules == {"package": 0.0}
    assert meter.energy.unmeasured[0].startswith("from some time on: ")


def test_a_counter_that_hangs_keeps_nobody_waiting(powercap, meter):
    zone = powercap.zone("intel-rapl:0", "package-0")
    (zone / "energy_uj").unlink()
    os.mkfifo(zone / "energy_uj")  # who reads it waits for a writer
    began = time.monotonic()
    with meter.running():
        pass
    assert time.monotonic() - began < 10
    assert meter.energy == Energy()
    for thread in [thread for thread in threading.enumerate() if thread.name == "energy"]:
        while thread.is_alive():
            (zone / "energy_uj").write_text("1")
            thread.join(0.05)


def test_a_guard_writes_down_what_its_host_uses_until_its_rank_has_ended(tmp_path, powercap):
    zone = powercap.zone("intel-rapl:0", "package-0")
    folder = JobFolder(tmp_path)
    write_lease(folder.lease, 1, 3600)
    env = {"ANTHESIS_POWERCAP": str(powercap.root), "LOCAL_SIZE": "2"}
    rank = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    energy = AttemptEnergy(folder, 1)
    with ThreadPoolExecutor(1) as pool:
        guarding = pool.submit(watch_and_measure, rank, LeaseFile(folder.lease, 1), folder, 1, env)
        wait_until(lambda: bool(energy.so_far().joules))
        powercap.use(zone, 3.0)
        rank.stdin.write(b"\n")
        rank.stdin.close()
        assert guarding.result(30) == 0
    assert energy.so_far() == Energy(joules={"package": 3.0})


def test_what_hosts_have_used_is_added_and_what_is_not_measured_is_said_once(tmp_path, monkeypatch):
    monkeypatch.setenv("ANTHESIS_POWERCAP", str(tmp_path / "nothing"))
    folder = JobFolder(tmp_path)
    energy = AttemptEnergy(folder, 3)
    with energy.running():
        pass
    for host, joules in (("a", 1.5), ("b", 2.0)):
        HostEnergy(folder.energy(3, host)).write(Energy(joules={"package": joules, "gpu": 10.0}, unmeasured=("host",)))
    HostEnergy(folder.energy(2, "a")).write(Energy(joules={"package": 99.0}))  # of the attempt before
    reason = f"processors: no counter (intel-rapl) is in {tmp_path}/nothing"
    for _ in range(2):
        assert energy.so_far() == Energy(joules={"package": 3.5, "gpu": 20.0}, unmeasured=(reason, "host"))
    assert folder.log.read_text() == f"energy is not measured: {reason}\nenergy is not measured: host\n"
