"""The goals of the engine's speed, each a ratio of two figures of one run."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from benchmarks import shapes
from benchmarks.contestants import BY_NAME, Contestant
from benchmarks.figures import Figures, table
from benchmarks.protocol import Task
from bloom.config import BloomConfig

FLOAT, INT8 = "anthesis bfloat16", ("anthesis int8", "anthesis int8_dynamic")
START_S = 5.0
MEMORY_RATIO = 1.15
BANDWIDTH_SHARE, GEMM_SHARE = 0.82, 0.85


@dataclass(frozen=True, kw_only=True, slots=True)
class Goal:
    """A bound, and what was measured: `value` against `bound` in `unit`."""

    text: str
    value: float
    bound: float
    unit: str = "×"
    at_most: bool = False

    @property
    def reached(self) -> bool:
        return self.value <= self.bound if self.at_most else self.value >= self.bound


def goals_of(figures: Figures, task: Task, config: BloomConfig) -> list[Goal]:
    """Those for which this run has both figures."""
    return [
        *_against_peers(figures),
        *_against_the_machine(figures, task, config),
        *_memory_and_start(figures),
    ]


def _against_peers(figures: Figures) -> Iterator[Goal]:
    peers = [one for one in BY_NAME.values() if not one.is_ours]
    sixteen_bit = [one for one in peers if one.sixteen_bit]
    for batch, bound in ((1, 1.1), (8, 1.25), (32, 1.25)):
        yield from _ratio(figures, FLOAT, f"decode {batch}", bound, sixteen_bit, "the best 16-bit peer")
    yield from _ratio(figures, FLOAT, "prefill", 1.05, [BY_NAME["vllm bf16"]])
    for ours in INT8:
        yield from _ratio(figures, ours, "decode 1", 1.25, [BY_NAME["llama.cpp q8_0"]])
        yield from _ratio(figures, ours, "decode 8", 2.2, peers, "the best peer")
        yield from _ratio(figures, ours, "decode 32", 1.8, peers, "the best peer")
        yield from _ratio(figures, ours, "prefill", 1.35, [BY_NAME["ctranslate2 int8"]])


def _ratio(
    figures: Figures, ours: str, quantity: str, bound: float, peers: Sequence[Contestant], title: str = ""
) -> Iterator[Goal]:
    measured = {peer.name: figures[peer.name, quantity].median for peer in peers if (peer.name, quantity) in figures}
    if (ours, quantity) not in figures or not measured:
        return
    best = max(measured, key=measured.__getitem__)
    against = f"{title} ({best})" if title else best
    text = f"{ours}, {quantity}: against {against}"
    yield Goal(text=text, value=figures[ours, quantity].median / measured[best], bound=bound)


def _against_the_machine(figures: Figures, task: Task, config: BloomConfig) -> Iterator[Goal]:
    context = task.prompt_tokens + task.new_tokens // 2  # keys in the middle of the run
    for ours in (FLOAT, *INT8):
        if (ours, "decode 1") in figures and ("", "read_gb_s") in figures:
            weights = BY_NAME[ours].weights
            read = shapes.decode_bytes(config, weights=weights, batch=1, context=context)
            rate = read * figures[ours, "decode 1"].median
            share = rate / (figures["", "read_gb_s"].median * 1e9)
            text = f"{ours}, decode 1: {rate / 1e9:.1f} GB/s of the measured read bandwidth"
            yield Goal(text=text, value=100 * share, bound=100 * BANDWIDTH_SHARE, unit="%")
    peaks = {kind: figures["", key].median for kind in ("bf16", "fp32") if ("", key := f"{kind}_gflops") in figures}
    if (FLOAT, "prefill") in figures and peaks:
        peak = max(peaks, key=peaks.__getitem__)  # fp32 where the processor has no products of bf16
        flops = shapes.prefill_flops(config, task.prefill_tokens)
        rate = flops * figures[FLOAT, "prefill"].median / task.prefill_tokens
        share = rate / (peaks[peak] * 1e9)
        text = f"{FLOAT}, prefill: {rate / 1e9:.0f} GFLOP/s of the measured {peak} GEMM peak"
        yield Goal(text=text, value=100 * share, bound=100 * GEMM_SHARE, unit="%")


def _memory_and_start(figures: Figures) -> Iterator[Goal]:
    for name in (FLOAT, *INT8):
        if (name, "resident_bytes") in figures:
            resident, weights, cache = (
                figures[name, key].median for key in ("resident_bytes", "weight_bytes", "cache_bytes")
            )
            text = f"{name}: resident memory against {(weights + cache) / 2**20:,.0f} MiB of weights and cache"
            if (name, "imports_bytes") in figures:
                text += f" ({figures[name, 'imports_bytes'].median / 2**20:,.0f} MiB before they came)"
            yield Goal(text=text, value=resident / (weights + cache), bound=MEMORY_RATIO, at_most=True)
        if (name, "first_token_s") in figures:
            value = figures[name, "first_token_s"].median
            yield Goal(
                text=f"{name}: process start to first token", value=value, bound=START_S, unit=" s", at_most=True
            )


def goal_table(goals: Iterable[Goal]) -> str:
    lines = [
        [
            goal.text,
            f"{goal.value:.3g}{goal.unit}",
            f"{'at most' if goal.at_most else 'at least'} {goal.bound:g}{goal.unit}",
            "yes" if goal.reached else "NO",
        ]
        for goal in goals
    ]
    return table(["goal", "measured", "bound", "reached"], lines)
