"""benchmarks.gpu without a GPU: it is understood, its cases have sense, and it refuses in words."""

import sys

import pytest
import torch

from benchmarks import alibi_skip, gpu
from benchmarks.gpu_cases import cases


def test_its_cases_have_names_of_their_own_and_work_to_do():
    names = [case.name for case in cases()]
    assert len(set(names)) == len(names)
    assert all(case.num_bytes > 0 and case.flops > 0 for case in cases())


def test_arguments_are_understood():
    args = gpu.parser().parse_args(["decode", "prefill", "--repetitions", "5", "--rows", "rows.jsonl"])
    assert args.words == ["decode", "prefill"]
    assert args.repetitions == 5


def test_the_roofline_is_the_slower_of_memory_and_arithmetic():
    card = gpu.Card(name="card", bytes_per_s=1e12, flops_per_s=1e14, torch_version="2")
    for case in cases():
        assert card.least_s(case) == max(case.num_bytes / 1e12, case.flops / 1e14)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_cuda_it_says_what_is_missing_and_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["gpu"])
    assert gpu.main() == 2
    assert "no CUDA device" in capsys.readouterr().err


def test_skipping_in_the_sweep_is_what_the_twin_decides():
    generator = torch.Generator().manual_seed(0)
    keys, values = torch.randn(2, 640, 4, 32, generator=generator)
    context = alibi_skip.Context.of(keys, values)
    q = torch.randn(4, 32, generator=generator)
    result = alibi_skip.measure(context, [(q, 639)], "bf16", alibi_skip.Settings(threads=1, repetitions=1))
    assert 0.1 < result.skipped < 0.9
    assert result.error <= 2 * 2.0**-9
    assert 0.1 < result.chunks_skipped < 0.9  # by the CPU operator, four blocks at a time
