"""Memory of the host that this process may still take: the machine's, within the limits of its control groups.

Source: Linux, Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst; cgroups(7).
"""

from collections.abc import Iterator
from pathlib import Path

_MEMINFO, _OWN_GROUPS, _GROUPS = Path("/proc/meminfo"), Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
# Files of a group: its limit, what it uses, and how memory.stat calls cached pages of files not used lately.
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = ("memory.max", "memory.current", "inactive_file")


def free_host_bytes() -> int:
    """Cached pages of files are free, in the machine as in a group: the kernel drops them when memory is short.

    A group that has just read a checkpoint may be full of nothing else.
    """
    return max(0, min([_value(_MEMINFO.read_text(), "MemAvailable:") * 1024, *_free_in_groups()]))


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
