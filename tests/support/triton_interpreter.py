"""For tests of kernels in Triton's interpreter, which are run with TRITON_INTERPRET=1 (see test_interpreted.py)."""

import importlib.util
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def correct_the_interpreter() -> None:
    """It keeps bf16 as its 16 bits, which it multiplies as integers, and rounds to bf16 and fp8 in ways of its own.

    Its products are a BLAS's, some of which sum a row otherwise by where in the matrix it lies; a GPU's do not.
    """

    def create_dot(self: Any, a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: Any) -> Any:
        product = np.einsum("...ik,...kj->...ij", _values(a), _values(b), dtype=d.data.dtype, optimize=False)
        return TensorHandle(product + d.data, d.dtype.scalar)

    convert = interpreter._convert_float

    def convert_float(data: Any, source: Any, target: Any, rounding: Any) -> Any:
        if source != tl.float32 or target not in _ROUNDED:
            return convert(data, source, target, rounding)
        torch_dtype, bits = _ROUNDED[target]
        return torch.from_numpy(np.ascontiguousarray(data)).to(torch_dtype).view(bits).numpy().reshape(data.shape)

    InterpreterBuilder.create_dot = create_dot
    interpreter._convert_float = convert_float


_ROUNDED = {tl.bfloat16: (torch.bfloat16, torch.uint16), tl.float8e4nv: (torch.float8_e4m3fn, torch.uint8)}


def _values(handle: Any) -> Any:
    if handle.dtype.scalar == tl.bfloat16:
        return (handle.data.astype(np.uint32) << 16).view(np.float32)
    return handle.data


@contextmanager
def fresh_memory_holds_nan() -> Iterator[None]:
    """In deterministic mode torch fills what it allocates: an output that is not written shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def mutated(module: ModuleType, tmp_path: Path, right: str, wrong: str) -> ModuleType:
    """The module with one mistake in it, in bloom.kernels as the module itself."""
    source = inspect.getsource(module)
    assert source.count(right) >= 1, f"{right!r} is no longer in {module.__name__}; adapt the mutation"
    path = tmp_path / "mutated.py"
    path.write_text(source.replace(right, wrong))
    spec = importlib.util.spec_from_file_location("bloom.kernels.mutated", path)
    assert spec is not None
    assert spec.loader is not None
    changed = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(changed)
    return changed
