"""A machine's own counters of energy: of processors (RAPL, by Linux's powercap) and of GPUs (NVML).

Sources: docs.kernel.org, power/powercap/powercap; NVML API reference, nvmlDeviceGetTotalEnergyConsumption.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

PACKAGE, DRAM, GPU = "package", "dram", "gpu"


class Counter(Protocol):
    source: str

    def joules(self) -> float:
        """Since it was made. Raises whatever the device does."""
        ...


class RaplCounter:
    """A zone of powercap. Asked at least once in each of its rounds."""

    def __init__(self, zone: Path, source: str) -> None:
        """Raises OSError, PermissionError above all, and ValueError."""
        self.source = source
        self._file = zone / "energy_uj"
        self._round = int((zone / "max_energy_range_uj").read_text())
        self._last = int(self._file.read_text())
        self._counted = 0  # microjoules

    def joules(self) -> float:
        now = int(self._file.read_text())
        self._counted += now - self._last + (self._round if now < self._last else 0)
        self._last = now
        return self._counted / 1e6


class GpuCounter:
    source = GPU

    def __init__(self, nvml: Any, device: str) -> None:
        """device: its index, or its UUID. Raises NVMLError; older than Volta there is no counter."""
        self._nvml = nvml
        by_index = nvml.nvmlDeviceGetHandleByIndex
        self._handle = by_index(int(device)) if device.isdecimal() else nvml.nvmlDeviceGetHandleByUUID(device)
        self._last = self._millijoules()
        self._counted = 0

    def joules(self) -> float:
        now = self._millijoules()
        self._counted += max(0, now - self._last)  # it begins anew with the driver
        self._last = now
        return self._counted / 1e3

    def _millijoules(self) -> int:
        return int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle))


def find_rapl(root: Path) -> tuple[list[Counter], list[str]]:
    """The counters of this machine's packages and their memory, and why some are not to be had."""
    counters: list[Counter] = []
    reasons: list[str] = []
    for zone in sorted(root.rglob("intel-rapl:*")):  # AMD's as well; beside each other, or one in another
        try:
            name = (zone / "name").read_text().strip()
            # What else there is, is part of a package, or (psys) has packages in it.
            source = PACKAGE if name.startswith("package") else DRAM if name == "dram" else ""
            if source:
                counters.append(RaplCounter(zone, source))
        except PermissionError:
            reasons.append(f"processors: {zone}/energy_uj is not for user {os.geteuid()} to read; make it readable")
        except (OSError, ValueError) as error:
            reasons.append(f"processors: {zone}: {error}")
    if not counters and not reasons:
        reasons = [f"processors: no counter (intel-rapl) is in {root}"]
    return counters, reasons[:1]  # of the others it is the same


def find_gpus(devices: Sequence[str]) -> tuple[list[Counter], list[str]]:
    """The counters of these GPUs, and why some are not to be had."""
    if not devices:
        return [], []
    try:
        import pynvml as nvml
    except ModuleNotFoundError:
        return [], ["GPUs: nvidia-ml-py is not installed"]
    counters: list[Counter] = []
    try:
        nvml.nvmlInit()
        counters.extend(GpuCounter(nvml, device) for device in devices)
    except nvml.NVMLError as error:
        return [], [f"GPUs: {error}"]  # of one job's, all or none: a part would pass for the whole
    return counters, []
