"""Top-k, top-p, min-p and a draw from a large vocabulary in Triton, without sorting; naive/sampling.py is the twin.

B = rows, V = vocabulary, C = chunks of it. A logit's bits, made to order as its value does, are a number of 32 bits. A
threshold is found a digit of four bits at a time, the highest first: one pass sums, by the next digit, the tokens (for
top-k) or their weights (for top-p) that share the digits found so far, in every chunk; the next adds up the chunks and
knows one digit more. Eight passes over logits that lie in the cache, for all rows at once, by as many programs as there
are chunks; every sum has one order, so that a row does not depend on its neighbours.

Source: Alabi et al. 2012, Fast K-selection Algorithms for Graphics Processing Units (radix select).
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .naive.sampling import LEAST_TEMPERATURE

CHUNK = 4096  # ids per program
STEP = 512  # of them at once
NUM_DIGITS = 8  # of four bits
NUM_WARPS = 4


@triton.jit
def ordered_bits(x):  # type: ignore[no-untyped-def]
    """uint32 that order as x does; -0 equals 0."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.uint32, bitcast=True) ^ 0x80000000


@triton.jit  # type: ignore[untyped-decorator]
def peak_of_row(peaks_ptr, row, num_chunks, max_chunks: tl.constexpr):  # type: ignore[no-untyped-def]
    chunks = tl.arange(0, max_chunks)
    return tl.max(tl.load(peaks_ptr + row * num_chunks + chunks, mask=chunks < num_chunks, other=float("-inf")), axis=0)


@triton.jit  # type: ignore[untyped-decorator]
def peaks_kernel(  # type: ignore[no-untyped-def]
    peaks_ptr,  # (B, C) fp32: highest logit of each chunk
    peak_ids_ptr,  # (B, C) int32: the lowest id that has it
    logits_ptr,
    num_ids,
    stride_row,
    chunk: tl.constexpr,
):
    row = tl.program_id(1).to(tl.int64)
    ids = tl.program_id(0) * chunk + tl.arange(0, chunk)
    x = tl.load(logits_ptr + row * stride_row + ids, mask=ids < num_ids, other=float("-inf"))
    peak = tl.max(x, axis=0)
    place = row * tl.num_programs(0) + tl.program_id(0)
    tl.store(peaks_ptr + place, peak)
    tl.store(peak_ids_ptr + place, tl.min(tl.where(x == peak, ids, 0x7FFFFFFF), axis=0))


@triton.jit  # type: ignore[untyped-decorator]
def one_digit_more(  # type: ignore[no-untyped-def]
    prefixes_ptr, aboves_ptr, sums_ptr, target, row, step, num_rows, num_chunks, max_chunks: tl.constexpr
):
    """The threshold's digits up to `step`, and the sum of all that is certainly above, from what is known before it.

    The digit is the highest at which, with all above, the target is reached.
    """
    prefix = tl.load(prefixes_ptr + step * num_rows + row)
    above = tl.load(aboves_ptr + step * num_rows + row)
    digits = tl.arange(0, 16)
    sums = sums_by_digit(sums_ptr, row, step, num_rows, num_chunks, max_chunks)
    from_here = above + tl.cumsum(sums, axis=0, reverse=True)
    digit = tl.max(tl.where(from_here >= target, digits, 0), axis=0)
    above += tl.sum(tl.where(digits > digit, sums, 0.0), axis=0)
    return prefix | (digit.to(tl.int64) << (28 - 4 * step)), above


@triton.jit  # type: ignore[untyped-decorator]
def sums_by_digit(sums_ptr, row, step, num_rows, num_chunks, max_chunks: tl.constexpr):  # type: ignore[no-untyped-def]
    chunks = tl.arange(0, max_chunks)
    places = ((step * num_rows + row) * num_chunks + chunks)[:, None] * 16 + tl.arange(0, 16)[None, :]
    return tl.sum(tl.load(sums_ptr + places, mask=(chunks < num_chunks)[:, None], other=0.0), axis=0)


@triton.jit  # type: ignore[untyped-decorator]
def target_of_row(  # type: ignore[no-untyped-def]
    targets_ptr, sums_ptr, row, num_ids, num_rows, num_chunks, by_mass: tl.constexpr, max_chunks: tl.constexpr
):
    """What the tokens from the threshold up have to sum to: their number, or their share of the weight."""
    wanted = tl.load(targets_ptr + row)
    if by_mass:
        return wanted * tl.sum(sums_by_digit(sums_ptr, row, 0, num_rows, num_chunks, max_chunks), axis=0)
    return tl.where((wanted > 0) & (wanted < num_ids), wanted, num_ids).to(tl.float32)


@triton.jit(do_not_specialize=["step"])  # type: ignore[untyped-decorator]
def digit_kernel(  # type: ignore[no-untyped-def]
    sums_ptr,  # (digits, B, C, 16) fp32: by digit, of the tokens whose higher digits are the threshold's
    prefixes_ptr,  # (digits, B) int64: the threshold's digits known before a step
    aboves_ptr,  # (digits, B) fp32: sum of what is above them
    floors_ptr,  # (B,) int64, the least bits that take part, or None
    logits_ptr,  # (B, any) fp32
    peaks_ptr,  # (B, C) fp32
    temperatures_ptr,  # (B,) fp32
    targets_ptr,  # (B,): int32 top-k or fp32 top-p
    step,
    num_ids,
    stride_row,
    by_mass: tl.constexpr,
    least_temperature: tl.constexpr,
    max_chunks: tl.constexpr,  # C rounded up to a power of two
    chunk: tl.constexpr,
    at_once: tl.constexpr,
):
    row = tl.program_id(1).to(tl.int64)
    num_chunks, num_rows = tl.num_programs(0), tl.num_programs(1)
    prefix = tl.full((), 0, tl.int64)
    if step > 0:
        target = target_of_row(targets_ptr, sums_ptr, row, num_ids, num_rows, num_chunks, by_mass, max_chunks)
        prefix, above = one_digit_more(
            prefixes_ptr, aboves_ptr, sums_ptr, target, row, step - 1, num_rows, num_chunks, max_chunks
        )
        if tl.program_id(0) == 0:
            tl.store(prefixes_ptr + step * num_rows + row, prefix)
            tl.store(aboves_ptr + step * num_rows + row, above)
    shift = 28 - 4 * step
    temperature = tl.maximum(tl.load(temperatures_ptr + row), least_temperature)
    peak = peak_of_row(peaks_ptr, row, num_chunks, max_chunks)
    digits = tl.arange(0, 16)
    sums = tl.zeros((16,), dtype=tl.float32)
    first = tl.program_id(0) * chunk
    for start in tl.range(first, tl.minimum(first + chunk, num_ids), at_once):
        ids = start + tl.arange(0, at_once)
        x = tl.load(logits_ptr + row * stride_row + ids, mask=ids < num_ids, other=float("-inf"))
        bits = ordered_bits(x)
        # unsigned: the difference is below 16 where all higher digits agree
        takes_part = (ids < num_ids) & (((bits ^ prefix.to(tl.uint32)) >> shift) < 16)
        if floors_ptr is not None:
            takes_part &= bits >= tl.load(floors_ptr + row).to(tl.uint32)
        digit = ((bits >> shift) & 15).to(tl.int32)
        value = tl.exp((x - peak) / temperature) if by_mass else tl.full((at_once,), 1.0, tl.float32)
        value = tl.where(takes_part, value, 0.0)
        sums += tl.sum(tl.where(digit[:, None] == digits[None, :], value[:, None], 0.0), axis=0)
    places = ((step * num_rows + row) * num_chunks + tl.program_id(0)) * 16 + digits
    tl.store(sums_ptr + places, sums)


@triton.jit  # type: ignore[untyped-decorator]
def threshold_kernel(  # type: ignore[no-untyped-def]
    thresholds_ptr,  # (B,) int64
    sums_ptr,
    prefixes_ptr,
    aboves_ptr,
    floors_ptr,
    targets_ptr,
    num_ids,
    num_chunks,
    by_mass: tl.constexpr,
    max_chunks: tl.constexpr,
    num_digits: tl.constexpr,
):
    """The last digit. A top-p of 1 keeps what there was, whatever rounding says."""
    row, num_rows = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    target = target_of_row(targets_ptr, sums_ptr, row, num_ids, num_rows, num_chunks, by_mass, max_chunks)
    threshold, _ = one_digit_more(
        prefixes_ptr, aboves_ptr, sums_ptr, target, row, num_digits - 1, num_rows, num_chunks, max_chunks
    )
    floor = tl.full((), 0, tl.int64)
    if floors_ptr is not None:
        floor = tl.load(floors_ptr + row)
    if by_mass:
        threshold = tl.where(tl.load(targets_ptr + row) < 1.0, threshold, floor)
    tl.store(thresholds_ptr + row, tl.maximum(threshold, floor))


@triton.jit
def kept_weights(  # type: ignore[no-untyped-def]
    logits_ptr, row, ids, num_ids, stride_row, peak, temperature, thresholds_ptr, min_ps_ptr
):
    """Unnormalised probabilities of `ids`; 0 where a filter cuts."""
    x = tl.load(logits_ptr + row * stride_row + ids, mask=ids < num_ids, other=float("-inf"))
    kept = ids < num_ids
    if thresholds_ptr is not None:
        kept &= ordered_bits(x) >= tl.load(thresholds_ptr + row).to(tl.uint32)
    if min_ps_ptr is not None:
        kept &= x >= peak + temperature * tl.log(tl.load(min_ps_ptr + row))
    return tl.where(kept, tl.exp((x - peak) / temperature), 0.0)


@triton.jit  # type: ignore[untyped-decorator]
def masses_kernel(  # type: ignore[no-untyped-def]
    masses_ptr,  # (B, C) fp32: weight of each chunk
    logits_ptr,
    peaks_ptr,
    temperatures_ptr,
    thresholds_ptr,
    min_ps_ptr,
    num_ids,
    stride_row,
    least_temperature: tl.constexpr,
    max_chunks: tl.constexpr,
    chunk: tl.constexpr,
):
    row, num_chunks = tl.program_id(1).to(tl.int64), tl.num_programs(0)
    temperature = tl.maximum(tl.load(temperatures_ptr + row), least_temperature)
    peak = peak_of_row(peaks_ptr, row, num_chunks, max_chunks)
    ids = tl.program_id(0) * chunk + tl.arange(0, chunk)
    weights = kept_weights(logits_ptr, row, ids, num_ids, stride_row, peak, temperature, thresholds_ptr, min_ps_ptr)
    tl.store(masses_ptr + row * num_chunks + tl.program_id(0), tl.sum(weights, axis=0))


@triton.jit
def mix(state):  # type: ignore[no-untyped-def]
    """SplitMix64 (Steele et al. 2014)."""
    state += 0x9E3779B97F4A7C15
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB
    return state ^ (state >> 31)


@triton.jit  # type: ignore[untyped-decorator]
def draw_kernel(  # type: ignore[no-untyped-def]
    drawn_ptr,  # (B,) int64
    masses_ptr,  # (B, C) fp32
    peaks_ptr,
    peak_ids_ptr,
    logits_ptr,
    seeds_ptr,  # (B,) int64
    positions_ptr,  # (B,) int64
    temperatures_ptr,
    thresholds_ptr,
    min_ps_ptr,
    num_ids,
    num_chunks,
    stride_row,
    least_temperature: tl.constexpr,
    max_chunks: tl.constexpr,
    chunk: tl.constexpr,
    at_once: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    temperature = tl.load(temperatures_ptr + row)
    peak = peak_of_row(peaks_ptr, row, num_chunks, max_chunks)
    chunks = tl.arange(0, max_chunks)
    places = row * num_chunks + chunks
    if temperature <= 0:
        peaks = tl.load(peaks_ptr + places, mask=chunks < num_chunks, other=float("-inf"))
        ids = tl.load(peak_ids_ptr + places, mask=chunks < num_chunks, other=0x7FFFFFFF)
        tl.store(drawn_ptr + row, tl.min(tl.where(peaks == peak, ids, 0x7FFFFFFF), axis=0).to(tl.int64))
    else:
        temperature = tl.maximum(temperature, least_temperature)
        seed = tl.load(seeds_ptr + row).to(tl.uint64, bitcast=True)
        hashed = mix(mix(seed) + tl.load(positions_ptr + row).to(tl.uint64, bitcast=True))
        uniform = (hashed >> 11).to(tl.float64) * 1.1102230246251565e-16  # 2^-53
        masses = tl.load(masses_ptr + places, mask=chunks < num_chunks, other=0.0).to(tl.float64)
        target = uniform * tl.sum(masses, axis=0)
        exceeding = (tl.cumsum(masses, axis=0) > target) & (masses > 0)
        # rounding between the two levels must not lead past the last weight
        last_chunk = tl.max(tl.where(masses > 0, chunks, 0), axis=0)
        found = tl.minimum(tl.min(tl.where(exceeding, chunks, max_chunks), axis=0), last_chunk)
        before = tl.sum(tl.where(chunks < found, masses, 0.0), axis=0)
        drawn = tl.full((), 0x7FFFFFFF, tl.int32)
        last_id = tl.full((), 0, tl.int32)
        first = found * chunk
        for start in tl.range(first, tl.minimum(first + chunk, num_ids), at_once):
            ids = start + tl.arange(0, at_once)
            weights = kept_weights(
                logits_ptr, row, ids, num_ids, stride_row, peak, temperature, thresholds_ptr, min_ps_ptr
            )
            exceeded = (before + tl.cumsum(weights.to(tl.float64), axis=0) > target) & (weights > 0)
            drawn = tl.minimum(drawn, tl.min(tl.where(exceeded, ids, 0x7FFFFFFF), axis=0))
            last_id = tl.maximum(last_id, tl.max(tl.where(weights > 0, ids, 0), axis=0))
            before += tl.sum(weights.to(tl.float64), axis=0)
        tl.store(drawn_ptr + row, tl.minimum(drawn, last_id).to(tl.int64))


def sample(
    logits: Tensor,
    seeds: Tensor,
    positions: Tensor,
    temperatures: Tensor,
    *,
    top_ks: Tensor | None = None,
    top_ps: Tensor | None = None,
    min_ps: Tensor | None = None,
    num_ids: int | None = None,
    chunk: int = CHUNK,
    step: int = STEP,
    num_warps: int = NUM_WARPS,
) -> Tensor:
    """See naive.sample. chunk and step decide the order of sums: results agree only under the same ones."""
    assert logits.stride(1) == 1
    assert logits.dtype == torch.float32
    num_rows, num_ids = len(logits), num_ids or logits.shape[1]
    num_chunks = triton.cdiv(num_ids, chunk)
    max_chunks = triton.next_power_of_2(num_chunks)
    peaks = torch.empty(num_rows, num_chunks, dtype=torch.float32, device=logits.device)
    peak_ids = torch.empty(num_rows, num_chunks, dtype=torch.int32, device=logits.device)
    masses = torch.empty_like(peaks)
    drawn = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    grid = (num_chunks, num_rows)
    options: dict[str, Any] = {"chunk": chunk, "num_warps": num_warps}
    peaks_kernel[grid](peaks, peak_ids, logits, num_ids, logits.stride(0), **options)
    options |= {"max_chunks": max_chunks, "least_temperature": LEAST_TEMPERATURE}

    def threshold(targets: Tensor, floors: Tensor | None, *, by_mass: bool) -> Tensor:
        sums = torch.empty(NUM_DIGITS, num_rows, num_chunks, 16, dtype=torch.float32, device=logits.device)
        prefixes = torch.zeros(NUM_DIGITS, num_rows, dtype=torch.int64, device=logits.device)
        aboves = torch.zeros(NUM_DIGITS, num_rows, dtype=torch.float32, device=logits.device)
        thresholds = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
        for digit in range(NUM_DIGITS):
            digit_kernel[grid](
                sums,
                prefixes,
                aboves,
                floors,
                logits,
                peaks,
                temperatures,
                targets,
                digit,
                num_ids,
                logits.stride(0),
                by_mass=by_mass,
                at_once=step,
                **options,
            )
        threshold_kernel[(num_rows,)](
            thresholds,
            sums,
            prefixes,
            aboves,
            floors,
            targets,
            num_ids,
            num_chunks,
            by_mass=by_mass,
            max_chunks=max_chunks,
            num_digits=NUM_DIGITS,
            num_warps=num_warps,
        )
        return thresholds

    thresholds = None if top_ks is None else threshold(top_ks, None, by_mass=False)
    thresholds = thresholds if top_ps is None else threshold(top_ps, thresholds, by_mass=True)
    masses_kernel[grid](masses, logits, peaks, temperatures, thresholds, min_ps, num_ids, logits.stride(0), **options)
    draw_kernel[(num_rows,)](
        drawn,
        masses,
        peaks,
        peak_ids,
        logits,
        seeds,
        positions,
        temperatures,
        thresholds,
        min_ps,
        num_ids,
        num_chunks,
        logits.stride(0),
        at_once=step,
        **options,
    )
    return drawn
