"""llama.cpp by the C API of llama-cpp-python, in real batches. Runs in the environment `venv-llama`.

The greedy choice is numpy's argmax over the logits.
"""

import ctypes
import sys
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.protocol import Loaded, Prompts, Task, contend

FILE_TYPES = {"q8_0": 7, "q4_0": 2, "bf16": 32}  # llama_ftype
MICRO_BATCH = 512
MAX_BATCH_TOKENS = 4096
ERROR_LEVEL = 4  # ggml_log_level


class Input(NamedTuple):
    token: int
    position: int
    sequence: int
    wants_logits: bool


def library() -> Any:
    """The bindings; quiet, but for errors."""
    import llama_cpp  # type: ignore[import-not-found, unused-ignore]

    lib: Any = llama_cpp
    lib.llama_log_set(_log_errors(lib), ctypes.c_void_p(0))
    lib.llama_backend_init()
    return lib


def _log_errors(lib: Any) -> Any:
    def log(level: int, text: bytes, _: object) -> None:
        if level >= ERROR_LEVEL:
            sys.stderr.write(text.decode(errors="replace"))

    _log_errors.kept = lib.llama_log_callback(log)  # type: ignore[attr-defined]  # C holds no reference
    return _log_errors.kept  # type: ignore[attr-defined]


def _has_amx() -> bool:
    """Where llama-cpp-python 0.3.36 lays q8_0 weights out for AMX, and its first `llama_decode` of them crashes."""
    return "amx_int8" in Path("/proc/cpuinfo").read_text().split()


class Llama:
    """One model; a context for the batch size in use."""

    def __init__(self, lib: Any, path: str, threads: int) -> None:
        self._lib = lib
        self._threads = threads
        params = lib.llama_model_default_params()
        params.use_extra_bufts = not _has_amx()
        self._model = lib.llama_model_load_from_file(path.encode(), params)
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        self._vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self._model))
        self._context: Any = None
        self._batch = 0

    def generate(self, given: Prompts, count: int) -> list[list[int]]:
        self._open_context(len(given))
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)
        outputs: list[list[int]] = [[] for _ in given]
        inputs = [
            Input(token, position, number, position == len(prompt) - 1)
            for number, prompt in enumerate(given)
            for position, token in enumerate(prompt)
        ]
        for _ in range(count):
            for ids, drawn in zip(outputs, self._decode(inputs), strict=True):
                ids.append(drawn)
            inputs = [
                Input(ids[-1], len(prompt) + len(ids) - 1, number, True)
                for number, (prompt, ids) in enumerate(zip(given, outputs, strict=True))
            ]
        return outputs

    def _open_context(self, batch: int) -> None:
        if self._batch == batch:
            return
        if self._context:
            self._lib.llama_free(self._context)
        params = self._lib.llama_context_default_params()
        params.n_ctx = 1024 if batch == 1 else 256 * batch
        params.n_batch, params.n_ubatch, params.n_seq_max = MAX_BATCH_TOKENS, MICRO_BATCH, batch
        params.n_threads = params.n_threads_batch = self._threads
        params.no_perf = True
        self._context = self._lib.llama_init_from_model(self._model, params)
        self._batch = batch
        if not self._context:
            raise RuntimeError(f"llama.cpp makes no context for {batch} sequences")

    def _decode(self, inputs: list[Input]) -> list[int]:
        """Compute; the likeliest id of each input that wants logits."""
        import numpy as np

        lib = self._lib
        batch = lib.llama_batch_init(len(inputs), 0, 1)
        for row, one in enumerate(inputs):
            batch.token[row], batch.pos[row], batch.n_seq_id[row] = one.token, one.position, 1
            batch.seq_id[row][0], batch.logits[row] = one.sequence, one.wants_logits
        batch.n_tokens = len(inputs)
        code = lib.llama_decode(self._context, batch)
        lib.llama_batch_free(batch)
        if code != 0:
            raise RuntimeError(f"llama_decode of {len(inputs)} tokens gave {code}")
        rows = [row for row, one in enumerate(inputs) if one.wants_logits]
        pointers = (lib.llama_get_logits_ith(self._context, row) for row in rows)
        return [int(np.ctypeslib.as_array(pointer, shape=(self._vocab,)).argmax()) for pointer in pointers]


def load(task: Task) -> Loaded:
    lib = library()
    model = Llama(lib, task.model, task.threads)
    facts = {"system": lib.llama_print_system_info().decode().strip()}
    size = Path(task.model).stat().st_size
    return Loaded(
        generate=model.generate, version=f"llama-cpp-python {lib.__version__}", weight_bytes=size, facts=facts
    )


def quantize(source: Path, target: Path, kind: str) -> None:
    """Another GGUF file of the same model: q8_0, q4_0 or bf16 from f16."""
    lib = library()
    params = lib.llama_model_quantize_default_params()
    params.ftype = FILE_TYPES[kind]
    partial = target.with_name(target.name + ".partial")
    code = lib.llama_model_quantize(str(source).encode(), str(partial).encode(), ctypes.byref(params))
    if code != 0:
        raise RuntimeError(f"llama_model_quantize of {source} to {kind} gave {code}")
    partial.rename(target)


if __name__ == "__main__":
    if sys.argv[1] == "quantize":
        quantize(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
    else:
        contend(load)
