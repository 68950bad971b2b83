"""Muon's orthogonalization by a worker's framework is that of the CPU's native code."""

import numpy as np
import pytest

from mlxhog import _native, backends
from mlxhog.backends import newton_schulz
from mlxhog.optim import muon
from mlxhog.optim.muon import ORTHOGONALIZATIONS
from tests.backends.imprecise import cut
from tests.tolerances import POLAR_DEVICE_F32, POLAR_GRADED_F32, assert_close

SHAPES = [(64, 128), (128, 64), (64, 128), (96, 96), (1, 7), (64, 128), (5, 1)]


@pytest.fixture(scope="module", params=["mlx:cpu", "torch:cpu"])
def backend(request):
    return backends.create(request.param, threads=1, kernels="eager")


def drawn():
    rng = np.random.default_rng(0)
    xs = [rng.standard_normal(shape, dtype=np.float32) for shape in SHAPES]
    return xs, [0.2 * k + 0.1 for k in range(len(xs))]


def by_native_code(xs, scales, name):
    us = [np.empty_like(x) for x in xs]
    _native.newton_schulz(xs, us, scales, np.float32(ORTHOGONALIZATIONS[name]), threads=1)
    return us


@pytest.mark.parametrize("name", ORTHOGONALIZATIONS)
def test_it_is_ours_to_a_hundred_thousandth(backend, name):
    xs, scales = drawn()
    us = backend.orthogonalize(xs, scales, ORTHOGONALIZATIONS[name])
    for u, ours in zip(us, by_native_code(xs, scales, name), strict=True):
        assert u.dtype == np.float32
        assert u.flags.c_contiguous
        assert_close(u, ours, POLAR_DEVICE_F32)


@pytest.mark.parametrize("name", ORTHOGONALIZATIONS)
def test_of_graded_singular_values_it_is_as_near_to_float64_as_ours(backend, name):
    u, s, v = np.linalg.svd(drawn()[0][0].astype(np.float64), full_matrices=False)
    x = ((u * np.geomspace(1.0, 1e-5, len(s))) @ v).astype(np.float32)
    wide = x.astype(np.float64)
    u, s, v = np.linalg.svd(wide / (muon.ROOM * np.linalg.norm(wide)), full_matrices=False)
    for a, b, c in ORTHOGONALIZATIONS[name]:
        s = a * s + b * s**3 + c * s**5
    exact = (u * s) @ v
    for result in (*backend.orthogonalize([x], [1.0], ORTHOGONALIZATIONS[name]),
                   *by_native_code([x], [1.0], name)):  # fmt: skip
        assert_close(result, exact, POLAR_GRADED_F32[name])


def test_neither_zeros_nor_tiny_nor_huge_numbers_make_it_fail(backend):
    x = drawn()[0][0]
    sizes = [0.0, 1e-35, 1e-20, 1.0, 1e15]
    given = [np.asarray(x * np.float64(size), np.float32) for size in sizes]
    zeros, tiny, *others = backend.orthogonalize(given, [1.0] * 5, ORTHOGONALIZATIONS["polar3"])
    assert not zeros.any()
    assert not tiny.any()  # shorter than what moves anything
    (ours,) = by_native_code([x], [1.0], "polar3")
    for u in others:
        assert_close(u, ours, POLAR_DEVICE_F32)


class Coarse(np.ndarray):
    """An array whose products keep 10 bits of their factors."""

    def __matmul__(self, other):
        factors = (cut(np.ascontiguousarray(x, np.float32)) for x in (self, other))
        return np.matmul(*factors).view(Coarse)


def test_a_device_is_near_the_cpu_and_one_that_cuts_factors_to_ten_bits_is_not(backend):
    assert muon.distance(backend.orthogonalize) < muon.MAX_DISTANCE / 10
    arrays = type("Arrays", (), {"permute": staticmethod(np.transpose)})

    def coarse(xs, scales, coefficients):
        how = {"xp": arrays, "from_host": lambda x: x.view(Coarse), "on_host": np.asarray}
        return newton_schulz.orthogonalize(xs, scales, coefficients, **how)

    assert muon.distance(coarse) > muon.MAX_DISTANCE
