"""The Triton kernel: interpreted, compiled ahead of time, and on CUDA where there is one."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bloom import kernels
from bloom.kernels import decode_attention
from tests.support.paged_attention import CASES, TOLERANCE, PagedCase, error

INTERPRETED = Path(__file__).with_name("interpreted_paged_attention.py")
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def test_the_kernel_passes_its_tests_in_tritons_interpreter():
    command = [sys.executable, "-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider", str(INTERPRETED)]
    run = subprocess.run(
        command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=280, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("aligned", [True, False], ids=["aligned", "unaligned"])
def test_the_kernel_compiles_for_sm_90_without_spilling(tmp_path: Path, head_dim: int, dtype: str, aligned: bool):
    """Aligned: pointers and strides known to divide by 16, as triton finds them when it launches on whole tensors."""
    kernel = decode_attention.paged_decode_attention_kernel
    known = {"block_tables_ptr": "*i32", "context_lens_ptr": "*i32", "slopes_ptr": "*fp32", "scale": "fp32"}
    known |= dict.fromkeys(("out_ptr", "q_ptr", "k_ptr", "v_ptr"), f"*{dtype}")
    constants = {
        "head_dim": head_dim,
        "block_size": 16,
        "block_l": decode_attention.BLOCK_L,
        "block_d": triton.next_power_of_2(head_dim),
    }
    signature = {p.name: "constexpr" if p.is_constexpr else known.get(p.name, "i32") for p in kernel.params}
    divisible = [i for i, kind in enumerate(signature.values()) if kind.startswith("*") or kind == "i32"]
    attributes = {(i,): [["tt.divisibility", 16]] for i in divisible} if aligned else {}
    compiled = triton.compile(
        ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes),
        target=GPUTarget("cuda", 90, 32),
        options={"num_warps": decode_attention.NUM_WARPS},
    )
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    usage = subprocess.run(
        [CUOBJDUMP, "--dump-resource-usage", cubin], capture_output=True, text=True, check=True
    ).stdout
    assert cubin.read_bytes()[:4] == b"\x7fELF"
    assert re.findall(r"(?:STACK|LOCAL):(\d+)", usage) == ["0", "0"], usage  # a spill lives on the stack


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", [*CASES, PagedCase(n_head=112, head_dim=128, context_lens=(4000, 1, 2049))], ids=str)
def test_on_cuda_the_dispatcher_takes_the_kernel_and_it_is_right(case: PagedCase, dtype: torch.dtype):
    inputs = dataclasses.replace(case, dtype=dtype).inputs("cuda")
    out = kernels.paged_decode_attention(*inputs)
    assert torch.equal(out, decode_attention.paged_decode_attention(*inputs))
    assert error(out, inputs) < TOLERANCE[dtype]
