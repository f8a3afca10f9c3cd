"""BLOOM on a CPU by operators of our own: a step in one call, weights packed once, attention over blocks in place.

src/tile.h has the inner loop, linear.h the packed weights, attention.h the paged cache, step.cpp the step and the C
interface; compile.py compiles them for the processor at hand, library.py declares the interface, model.py drives it.
No part of that needs torch. attention.py is attention alone, for tests and measurements on torch's tensors.
"""

from .library import BLOCK_SIZE, CannotBuild, load_library
from .model import CpuModel

__all__ = ["BLOCK_SIZE", "CannotBuild", "CpuModel", "load_library"]
