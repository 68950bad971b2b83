"""The stand-in for Metal's library means what Metal means, and lacks what Apple GPUs lack."""

import numpy as np
import pytest

from mlxhog.errors import MetalError
from mlxhog.metal.host import build, translate
from mlxhog.metal.kernel import Launch, read_source
from tests.metal.host import probes
from tests.metal.host.probes import on
from tests.pairs import each_of

FORBIDDEN = {
    "acquire_order": "memory_order_acquire",
    "float_exchange": "no matching function for call to .atomic_compare_exchange_weak_explicit",
    "float_minimum": "no matching function for call to .atomic_fetch_min_explicit",
    "misspelt": "exq",
    "other_order": "memory_order_seq_cst",
    "silent_bfloat": "conversion from .float. to non-scalar type .bfloat.",
    "strong_exchange": "atomic_compare_exchange_strong_explicit",
    "two_variables": "threadgroup float a.4., b.4.;. is not understood by the host shim",
    "unequal_sizes": "as_type|bit_cast",
    "wide_atomic": "atomics of float, int and uint only",
}


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


@each_of("name", sorted(FORBIDDEN))
def test_what_apple_gpus_lack_does_not_compile(name, shim_cache):
    file = probes.KERNELS / "forbidden" / f"{name}.metal"
    text = read_source(str(file), lines=True)
    with pytest.raises(MetalError, match=FORBIDDEN[name]):
        build.library(name, translate.cpp(text), directory=shim_cache)


def test_every_forbidden_text_is_tried():
    texts = (probes.KERNELS / "forbidden").glob("*.metal")
    assert {file.stem for file in texts} == FORBIDDEN.keys()
