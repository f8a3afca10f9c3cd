"""BLOOM on a CPU by operators of our own: a step in one call, weights packed once, attention over blocks in place.

src/tile.h has the inner loop, linear.h the packed weights, attention.h the paged cache, step.cpp the step and the C
interface; compile.py compiles them for the processor at hand, library.py declares the interface, model.py drives it.
"""

from .attention import BLOCK_SIZE, PagedAttention
from .library import CannotBuild, load_library
from .model import CpuModel

__all__ = ["BLOCK_SIZE", "CannotBuild", "CpuModel", "PagedAttention", "load_library"]
