"""What the compilers make of every kernel in its default configurations, on a machine without a GPU.

    python -m bloom.kernels.aot [--write docs/kernels.md]

Each launcher is called as on a GPU, on tensors of the meta device that have shapes and no memory; what it would launch
is compiled ahead of time instead. So the configurations stand in one place, the launchers.
"""

import argparse
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from . import (
    decode_attention,
    gelu,
    invariant_linear,
    kv_store,
    penalties,
    prefill_attention,
    quantized_linear,
    residual_norm,
    row_norm,
    sampling,
)

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
_BIN = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_NAMES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int8: "i8",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.float8_e4m3fn: "fp8e4nv",
}


@dataclass(frozen=True, slots=True, eq=False)
class Launch:
    """One kernel launch, as compilation sees it."""

    kernel: Any  # JITFunction
    signature: dict[str, str]  # parameter -> type
    constants: dict[str, Any]
    divisible: tuple[int, ...]  # parameters known to divide by 16
    options: dict[str, int]  # warps, stages

    @property
    def name(self) -> str:
        return str(self.kernel.__name__)

    @property
    def config(self) -> str:
        """Its sizes, warps and stages."""
        sizes = (f"{name}={value}" for name, value in self.constants.items() if name.startswith(("block_", "chunk")))
        return ", ".join([*sizes, f"{self.options['num_warps']} warps"])


@dataclass(frozen=True, slots=True)
class Resources:
    registers: int  # per thread
    shared_bytes: int  # per program
    spilled: int  # bytes per thread on the stack (CUDA), or registers (AMD), of what found no register


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Launches of this thread's kernels, which are not run."""
    launches: list[Launch] = []
    run = JITFunction.run

    def record(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        launches.append(_launch(kernel, args, options))

    JITFunction.run = record
    try:
        yield launches
    finally:
        JITFunction.run = run


def _launch(kernel: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Launch:
    names = [parameter.name for parameter in kernel.params]
    values = dict(zip(names, args, strict=False)) | {name: options.pop(name) for name in names if name in options}
    signature, constants, divisible = {}, {}, []
    for index, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        specialized = not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1 and specialized):
            signature[parameter.name], constants[parameter.name] = "constexpr", value
            continue
        signature[parameter.name] = _type_of(value)
        is_divisible = isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0)
        if is_divisible and specialized:
            divisible.append(index)
    return Launch(kernel, signature, constants, tuple(divisible), options)


def _type_of(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"*{_NAMES[value.dtype]}"
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def compile_for(launch: Launch, target: GPUTarget) -> Resources:
    """Raises RuntimeError with the compiler's words where it cannot be compiled."""
    source = ASTSource(
        fn=launch.kernel,
        signature=launch.signature,
        constexprs=launch.constants,
        attrs={(index,): [["tt.divisibility", 16]] for index in launch.divisible},
    )
    is_amd = target.backend == "hip"
    options = {key: value for key, value in launch.options.items() if key != "maxnreg" or not is_amd}
    compiled = triton.compile(source, target=target, options=options)
    registers, spilled = _of_amdgcn(compiled.asm["amdgcn"]) if is_amd else _of_cubin(compiled)
    return Resources(registers, compiled.metadata.shared, spilled)


def _of_cubin(compiled: Any) -> tuple[int, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [str(_BIN / "cuobjdump"), "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack, local = (int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK", "LOCAL"))  # type: ignore[index]
    return registers, stack + local  # a spill lives on the stack


def _of_amdgcn(text: str) -> tuple[int, int]:
    registers, spilled = (int(re.search(rf"\.{name}:\s*(\d+)", text)[1]) for name in ("vgpr_count", "vgpr_spill_count"))  # type: ignore[index]
    return registers, spilled


def can_compile(launch: Launch, target: str) -> bool:
    """fp8 (e4m3) is there from sm_89 on."""
    return target != "sm_80" or "*fp8e4nv" not in launch.signature.values()


GROUPS = ("decode", "prefill", "store", "rows", "products", "sampling")
_COMPUTED = (torch.float32, torch.bfloat16, torch.float16)
_QUANTIZED = (torch.int8, torch.float8_e4m3fn)


def default_launches(
    *, groups: Sequence[str] = GROUPS, heads: Sequence[int] = (64, 80, 96, 128)
) -> list[tuple[str, Launch]]:
    """What the launchers launch on BLOOM's shapes: a label (dtypes, sizes) and the launch, each distinct one once."""
    launches: dict[str, tuple[str, Launch]] = {}
    for group in groups:
        for label, call in _calls(group, heads):
            with recorded() as found:
                call()
            for launch in found:
                launches.setdefault(
                    repr((launch.name, launch.signature, launch.constants, launch.divisible)), (label, launch)
                )
    return list(launches.values())


def _calls(group: str, heads: Sequence[int]) -> Iterator[tuple[str, Any]]:
    if group == "rows":
        for dtype in _COMPUTED:
            for size in (1024, 2560, 14336):
                yield f"{_NAMES[dtype]}, H={size}", partial(_rows, dtype, size)
    elif group == "products":
        for dtype in _COMPUTED:
            for num_rows in (1, 32, 64):
                yield f"{_NAMES[dtype]}, M={num_rows}", partial(_products, dtype, num_rows)
    elif group == "sampling":
        yield "fp32", _sampling
    else:
        for head_dim in heads:
            for dtype in _COMPUTED:
                for cached in (dtype, *_QUANTIZED):
                    label = f"{_NAMES[dtype]}, {_NAMES[cached]} cache, D={head_dim}"
                    yield label, partial(_attention, group, dtype, cached, head_dim, skips=True)
                    yield label + ", no skip", partial(_attention, group, dtype, cached, head_dim, skips=False)


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _attention(group: str, dtype: torch.dtype, cached: torch.dtype, head_dim: int, *, skips: bool) -> None:
    num_blocks, num_heads, num_seqs, num_tokens = 4096, 32, 8, 512
    q = _meta(num_seqs if group == "decode" else num_tokens, num_heads, head_dim, dtype=dtype)
    cache = _meta(num_blocks, 16, num_heads, head_dim, dtype=cached)
    scales = _meta(num_blocks, 16, num_heads) if cached in _QUANTIZED else None
    beside: dict[str, Any] = {
        "k_scales": scales,
        "v_scales": scales,
        "key_norms": _meta(num_blocks, num_heads) if skips else None,
    }
    if group == "store":
        kv_store.store_kv(q, q, cache, cache, _meta(num_tokens, dtype=torch.int64), **beside)
        return
    tables, lens = _meta(num_seqs, 128, dtype=torch.int32), _meta(num_seqs, dtype=torch.int32)
    slopes = _meta(num_heads)
    if group == "decode":
        decode_attention.paged_decode_attention(q, cache, cache, tables, lens, slopes, **beside)
    else:
        starts = _meta(num_seqs + 1, dtype=torch.int32)
        prefill_attention.paged_prefill_attention(q, cache, cache, tables, starts, lens, slopes, **beside)


def _rows(dtype: torch.dtype, size: int) -> None:
    x, weight = _meta(32, size, dtype=dtype), _meta(size, dtype=dtype)
    row_norm.layer_norm(x, weight, weight, 1e-5)
    residual_norm.add_layer_norm(x, x, weight, weight, 1e-5)
    gelu.bias_gelu(x, weight)


def _products(dtype: torch.dtype, num_rows: int) -> None:
    num_inputs = 4096
    for num_outputs in (1024, 16384):  # in parts, and not
        x, bias = _meta(num_rows, num_inputs, dtype=dtype), _meta(num_outputs, dtype=dtype)
        invariant_linear.linear(x, _meta(num_outputs, num_inputs, dtype=dtype), bias)
        weight = _meta(num_outputs, num_inputs, dtype=torch.int8)
        quantized_linear.int8_linear(x, weight, _meta(num_outputs), bias)


def _sampling() -> None:
    num_rows = 8
    logits, numbers, ids = (
        _meta(num_rows, 250_880), _meta(num_rows), _meta(num_rows, 48, dtype=torch.int32)
    )  # fmt: skip
    seeds = _meta(num_rows, dtype=torch.int64)
    top_ks = _meta(num_rows, dtype=torch.int32)
    penalties.penalize(logits, ids, ids, _meta(num_rows, 48), numbers, numbers, numbers)
    sampling.sample(logits, seeds, seeds, numbers, top_ks=top_ks, top_ps=numbers, min_ps=numbers, num_ids=250_680)


def table() -> str:
    """Markdown: registers / shared bytes / spills on each target, of heads of 64 and 128, with the skip."""
    lines = [f"| kernel | of | configuration | {' | '.join(TARGETS)} |", "|---|---|---|" + "---|" * len(TARGETS)]
    for label, launch in default_launches(heads=(64, 128)):
        if label.endswith("no skip"):
            continue
        cells = [_cell(launch, target) for target in TARGETS]
        name = launch.name.removesuffix("_kernel")
        lines.append(f"| {name} | {label} | {launch.config} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(launch: Launch, target: str) -> str:
    if not can_compile(launch, target):
        return "no fp8"
    resources = compile_for(launch, TARGETS[target])
    return f"{resources.registers} / {resources.shared_bytes:,} / {resources.spilled}"


_BEGIN, _END = "<!-- python -m bloom.kernels.aot --write -->\n", "<!-- end -->\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Compile every kernel ahead of time; print what it takes.")
    parser.add_argument("--write", type=Path, help="a Markdown file, between whose marks the table is put")
    arguments = parser.parse_args()
    written = table()
    print(written)
    if arguments.write is not None:
        before, rest = arguments.write.read_text().split(_BEGIN)
        after = rest.split(_END)[1]
        arguments.write.write_text(before + _BEGIN + "\n" + written + "\n" + _END + after)


if __name__ == "__main__":
    main()
