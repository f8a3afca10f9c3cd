"""How many registers a kernel may take."""

import torch


def at_most(count: int) -> dict[str, int]:
    """The launch option; without it ptxas aims at an occupancy and spills a few bytes for that. AMD has none."""
    return {} if torch.version.hip else {"maxnreg": count}
