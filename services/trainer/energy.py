"""The energy that machines use while a job's processes run on them, as they count it themselves.

What is counted is a whole processor and a whole GPU, so with whatever else runs there. Counting is a thread's work:
whatever goes wrong or takes its time there, no job fails or waits for it.
"""

import contextlib
import json
import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from services.trainer.energy_counters import find_gpus, find_rapl
from services.trainer.files import write_whole
from services.trainer.folder import JobFolder

LOG = logging.getLogger(__name__)
POWERCAP_VARIABLE = "ANTHESIS_POWERCAP"
POWERCAP = "/sys/class/powercap"
SAMPLE_S = 1.0  # a package's counter wraps around after some minutes
END_WITHIN_S = 1.0  # that a stage's end waits for the last sample
Joules = dict[str, float]  # by source, as in energy_counters


@dataclass(frozen=True, kw_only=True, slots=True)
class Energy:
    joules: Joules = field(default_factory=dict)  # a source that is not there was not measured
    unmeasured: tuple[str, ...] = ()  # what was not, and why

    def __add__(self, other: "Energy") -> "Energy":
        return Energy(
            joules=_added(self.joules, other.joules),
            unmeasured=tuple(dict.fromkeys((*self.unmeasured, *other.unmeasured))),
        )


def first_gpus(count: int) -> list[str]:
    """Those that DeepSpeed's launcher gives to a machine's ranks; none where there are none."""
    return [str(index) for index in range(count)] if _has_gpus() else []


def default_gpu() -> list[str]:
    """The one that a process takes which says nothing of it."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    return [visible] if visible and visible != "-1" and _has_gpus() else []


class _Sampling(threading.Thread):
    """From its start until `stop`."""

    def __init__(self, powercap: Path, gpus: Sequence[str]) -> None:
        super().__init__(name="energy", daemon=True)
        self.energy = Energy()
        self._powercap = powercap
        self._gpus = gpus
        self._stopping = threading.Event()

    def stop(self) -> None:
        self._stopping.set()
        self.join(END_WITHIN_S)

    def run(self) -> None:
        try:
            self._count()
        except Exception as error:  # a driver may raise anything
            LOG.warning("energy is no longer measured: %s", error)
            self.energy += Energy(unmeasured=(f"from some time on: {error}",))

    def _count(self) -> None:
        rapl, no_rapl = find_rapl(self._powercap)
        gpus, no_gpus = find_gpus(self._gpus)
        unmeasured, counters = (*no_rapl, *no_gpus), [*rapl, *gpus]
        while True:
            is_last = self._stopping.is_set()
            joules: Joules = {}
            for counter in counters:
                joules = _added(joules, {counter.source: counter.joules()})
            self.energy = Energy(joules=joules, unmeasured=unmeasured)
            if is_last or not counters:
                return
            self._stopping.wait(SAMPLE_S)


class EnergyMeter:
    def __init__(self, env: Mapping[str, str] = os.environ) -> None:
        """env: ANTHESIS_POWERCAP says where the kernel's zones are."""
        self._powercap = Path(env.get(POWERCAP_VARIABLE) or POWERCAP)
        self._samplings: list[_Sampling] = []

    @contextlib.contextmanager
    def running(self, gpus: Sequence[str] = ()) -> Iterator[None]:
        """Count what this machine uses meanwhile. gpus: indices or UUIDs of those that are used."""
        sampling = _Sampling(self._powercap, gpus)
        try:
            sampling.start()
        except RuntimeError as error:  # no more threads are to be had
            LOG.warning("energy is not measured: %s", error)
            yield
            return
        self._samplings.append(sampling)
        try:
            yield
        finally:
            sampling.stop()

    @property
    def energy(self) -> Energy:
        """In all, so far."""
        return sum((sampling.energy for sampling in self._samplings), Energy())


class HostEnergy:
    """What a host of a hostfile uses, as the guard of its first rank writes it down in the job's folder."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._written = Energy()

    def write(self, energy: Energy) -> None:
        if energy != self._written:
            with contextlib.suppress(OSError):  # a full disk: the next one tells of this as well
                write_whole(self._path, json.dumps(asdict(energy)))
                self._written = energy


class AttemptEnergy:
    """What an attempt has used: this machine, while its stages run here, and the hosts of a hostfile."""

    def __init__(self, folder: JobFolder, fencing_token: int) -> None:
        self._folder = folder
        self._hosts = folder.energy(fencing_token)
        self._meter = EnergyMeter()
        self._said: set[str] = set()

    def running(self, gpus: Sequence[str] = ()) -> contextlib.AbstractContextManager[None]:
        """As EnergyMeter's."""
        return self._meter.running(gpus)

    def so_far(self) -> Energy:
        """What is not measured is said once in the job's log."""
        total = self._meter.energy
        for path in self._hosts.parent.glob(self._hosts.name):
            with contextlib.suppress(OSError, ValueError):
                fields = json.loads(path.read_text())
                total += Energy(joules=fields["joules"], unmeasured=tuple(fields["unmeasured"]))
        new = [reason for reason in total.unmeasured if reason not in self._said]
        self._said.update(new)
        if new:
            with contextlib.suppress(OSError), self._folder.log.open("a") as log:
                log.writelines(f"energy is not measured: {reason}\n" for reason in new)
        return total


def _added(one: Joules, other: Joules) -> Joules:
    return {source: one.get(source, 0.0) + other.get(source, 0.0) for source in {**one, **other}}


def _has_gpus() -> bool:
    return Path("/dev/nvidiactl").exists()
