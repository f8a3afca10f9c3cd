"""Blocks as large as a message of a transfer are reused instead of given back and mapped anew."""

import platform
import subprocess
import sys

import pytest
from anthesis import allocator

LOOK = """
import resource
from anthesis.allocator import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        blocks = [b"x" * (1 << 20) for _ in range(20)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

keep_freed_memory()
faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
def test_what_was_freed_is_used_again_without_page_faults():
    assert allocator.keep_freed_memory()
    answer = subprocess.run([sys.executable, "-c", LOOK], check=True, capture_output=True, text=True)
    assert int(answer.stdout) < 400  # of 102,400 pages


@pytest.mark.parametrize("library", [None, object()])
def test_without_glibc_nothing_is_done(library, monkeypatch):
    monkeypatch.setattr(allocator, "_c_library", lambda: library)
    assert not allocator.keep_freed_memory.__wrapped__()
