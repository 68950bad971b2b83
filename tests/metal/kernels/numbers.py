"""Sizes and numbers that kernels get wrong, and how results are compared: by their bits."""

import numpy as np

# Around 8 (MLX's small arrays), a threadgroup and a block, and larger than all with an odd rest.
SIZES = (0, 1, 2, 7, 8, 9, 255, 256, 257, 4095, 4097, 1_000_003)

INFO = np.finfo(np.float32)
ODDITIES = np.array(
    [np.nan, np.inf, -np.inf, 0.0, -0.0, INFO.smallest_subnormal, -INFO.smallest_subnormal,
     INFO.tiny / 2, INFO.max, -INFO.max],
    np.float32,
)  # fmt: skip


def normal(n, *, seed=0):
    return np.random.default_rng((seed, n)).standard_normal(n, dtype=np.float32)


def odd(n, *, seed=0):
    """Normal numbers, every third replaced by an oddity."""
    x = normal(n, seed=seed)
    places = np.arange(seed % 3, n, 3)
    x[places] = ODDITIES[(places + seed) % len(ODDITIES)]
    return x


def assert_same_bits(actual, expected, *, label=""):
    """Fail unless all bits are equal; NaN equals NaN, whatever its sign and payload."""
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype), label
    bits = np.dtype(f"u{expected.itemsize}")
    same = actual.view(bits) == expected.view(bits)
    if expected.dtype.kind == "f":
        same |= np.isnan(actual) & np.isnan(expected)
    wrong = np.flatnonzero(~same)
    assert not wrong.size, (
        f"{label}: {wrong.size} of {expected.size} differ, first [{wrong[0]}]: "
        f"{actual.reshape(-1)[wrong[0]]!r}, wanted {expected.reshape(-1)[wrong[0]]!r}"
    )
