"""Memory of the host: what this process may still take, within its control groups, and what a computation takes.

Source: Linux, Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst; cgroups(7).
"""

import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path

_MEMINFO, _OWN_GROUPS, _GROUPS = Path("/proc/meminfo"), Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
_STATUS, _CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
# Files of a group: its limit, what it uses, and how memory.stat calls cached pages of files not used lately.
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = ("memory.max", "memory.current", "inactive_file")


def free_host_bytes() -> int:
    """Cached pages of files are free, in the machine as in a group: the kernel drops them when memory is short.

    A group that has just read a checkpoint may be full of nothing else.
    """
    return max(0, min([_value(_MEMINFO.read_text(), "MemAvailable:") * 1024, *_free_in_groups()]))


def host_peak_bytes(run: Callable[[], object]) -> int:
    """Bytes that `run` takes at its peak, beside what this process has before it."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)  # glibc would give `run` what was freed before, and it would look as if it took nothing
    _CLEAR_REFS.write_text("5")  # the peak of resident memory starts anew; see proc(5)
    before = _value(_STATUS.read_text(), "VmRSS:")
    run()
    return max(0, _value(_STATUS.read_text(), "VmHWM:") - before) * 1024


def _free_in_groups() -> Iterator[int]:
    for line in _OWN_GROUPS.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            yield from _free_on_the_way(_GROUPS / "memory", path, *_V1)
        elif not controllers:
            yield from _free_on_the_way(_GROUPS, path, *_V2)


def _free_on_the_way(root: Path, path: str, limit_file: str, used_file: str, cached_key: str) -> Iterator[int]:
    """From a group to the root: each limits all below it. In a container the path may not be there, its root is."""
    group = root / path.strip("/")
    for folder in (group, *group.parents):
        limit = folder / limit_file
        if limit.exists() and (text := limit.read_text().strip()) != "max":
            used = int((folder / used_file).read_text())
            yield int(text) - used + _value((folder / "memory.stat").read_text(), cached_key)
        if folder == root:
            return


def _value(text: str, key: str) -> int:
    return next(int(line.split()[1]) for line in text.splitlines() if line.split()[0] == key)
