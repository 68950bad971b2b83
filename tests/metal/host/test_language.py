"""The stand-in for Metal's library means what Metal means, and lacks what Apple GPUs lack."""

import numpy as np
import pytest

from mlxhog.errors import MetalError
from mlxhog.metal.host import build, translate
from mlxhog.metal.kernel import Launch
from tests.metal.host import probes
from tests.metal.host.probes import on
from tests.pairs import each_of

RELAXED = "memory_order_relaxed"
EXCHANGE = f"atomic_compare_exchange_weak_explicit(x, &old, 1.0f, {RELAXED}, {RELAXED})"
# The type of x, what is done with it, and what the compiler says.
FORBIDDEN = {
    "an order that Metal lacks": (
        "atomic_uint", "atomic_load_explicit(x, memory_order_acquire)", "memory_order_acquire",
    ),
    "another such order": (
        "atomic_uint", "atomic_fetch_add_explicit(x, 1u, memory_order_seq_cst)",
        "memory_order_seq_cst",
    ),
    "an exchange of floats, which never ends on a NaN": (
        "atomic_float", f"float old = 0.0f; {EXCHANGE}",
        "no matching function for call to .atomic_compare_exchange_weak_explicit",
    ),
    "a minimum of floats: Apple GPUs add them, no more": (
        "atomic_float", f"atomic_fetch_min_explicit(x, 1.0f, {RELAXED})",
        "no matching function for call to .atomic_fetch_min_explicit",
    ),
    "the strong form": (
        "atomic_uint", f"uint old; atomic_compare_exchange_strong_explicit(x, &old, 1u, {RELAXED})",
        "atomic_compare_exchange_strong_explicit",
    ),
    "64-bit atomics": (
        "atomic<ulong>", f"atomic_fetch_add_explicit(x, 1ul, {RELAXED})",
        "atomics of float, int and uint only",
    ),
    "a name without a declaration": ("float", "x[at.x] = exq(x[at.x])", "exq"),
    "a float that becomes a bfloat by itself": (
        "float", "bfloat b = x[0]", "conversion from .float. to non-scalar type .bfloat.",
    ),
    "two variables in one statement": (
        "float", "threadgroup float a[4], b[4]; a[0] = b[0] = x[0]",
        "threadgroup float a.4., b.4.;. is not understood by the host shim",
    ),
    "bits of another number": ("float", "ushort b = as_type<ushort>(x[0])", "as_type|bit_cast"),
}  # fmt: skip


def awkward():
    """Values of all sizes, ties, infinities, NaN, denormals."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 1 << 32, 20_000, dtype=np.uint32)
    ties = (rng.integers(0, 1 << 16, 2_000, dtype=np.uint32) << 16) | 0x8000
    few = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-40, -1e-45, 3.4e38, 65520.0, 65519.0])
    normal = rng.normal(size=5_000)
    with np.errstate(invalid="ignore"):
        return np.concatenate([bits.view("f4"), ties.view("f4"), few, normal]).astype("f4")


def bfloat(x):
    """Round to the upper half of a float, ties to even."""
    word = x.astype(np.float32).view(np.uint32).astype(np.uint64)
    rounded = (word + 0x7FFF + (word >> 16 & 1)) >> 16 << 16
    return np.where(np.isnan(x), np.float32(np.nan), rounded.astype(np.uint32).view(np.float32))


def half(x):
    with np.errstate(all="ignore"):
        return x.astype(np.float16).astype(np.float32)


@pytest.mark.parametrize(("instance", "rounded"), [("half", half), ("bfloat", bfloat)])
def test_small_floats_round_to_nearest_even_after_every_operation(
    host_engine, consumer, compiler, instance, rounded
):
    x = awkward()
    launch = Launch(
        kernel=probes.ARITHMETIC[instance],
        inputs={"x": x},
        outputs={"y": (x.size,), "bits": (x.size,)},
        grid=(x.size, 1, 1),
    )
    actual = host_engine(consumer, compiler=compiler).run(launch)
    with np.errstate(all="ignore"):
        t = rounded(x)
        np.testing.assert_array_equal(actual["y"], rounded(rounded(t * t) + t))
    bits = actual["bits"].astype(np.uint16)
    back = (
        bits.view(np.float16).astype(np.float32)
        if instance == "half"
        else (bits.astype(np.uint32) << 16).view(np.float32)
    )
    np.testing.assert_array_equal(back, t)


def test_functions_agree_with_numpy(shim):
    x = np.array([0.3, 1.0, 2.5, 0.7, 1.7, 3.5, 0.5, np.nan, np.inf, 4.0], np.float32)
    out = shim.run(on(probes.FUNCTIONS, x, width=20))["y"].reshape(-1, 20).T
    a, b = x, np.roll(x, -1)
    with np.errstate(all="ignore"):
        expected = [
            *(np.exp(a), np.log(a), np.tanh(a), 1 / np.sqrt(a), np.sqrt(a)),
            np.float32(a.astype("f8") * b + 1),
            *(np.fmin(a, b), np.fmax(a, b), np.fmin(np.fmax(a, np.float32(0.5)), np.float32(1.5))),
            *(
                np.where(a < b, b, a),
                np.floor(a),
                np.rint(a),
                np.abs(a),
                np.nan_to_num(np.sign(a)),
                a**b,
            ),
            np.isnan(a) + 2.0 * np.isinf(a) + 4.0 * np.isfinite(a),
            *(np.zeros_like(a), -a, (2 * a - b) + (2 * b - b)),
            [bin(word).count("1") for word in a.view(np.uint32)],
        ]
    for k, (actual, value) in enumerate(zip(out, expected, strict=True)):
        np.testing.assert_allclose(actual, value, rtol=3e-7, err_msg=f"function {k}")


@each_of("name", FORBIDDEN)
def test_what_apple_gpus_lack_does_not_compile(name, shim_cache):
    kind, statement, message = FORBIDDEN[name]
    text = f"""#include <metal_stdlib>
using namespace metal;
[[kernel]] void forbidden(device {kind}* x [[buffer(0)]], uint3 at [[thread_position_in_grid]]) {{
  {statement};
}}
"""
    with pytest.raises(MetalError, match=message):
        build.library("forbidden", translate.cpp(text), directory=shim_cache)
