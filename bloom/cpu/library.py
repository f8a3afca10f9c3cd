"""The C interface of src/step.cpp, by ctypes. Calls let go of Python's lock while they run."""

import ctypes
import logging
from ctypes import POINTER, Structure, c_bool, c_float, c_int, c_int32, c_int64, c_size_t, c_void_p
from functools import cache
from itertools import pairwise
from typing import Any

from .compile import CannotBuild, library, supported_levels

__all__ = ["Cache", "CannotBuild", "Layer", "Library", "Linear", "Model", "Step", "load_library"]

KINDS = {"float32": 0, "bfloat16": 1, "int8": 2, "int8_dynamic": 3}  # of weights; the first three also of the cache


class Linear(Structure):
    _fields_ = [
        ("rows", c_int64),
        ("columns", c_int64),
        ("kind", c_int32),
        ("panels", c_void_p),
        ("bias", c_void_p),
        ("scales", c_void_p),
        ("sums", c_void_p),
    ]


class Cache(Structure):
    _fields_ = [
        ("data", c_void_p),
        ("key_norms", c_void_p),
        ("num_blocks", c_int64),
        ("kind", c_int32),
        ("heads", c_int32),
        ("head_dim", c_int32),
    ]


class Layer(Structure):
    _fields_ = [
        ("norm1", c_void_p),
        ("norm1_bias", c_void_p),
        ("norm2", c_void_p),
        ("norm2_bias", c_void_p),
        ("qkv", Linear),
        ("dense", Linear),
        ("up", Linear),
        ("down", Linear),
    ]


class Model(Structure):
    _fields_ = [
        ("hidden", c_int64),
        ("layers", c_int64),
        ("first_token", c_int64),
        ("epsilon", c_float),
        ("tolerance", c_float),
        ("parallel", c_int32),
        ("embed_norm", c_void_p),
        ("embed_norm_bias", c_void_p),
        ("final_norm", c_void_p),
        ("final_norm_bias", c_void_p),
        ("slopes", c_void_p),
        ("embedding", Linear),
        ("layer", POINTER(Layer)),
        ("cache", Cache),
    ]


class Step(Structure):
    _fields_ = [
        ("tokens", c_int32),
        ("sequences", c_int32),
        ("table_stride", c_int32),
        ("ids", c_void_p),
        ("query_starts", c_void_p),
        ("context_lens", c_void_p),
        ("block_tables", c_void_p),
        ("num_needed", c_void_p),
        ("x", c_void_p),
        ("partial", c_void_p),
        ("chunks", c_int64),
        ("chunks_read", c_int64),
    ]


log = logging.getLogger(__name__)
BLOCK_SIZE = 16  # tokens of a cache block, fixed by src/attention.h


class Library:
    """The operators of one level (see compile.py)."""

    def __init__(self, level: str) -> None:
        self.level = level
        self.path = library(level)
        self.c = ctypes.CDLL(str(self.path))
        for name, result, *arguments in _SIGNATURES:
            function = getattr(self.c, name)
            function.restype, function.argtypes = result, arguments


_SIGNATURES: list[tuple[Any, ...]] = [
    ("bloom_open", c_void_p, c_int),
    ("bloom_close", None, c_void_p),
    ("bloom_allocate", c_void_p, c_size_t),
    ("bloom_free", None, c_void_p, c_size_t),
    ("bloom_touch", None, c_void_p, c_void_p, c_size_t),
    ("bloom_panels_bytes", c_int64, POINTER(Linear)),
    ("bloom_block_bytes", c_int64, POINTER(Cache)),
    ("bloom_pack", c_bool, c_void_p, POINTER(Linear), c_int64, c_int64, c_void_p, c_int64, c_int),
    ("bloom_final_stage", c_int, POINTER(Model)),
    ("bloom_run", None, c_void_p, POINTER(Model), POINTER(Step), c_int, c_int),
    ("bloom_attend", None, c_void_p, POINTER(Cache), c_void_p, c_float, POINTER(Step), c_void_p, c_void_p),
    ("bloom_copy_blocks", None, POINTER(Model), c_void_p, c_int64),
    ("bloom_linear", None, c_void_p, POINTER(Linear), c_void_p, c_int64, c_int64, c_void_p, c_int64),
]


@cache
def load_library(level: str = "") -> Library:
    """The operators for this processor, the best that can be had, or of a lower level that it runs too.

    Raises CannotBuild where there are none, such as without a compiler, or ValueError for a level that this processor
    does not run.
    """
    supported = supported_levels()
    if level and level not in supported:
        raise ValueError(f"level={level!r} does not run here; choose of {', '.join(supported)}")
    if level:
        return Library(level)
    for best, lower in pairwise(supported):
        try:
            return Library(best)
        except CannotBuild as error:  # such as a level that this compiler or assembler is too old for
            log.warning("no operators for %s, trying those for %s: %s", best, lower, error)
    return Library(supported[-1])
