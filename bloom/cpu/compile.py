"""Compiles the operators for this machine's processor: on first use, or ahead of time (`python -m bloom.cpu`).

A plain shared library with a C interface: it includes no header of torch's, so that it builds in seconds and a new
torch needs no new build. Its name holds a hash of sources and flags; a file that is there is complete.
"""

import ctypes
import fcntl
import hashlib
import logging
import os
import platform
import shutil
import subprocess
from functools import cache
from pathlib import Path

SOURCES = Path(__file__).parent / "src"
LIBRARIES = Path(__file__).parent / "build"
log = logging.getLogger(__name__)
CPU_INFO = Path("/proc/cpuinfo")
_FLAGS = [
    *("-std=c++20", "-O3", "-fPIC", "-shared", "-pthread"),
    *("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
    *("-Wall", "-Wextra", "-Wno-psabi", "-Wno-maybe-uninitialized"),  # the last: GCC's own AVX-512 header, bug 105593
]

# Level -> compiler flags and the processor flags (as in /proc/cpuinfo) that it needs, best first.
_X86_64_V3 = ("avx2", "fma", "f16c", "bmi2")
_X86_64_V4 = (*_X86_64_V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
_AMX = ("amx_tile", "amx_bf16", "amx_int8")
LEVELS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "amx": (
        (
            *("-march=x86-64-v4", "-mavx512vnni", "-mavx512bf16", "-mprefer-vector-width=512"),
            *("-mamx-tile", "-mamx-bf16", "-mamx-int8"),
        ),
        (*_X86_64_V4, "avx512_vnni", "avx512_bf16", *_AMX),
    ),
    "avx512_bf16": (
        ("-march=x86-64-v4", "-mavx512vnni", "-mavx512bf16", "-mprefer-vector-width=512"),
        (*_X86_64_V4, "avx512_vnni", "avx512_bf16"),
    ),
    "avx512_vnni": (
        ("-march=x86-64-v4", "-mavx512vnni", "-mprefer-vector-width=512"),
        (*_X86_64_V4, "avx512_vnni"),
    ),
    "avx512": (("-march=x86-64-v4", "-mprefer-vector-width=512"), _X86_64_V4),
    "avx2": (("-march=x86-64-v3",), _X86_64_V3),
    "generic": ((), ()),  # whatever the compiler takes for granted, on any processor
}


class CannotBuild(Exception):
    """No library can be had here; the message says why."""


@cache
def supported_levels() -> list[str]:
    """Those that this processor runs, best first."""
    try:
        flags = set(CPU_INFO.read_text().split())
    except OSError:
        flags = set()
    if platform.machine() != "x86_64":
        flags = set()
    if flags.issuperset(_AMX) and not _may_use_tiles():
        log.warning("Linux does not let this process use AMX; the operators compute without it, several times slower")
        flags.difference_update(_AMX)
    return [level for level, (_, needed) in LEVELS.items() if flags.issuperset(needed)]


def _may_use_tiles() -> bool:
    """Ask Linux for AMX's tile registers, which a process has only once it has asked."""
    arch_prctl, request_permission, tile_data = 158, 0x1023, 18
    return bool(ctypes.CDLL(None).syscall(arch_prctl, request_permission, tile_data) == 0)


def library(level: str) -> Path:
    """The compiled operators of `level`, built now unless they are there. Raises CannotBuild.

    Of several processes that ask at once, such as an engine's ranks, one builds.
    """
    target = LIBRARIES / f"{level}-{_sources_hash()}.so"
    if target.exists():
        return target
    try:
        LIBRARIES.mkdir(exist_ok=True)
        lock = (LIBRARIES / "lock").open("w")
    except OSError as error:
        remedy = "run `python -m bloom.cpu` as its owner"
        raise CannotBuild(f"cannot write {LIBRARIES} ({error}); {remedy}") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # let go of by the system, however this process ends
        if not target.exists():
            _compile(target, LEVELS[level][0])
            for old in set(LIBRARIES.glob(f"{level}-*.so")) - {target}:
                old.unlink(missing_ok=True)
    return target


def _sources_hash() -> str:
    digest = hashlib.sha256(repr((_FLAGS, LEVELS)).encode())
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.name.encode() + source.read_bytes())
    return digest.hexdigest()[:12]


def _compile(target: Path, flags: tuple[str, ...]) -> None:
    """Into another file that then takes the name: what has it is whole."""
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("g++", "clang++", "c++")), None)
    if compiler is None:
        raise CannotBuild("no C++ compiler found; install g++, or name one in CXX")
    partial = target.with_suffix(".partial")
    command = [compiler, *_FLAGS, *flags, str(SOURCES / "step.cpp"), "-o", str(partial)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise CannotBuild(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
    os.replace(partial, target)
