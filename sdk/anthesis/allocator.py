"""How the C library's allocator treats the large blocks of transfers.

glibc gives memory back to the system as soon as some lies free at an end of its heap, or maps each large block for
itself. Of messages of 1 MiB each is then paid for with 256 page faults, which cost more than to fill it.
"""

import ctypes
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_… of malloc.h
KEPT_BYTES = 256 << 20
MAPPED_BYTES = 32 << 20  # the most that glibc takes


@cache
def keep_freed_memory() -> bool:
    """Have this process keep up to 256 MiB that it has freed; say whether the C library does. Without glibc: no."""
    mallopt = getattr(_c_library(), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_THRESHOLD, MAPPED_BYTES) and mallopt(_TRIM_THRESHOLD, KEPT_BYTES))


def _c_library() -> object:
    try:
        return ctypes.CDLL(None)
    except (OSError, TypeError):  # Windows has no library of the process itself
        return None
