"""Every kernel on one GPU against what the card can do: `python -m benchmarks.gpu [words ...] [--rows FILE]`.

First the card itself: bytes a second of a copy, FLOP/s of a matrix product. Then each kernel on BLOOM's shapes: time
(median of CUDA events), its least time by the bytes it must move and the FLOPs it must do, the share of that it
reaches, and beside it torch's SDPA, FlexAttention and, where they are installed, FlashAttention and vLLM. Each row
names the card.
"""

import argparse
import importlib.metadata
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_cases import Case, cases, peers_installed

REPETITIONS = 50
FLUSH_BYTES = 256 << 20  # written before each run: nothing is left in the L2 cache


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    name: str
    bytes_per_s: float
    flops_per_s: float  # bf16, fp32 sums
    torch_version: str

    def least_s(self, case: Case) -> float:
        """The roofline."""
        return max(case.num_bytes / self.bytes_per_s, case.flops / self.flops_per_s)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    card: str
    case: str
    by: str
    time_us: float
    least_us: float

    def cells(self) -> str:
        share = self.least_us / self.time_us
        return f"| {self.case} | {self.by} | {self.time_us:,.1f} | {self.least_us:,.1f} | {share:.0%} |"


def seconds(call: Callable[[], object], repetitions: int = REPETITIONS) -> float:
    """Median, by events, with a cold L2 cache."""
    flushed = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")
    for _ in range(3):
        call()
    times: list[float] = []
    for _ in range(repetitions):
        flushed.zero_()
        start, end = _event(), _event()
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times)


def _event() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def this_card() -> Card:
    source = torch.empty(1 << 30, dtype=torch.int8, device="cuda")
    target = torch.empty_like(source)
    a, b = (torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    return Card(
        name=torch.cuda.get_device_name(),
        bytes_per_s=2 * source.numel() / seconds(lambda: target.copy_(source)),
        flops_per_s=2 * 8192**3 / seconds(lambda: a @ b),
        torch_version=torch.__version__,
    )


def measured(card: Card, words: list[str], repetitions: int) -> Iterator[Row]:
    for case in cases():
        if words and not any(word in case.name for word in words):
            continue
        with torch.inference_mode():
            for by, call in case.prepare():
                yield Row(
                    card=card.name,
                    case=case.name,
                    by=by,
                    time_us=1e6 * seconds(call, repetitions),
                    least_us=1e6 * card.least_s(case),
                )


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="Kernels against their rooflines.")
    parser.add_argument("words", nargs="*", help="only cases with one of these words in their names")
    parser.add_argument("--repetitions", type=int, default=REPETITIONS)
    parser.add_argument("--rows", type=Path, help="a file that JSON lines are added to")
    parser.add_argument("--list", action="store_true", help="name the cases and measure nothing")
    return parser


def main() -> int:
    args = parser().parse_args()
    if args.list:
        print("\n".join(case.name for case in cases()))
        return 0
    if not torch.cuda.is_available():
        print(
            f"no CUDA device: torch {torch.__version__} sees none. Run this on a machine with a GPU and a CUDA build "
            "of torch; without one, `python -m bloom.kernels.aot` says what the compilers make of the kernels.",
            file=sys.stderr,
        )
        return 2
    card = this_card()
    print(f"{card.name}, torch {card.torch_version}, triton {importlib.metadata.version('triton')}")
    print(f"copy {card.bytes_per_s / 1e9:,.0f} GB/s, bf16 product {card.flops_per_s / 1e12:,.0f} TFLOP/s")
    print(f"beside: torch {', '.join(peers_installed()) or 'alone; neither FlashAttention nor vLLM is installed'}\n")
    print("| kernel | by | µs | least µs | of the roofline |\n|---|---|---|---|---|")
    for row in measured(card, args.words, args.repetitions):
        print(row.cells(), flush=True)
        if args.rows is not None:
            with args.rows.open("a") as file:
                file.write(json.dumps(asdict(row)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
