"""How much memory a computation takes at its peak."""

import re
from collections.abc import Callable
from pathlib import Path

import torch

_STATUS, _CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_bytes(device: torch.device, run: Callable[[], object]) -> int:
    """Bytes that `run` takes on `device` at its peak, beside what is in use before it."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.empty_cache()  # what is free is asked of the driver next
        return peak - before
    _CLEAR_REFS.write_text("5")  # the peak of resident memory starts anew; see proc(5)
    before = _status_bytes("VmRSS")
    run()
    return max(0, _status_bytes("VmHWM") - before)


def _status_bytes(field: str) -> int:
    found = re.search(rf"^{field}:\s*(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024
