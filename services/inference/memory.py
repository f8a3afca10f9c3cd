"""How much memory of a torch device a computation takes at its peak."""

from collections.abc import Callable

import torch

from services.inference.host_memory import host_peak_bytes


def peak_bytes(device: torch.device, run: Callable[[], object]) -> int:
    """Bytes that `run` takes on `device` at its peak, beside what is in use before it."""
    if device.type != "cuda":
        return host_peak_bytes(run)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.empty_cache()  # what is free is asked of the driver next
    return peak - before
