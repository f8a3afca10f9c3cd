"""A BLOOM, or one rank's share of it, computed by the operators in src/.

T = tokens of a step, S = sequences, R = tokens whose hidden states are needed, M = rows, H = hidden size,
V = rows of the embedding here
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..checkpoint_reader import STORED, CheckpointReader
from ..parallel import Shard
from ..tensors import scale_name
from .library import BLOCK_SIZE, KINDS, Cache, Layer, Library, Linear, Model, Step, load_library

TOLERANCE = {"float32": 2.0**-24, "bfloat16": 2.0**-9, "int8": 2.0**-9}  # rounding of what leaves attention, by cache
_PIECE_BYTES = 16 << 20  # of a weight, read and packed at a time
_PIECE_TOKENS = 512  # of a step, computed at a time: enough rows to keep the units busy, in memory for no more
_LAYERS, _PER_LAYER = 2, 4  # src/step.cpp's stages: the first of layer 0, and how many a layer has
_SOURCE_KINDS = {"F32": 0, "BF16": 1, "I8": 2}

Rows = NDArray[np.float32]
AllReduce = Callable[[Rows], None]  # sums over the tensor-parallel ranks, in place


class CpuModel:
    """Packs a checkpoint's weights once and runs steps over a paged cache.

    weights: "float32", "bfloat16", "int8" (of the weights alone) or "int8_dynamic" (activations as well, per token).
    shard: what this rank holds; the whole model by default. all_reduce: with tensor parallelism.
    tolerance: the share of attention's mass that far blocks may be left out for; None: fp rounding, 0: nothing.
    A row's result does not depend on the rows beside it, in any format: all of it is summed in a fixed order.
    Raises CannotBuild where the operators cannot be had, ValueError for int8 of weights that are not finite.
    """

    def __init__(
        self,
        reader: CheckpointReader,
        *,
        weights: str = "bfloat16",
        shard: Shard | None = None,
        threads: int = 1,
        all_reduce: AllReduce | None = None,
        level: str = "",
    ) -> None:
        self.config = reader.checkpoint.config
        self.library: Library = load_library(level)
        self.shard = shard or Shard.of(self.config)
        self.weights = weights
        self._c = self.library.c
        self._keep: list[NDArray[Any]] = []  # what the structs point to
        self._mapped: list[tuple[int, int]] = []
        self._all_reduce = all_reduce
        self._context = self._c.bloom_open(threads)
        self._buffer = np.empty(_PIECE_BYTES, dtype=np.uint8)
        self._model = self._build(reader)
        del self._buffer
        self._final_stage: int = self._c.bloom_final_stage(self._model)
        self._logits = np.empty((0, self._model.embedding.rows), dtype=np.float32)
        self.chunks = self.chunks_read = 0  # of keys: that could have been left out, and those that were read

    def allocate_cache(self, num_blocks: int, *, dtype: str, tolerance: float | None = None) -> None:
        """Take the memory of `num_blocks` blocks of BLOCK_SIZE tokens, all of it now: later there may be none.

        dtype: "float32", "bfloat16" or "int8".
        """
        self._model.tolerance = TOLERANCE[dtype] if tolerance is None else tolerance
        cache, layers = self._model.cache, self.shard.num_layers
        if cache.data:
            self._c.bloom_free(*self._mapped.pop())
        cache.num_blocks, cache.kind = num_blocks, KINDS[dtype]
        size = layers * num_blocks * self._c.bloom_block_bytes(cache)
        cache.data = self._allocate(size)
        self._c.bloom_touch(self._context, cache.data, size)
        self._key_norms = np.zeros((layers, num_blocks, cache.heads), dtype=np.float32)
        cache.key_norms = self._key_norms.ctypes.data

    def block_bytes(self, dtype: str) -> int:
        """Bytes of one block in all layers here."""
        cache = Cache(kind=KINDS[dtype], heads=self._model.cache.heads, head_dim=self._model.cache.head_dim)
        per_layer: int = self._c.bloom_block_bytes(cache)
        return self.shard.num_layers * per_layer

    def forward(
        self,
        input_ids: NDArray[np.int64],
        query_starts: NDArray[np.int32],
        context_lens: NDArray[np.int32],
        block_tables: NDArray[np.int32],
        x: Rows | None = None,
        *,
        num_needed: NDArray[np.int32] | None = None,
    ) -> Rows:
        """Hidden states, fp32, of a step: (R, H) after ln_f on the last stage, else (T, H) for the next to go on with.

        input_ids (T,), packed; query_starts (S + 1,); context_lens (S,), the step's tokens included; block_tables
        (S, blocks). x: (T, H) of the stage before, fp32, contiguous; it is overwritten. num_needed: (S,) of how many
        tokens, the last ones of each sequence, hidden states are needed (R in all); by default of all. The last layer
        computes only keys and values of the others.
        """
        is_last = self.shard.is_last(self.config)
        last_stage = self._final_stage if is_last else self._final_stage - 1
        if x is None:
            x = np.empty((len(input_ids), self.config.hidden_size), dtype=np.float32)
        needed = num_needed if is_last else None
        parts = []
        for first in range(0, len(input_ids), _PIECE_TOKENS):
            piece = slice(first, min(first + _PIECE_TOKENS, len(input_ids)))
            batch = cut(piece, query_starts, context_lens, needed)
            count = self._run(last_stage, input_ids[piece], batch, block_tables[batch.sequences], x[piece])
            parts.append(x[first : first + count])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def try_step(self, num_tokens: int, num_rows: int) -> None:
        """Run a step of num_tokens and num_rows logits, one piece through one layer: others use the same memory.

        For what it takes; before allocate_cache, over a cache of one block that is let go of again.
        """
        self.allocate_cache(1, dtype="float32")
        x = np.zeros((num_tokens, self.config.hidden_size), dtype=np.float32)
        piece = min(num_tokens, _PIECE_TOKENS)
        ids = np.zeros(piece, dtype=np.int64)
        starts, lens = np.array([0, piece], dtype=np.int32), np.array([piece], dtype=np.int32)
        tables = np.zeros((1, -(-piece // BLOCK_SIZE)), dtype=np.int32)
        batch = cut(slice(0, piece), starts, lens, None)
        self._run(_LAYERS + _PER_LAYER - 1, ids, batch, tables, x[:piece])
        if self.shard.is_last(self.config):
            self.logits(x[:num_rows])

    def _run(
        self,
        last_stage: int,
        input_ids: NDArray[np.int64],
        piece: "Piece",
        block_tables: NDArray[np.int32],
        x: Rows,
    ) -> int:
        """The stages of src/step.cpp up to last_stage, on x in place; how many rows of it, the first, then count."""
        partial = np.empty_like(x) if self._all_reduce else None
        tables = np.ascontiguousarray(block_tables)
        step = Step(
            tokens=len(input_ids),
            sequences=len(piece.context_lens),
            table_stride=tables.shape[1],
            ids=input_ids.ctypes.data,
            query_starts=piece.query_starts.ctypes.data,
            context_lens=piece.context_lens.ctypes.data,
            block_tables=tables.ctypes.data,
            num_needed=None if piece.num_needed is None else piece.num_needed.ctypes.data,
            x=x.ctypes.data,
            partial=None if partial is None else partial.ctypes.data,
        )
        for first, last, reduced in self._segments(0 if self.shard.is_first() else _LAYERS, last_stage):
            self._c.bloom_run(self._context, self._model, step, first, last)
            if reduced and step.tokens:
                assert self._all_reduce is not None
                self._all_reduce(x if reduced == "x" else partial[: step.tokens])  # type: ignore[index]
        self.chunks += step.chunks
        self.chunks_read += step.chunks_read
        return int(step.tokens)

    def logits(self, hidden: Rows) -> Rows:
        """(M, V) fp32 from hidden (M, H) fp32, in memory that the next call uses again.

        32 rows of BLOOM's vocabulary are 32 MB: new pages for them in every step would cost milliseconds.
        """
        hidden = np.ascontiguousarray(hidden)
        if len(hidden) > len(self._logits):
            self._logits = np.empty((len(hidden), self._model.embedding.rows), dtype=np.float32)
        out = self._logits[: len(hidden)]
        self._c.bloom_linear(
            self._context,
            self._model.embedding,
            hidden.ctypes.data,
            len(hidden),
            hidden.shape[1],
            out.ctypes.data,
            out.shape[1],
        )
        return out

    def copy_blocks(self, pairs: NDArray[np.int32]) -> None:
        """Blocks source -> target, pairs (C, 2), in every layer."""
        if len(pairs):
            pairs = np.ascontiguousarray(pairs)
            self._c.bloom_copy_blocks(self._model, pairs.ctypes.data, len(pairs))

    def close(self) -> None:
        """Give back threads and memory."""
        if self._context:
            self._c.bloom_close(self._context)
            self._context = None
            for address, size in self._mapped:
                self._c.bloom_free(address, size)
            self._keep.clear()

    def _segments(self, begin: int, end: int) -> list[tuple[int, int, str]]:
        """Stages that run in one call (first, last), and what is summed over the ranks after them."""
        if self._all_reduce is None:
            return [(begin, end, "")]
        stops = [(stage, "partial") for stage in range(_LAYERS, end, 2)]  # after attention, after the MLP
        if begin == 0:
            stops.insert(0, (0, "x"))
        segments = []
        for stage, reduced in stops:
            segments.append((begin, stage, reduced))
            begin = stage + 1
        return [*segments, (begin, end, "")] if begin <= end else segments

    def _build(self, reader: CheckpointReader) -> Model:
        config, shard = self.config, self.shard
        layers = [self._layer(reader, i) for i in range(shard.first_layer, shard.last_layer + 1)]
        heads = shard.heads(config)
        model = Model(
            hidden=config.hidden_size,
            layers=len(layers),
            first_token=shard.vocabulary(config).start,
            epsilon=config.layer_norm_epsilon,
            parallel=int(self._all_reduce is not None),
            slopes=self._pointer(np.array(shard.slopes(config), dtype=np.float32)),
            layer=(Layer * len(layers))(*layers),
            cache=Cache(heads=heads.stop - heads.start, head_dim=config.head_dim),
        )
        if shard.is_first():
            model.embed_norm, model.embed_norm_bias = self._norm(reader, "word_embeddings_layernorm")
        if shard.is_last(config):
            model.final_norm, model.final_norm_bias = self._norm(reader, "ln_f")
        if shard.is_first() or shard.is_last(config):
            model.embedding = self._linear(reader, "word_embeddings", num_rows=shard.vocabulary_rows(config))
        return model

    def _layer(self, reader: CheckpointReader, index: int) -> Layer:
        name = f"h.{index}."
        norm1, norm1_bias = self._norm(reader, f"{name}input_layernorm")
        norm2, norm2_bias = self._norm(reader, f"{name}post_attention_layernorm")
        return Layer(
            norm1=norm1,
            norm1_bias=norm1_bias,
            norm2=norm2,
            norm2_bias=norm2_bias,
            qkv=self._linear(reader, f"{name}self_attention.query_key_value"),
            dense=self._linear(reader, f"{name}self_attention.dense"),
            up=self._linear(reader, f"{name}mlp.dense_h_to_4h"),
            down=self._linear(reader, f"{name}mlp.dense_4h_to_h"),
        )

    def _norm(self, reader: CheckpointReader, name: str) -> tuple[int, int]:
        weight, bias = (self._vector(reader, f"{name}.{part}") for part in ("weight", "bias"))
        return weight, bias

    def _vector(self, reader: CheckpointReader, name: str) -> int:
        rows, _ = self.shard.part(self.config, name)
        return self._pointer(reader.read_float32(name, rows))

    def _linear(self, reader: CheckpointReader, name: str, num_rows: int = 0) -> Linear:
        """Pack this rank's part of a weight, piece by piece; rows beyond it, up to num_rows, stay zero."""
        weight = f"{name}.weight"
        rows, columns = self.shard.part(self.config, weight)
        shape = reader.checkpoint.tensors[weight].shape
        first, last, _ = rows.indices(shape[0])
        left, right, _ = columns.indices(shape[1])
        linear = Linear(rows=num_rows or last - first, columns=right - left, kind=KINDS[self.weights])
        linear.panels = self._allocate(self._c.bloom_panels_bytes(linear))
        if f"{name}.bias" in reader.checkpoint.tensors:
            linear.bias = self._vector(reader, f"{name}.bias")
        scales = np.zeros(-(-linear.rows // 32) * 32, dtype=np.float32)
        if self.weights.startswith("int8"):
            linear.scales = self._pointer(scales)
            linear.sums = self._pointer(np.zeros(len(scales), dtype=np.int32))
            if reader.checkpoint.tensors[weight].dtype == "I8":
                scales[: last - first] = reader.read_float32(scale_name(weight), slice(first, last))
        self._pack(reader, weight, linear, slice(first, last), slice(left, right))
        return linear

    def _pack(self, reader: CheckpointReader, name: str, linear: Linear, rows: slice, columns: slice) -> None:
        """Read through one buffer for all weights: memory that comes and goes in such pieces stays with the process."""
        stored = reader.checkpoint.tensors[name].dtype
        itemsize = np.dtype(STORED[stored]).itemsize
        step = max(1, len(self._buffer) // (linear.columns * itemsize * 32)) * 32
        for row in range(rows.start, rows.stop, step):
            part = slice(row, min(row + step, rows.stop))
            size = (part.stop - row) * linear.columns * itemsize
            room = self._buffer[:size] if size <= len(self._buffer) else None
            piece, kind = reader.read_stored(name, part, columns, out=room), stored
            if stored == "F16" or (stored == "I8" and not linear.scales):
                piece, kind = piece.astype(np.float32), "F32"
            if stored == "I8" and not linear.scales:
                piece *= reader.read_float32(scale_name(name), part)[:, None]
            source = piece.ctypes.data, linear.columns, _SOURCE_KINDS[kind]
            if not self._c.bloom_pack(self._context, linear, row - rows.start, len(piece), *source):
                raise ValueError(f"{name} has a weight that is not finite, which int8 cannot hold; serve it in float32")

    def _pointer(self, array: NDArray[Any]) -> int:
        self._keep.append(array)
        return array.ctypes.data

    def _allocate(self, size: int) -> int:
        address = self._c.bloom_allocate(size)
        if not address:
            raise MemoryError(f"{size} bytes for weights or cache cannot be had; free memory or serve a smaller model")
        self._mapped.append((address, size))
        return int(address)


class Piece(NamedTuple):
    """Some tokens of a step, computed at a time: which sequences have any there, and what `forward` takes of these."""

    sequences: slice
    query_starts: NDArray[np.int32]
    context_lens: NDArray[np.int32]
    num_needed: NDArray[np.int32] | None


def cut(
    tokens: slice,
    query_starts: NDArray[np.int32],
    context_lens: NDArray[np.int32],
    num_needed: NDArray[np.int32] | None,
) -> Piece:
    first = int(np.searchsorted(query_starts, tokens.start, side="right")) - 1
    last = int(np.searchsorted(query_starts, tokens.stop, side="left"))
    starts = np.clip(query_starts[first : last + 1], tokens.start, tokens.stop)
    ends = query_starts[first + 1 : last + 1]
    after = ends - starts[1:]  # tokens of a sequence that the step has behind the piece
    if num_needed is not None:
        num_needed = np.clip(num_needed[first:last] - after, 0, np.diff(starts)).astype(np.int32)
    return Piece(slice(first, last), starts - tokens.start, context_lens[first:last] - after, num_needed)
