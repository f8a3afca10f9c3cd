"""Parts of a checkpoint's tensors as torch's, in any number format and on any device."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from .checkpoint_reader import CheckpointReader, bounds
from .int8 import dequantize, quantize
from .tensors import StoredTensor, scale_name

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I8": torch.int8}
PIECE_NUMBERS = 1 << 24  # of a tensor, where one is copied a few rows at a time
PIECE_BYTES = 1 << 19  # read at a time where the format changes: stays in the cache of the core that converts it


class TensorReader(CheckpointReader):
    """A CheckpointReader that converts, dequantizes and quantizes. Use it in one thread."""

    def dtype(self, name: str) -> torch.dtype:
        """As stored."""
        return DTYPES[self.checkpoint.tensors[name].dtype]

    def read(
        self,
        name: str,
        rows: slice | None = None,
        columns: slice | None = None,
        *,
        dtype: torch.dtype | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """The tensor `name` (canonical), or its rows and columns, in host memory that belongs to the caller.

        rows, columns: of step 1, cut at the tensor's edge as Python's slices are; a vector has rows alone.
        dtype: to convert to, by default the stored one. out: contiguous, of the part's shape, to read into instead, on
        any device. Where that is a float format and int8 is stored, the numbers that it stands for.
        Raises KeyError for a name that is not in the checkpoint, ValueError when the file changed since it was opened.
        """
        stored = self.checkpoint.tensors[name]
        height, width = stored.shape[0], math.prod(stored.shape[1:])
        first, last = bounds(rows, height)
        left, right = bounds(columns, width)
        shape = (last - first,) if len(stored.shape) == 1 else (last - first, right - left)
        if out is None:
            out = torch.empty(shape, dtype=dtype or DTYPES[stored.dtype])
        if tuple(out.shape) != shape or not out.is_contiguous():
            given = f"{list(out.shape)} of strides {list(out.stride())}"
            raise ValueError(f"{name}: out is {given}; give a contiguous tensor of shape {list(shape)}")
        flat = out.view(last - first, right - left)
        if flat.dtype == DTYPES[stored.dtype] and flat.device.type == "cpu":
            self._fill(flat, stored, first, left)
            return out
        is_quantized = stored.dtype == "I8" and flat.dtype.is_floating_point
        for start, piece in self._pieces(stored, first, last, left, right):
            if is_quantized:
                piece = dequantize(piece, self.read(scale_name(name), slice(start, start + len(piece))))
            flat[start - first : start - first + len(piece)].copy_(piece)
        return out

    def read_int8(
        self, name: str, rows: slice | None = None, columns: slice | None = None, *, out: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Rows and columns of a matrix as int8 (R, C), and the fp32 scales (R,) of its rows (bloom.int8).

        As stored in an int8 checkpoint. Else quantized here, piece by piece, and the scales fit the columns asked for:
        a rank that has some of them reads no others.
        Raises ValueError, naming the tensor, where it holds numbers that are not finite.
        """
        stored = self.checkpoint.tensors[name]
        if stored.dtype == "I8":
            return self.read(name, rows, columns, dtype=torch.int8, out=out), self.read(scale_name(name), rows)
        first, last = bounds(rows, stored.shape[0])
        left, right = bounds(columns, stored.shape[1])
        q = torch.empty(last - first, right - left, dtype=torch.int8) if out is None else out
        scale = torch.empty(last - first)
        for start, piece in self._pieces(stored, first, last, left, right):
            done = slice(start - first, start - first + len(piece))
            try:
                part, scale[done] = quantize(piece)
            except ValueError as error:
                raise ValueError(f"{stored.name} in {stored.file}, from row {start}: {error}") from error
            q[done].copy_(part)
        return q, scale

    def _pieces(
        self, stored: StoredTensor, first: int, last: int, left: int, right: int
    ) -> Iterator[tuple[int, Tensor]]:
        """Rows `first` to `last` in the stored format, a few at a time, all in one buffer: (first row, (R, C))."""
        if first == last or left == right:
            return
        step = max(1, PIECE_BYTES // ((right - left) * DTYPES[stored.dtype].itemsize))
        buffer = torch.empty(min(step, last - first), right - left, dtype=DTYPES[stored.dtype])
        for start in range(first, last, step):
            piece = buffer[: min(step, last - start)]
            self._fill(piece, stored, start, left)
            yield start, piece

    def _fill(self, part: Tensor, stored: StoredTensor, first: int, left: int) -> None:
        """Read into `part` (R, C), in the stored format, what begins at row `first`, column `left`."""
        num_rows, num_columns = part.shape
        target = memoryview(part.view(-1).view(torch.uint8).numpy().data)
        self.read_bytes(stored, (first, first + num_rows), (left, left + num_columns), target)


def row_pieces(shape: tuple[int, ...]) -> Iterator[slice]:
    """Slices of a tensor's rows, each of about PIECE_NUMBERS numbers."""
    rows, *columns = shape
    step = max(1, PIECE_NUMBERS // columns[0]) if columns else rows
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))
