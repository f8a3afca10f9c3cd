"""How many registers a kernel may take."""

import torch


def at_most(count: int) -> dict[str, int]:
    """The launch option. Left alone, ptxas aims at an occupancy and spills a few bytes for it. AMD has no such option."""
    return {} if torch.version.hip else {"maxnreg": count}
