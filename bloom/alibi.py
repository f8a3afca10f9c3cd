"""ALiBi: a per-head slope times the distance replaces position embeddings. Torch-free.

Source: Press et al. 2022, Train Short, Test Long; github.com/ofirpress/attention_with_linear_biases.
"""


def slopes(n_head: int) -> tuple[float, ...]:
    """The slope of each head, for any head count; a tensor-parallel rank slices its share out of the whole.

    A power of two n has 2^(-8k/n), k = 1..n. Otherwise, with c the power of two below: the c slopes of c heads, then
    every second of 2c heads' slopes.
    """
    if n_head < 1:
        raise ValueError(f"n_head={n_head} has no ALiBi slopes; use at least one head")
    c = 1 << (n_head.bit_length() - 1)
    return tuple(_geometric(c) + _geometric(2 * c)[0::2][: n_head - c])


def _geometric(n: int) -> list[float]:
    return [2.0 ** (-8.0 * k / n) for k in range(1, n + 1)]
