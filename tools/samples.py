"""Typical launches of the Metal kernels, with random contents, for tools and tests."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import ml_dtypes  # noqa: F401 - NumPy's bfloat16
import numpy as np

from mlxhog.metal.kernel import Launch, MetalKernel
from mlxhog.metal.kernels import adds, conv, mlstm, slstm
from mlxhog.metal.kernels.family import Family, Numbers

Draw = Callable[[np.random.Generator, tuple[int, ...]], Any]


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    return rng.standard_normal(shape, np.float32)


def _rows(rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    return np.sort(rng.choice(2 * shape[0], shape[0], replace=False)).astype(np.int32)


def _document_starts(share: float) -> Draw:
    return lambda rng, shape: (rng.random(shape) < share).astype(np.int32)


def _since(rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    """As `mlstm_gates` returns it for chunks of `MAX_CHUNK`."""
    position = 1 + np.arange(shape[-1], dtype=np.int32) % mlstm.MAX_CHUNK
    since = np.where(_document_starts(0.02)(rng, shape), position, 0)
    for first in range(0, shape[-1], mlstm.MAX_CHUNK):
        part = since[..., first : first + mlstm.MAX_CHUNK]
        np.maximum.accumulate(part, axis=-1, out=part)
    return since


def _positive(rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    return 0.5 + np.abs(_normal(rng, shape))


def _matrix(rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    return np.float32(shape[-1] ** -0.5) * _normal(rng, shape)


_RATES = np.array([0.1, 0.75, 0.2, 0.01, 0.1, 0.75, 0.0, 0.0], np.float32)
DRAWS: Mapping[str, Mapping[str, Draw]] = {
    "adds.h": {
        "decays": lambda rng, shape: rng.integers(0, 2, shape, np.uint8),  # half of them decay
        "hp": lambda rng, shape: _RATES,
        "rows": _rows,
    },
    "conv.h": {"back": lambda rng, shape: rng.integers(0, 4, shape, np.int32)},
    "mlstm_backward.h": {"starts": _document_starts(0.02), "since": _since},
    "slstm.h": {
        **dict.fromkeys(("n0", "n"), _positive),
        **dict.fromkeys(("R", "R_T"), _matrix),
        "starts": _document_starts(0.3),
    },
}
"""Header of a family -> how its arrays are drawn; others are normal numbers."""


def _sizes(n: int) -> list[tuple[tuple[MetalKernel, ...], Family, Numbers]]:
    """Kernels of one family, and the numbers of a launch of about n elements."""
    half = max(1, n // 16)  # of the rows of a parameter
    flat = {"A": n + 8, "n": n, "F": n // adds.FLAG_FLOATS + 1, "offset": 3, "scale": -0.5}
    rows = {
        "n_rows": half, "n_columns": 16, "height": 2 * half, "offset": 5,
        "A": 2 * max(16, n) + 8, "F": max(16, n) // 16 + 1,
    }  # fmt: skip
    # A chunk is whole and another is not, two simdgroups share a chunk, so that barriers between
    # them matter, and keys take two strips.
    chunks = {
        "B": 2, "S": max(100, n // 48), "NH": 2, "L": mlstm.MAX_CHUNK, "DK": 40, "DV": 12,
        "FIRST": 0, "NS": 2, "eps": 1e-6,
    }  # fmt: skip
    units = {"B": 2, "S": max(1, n // 48), "NH": 2, "DH": 12}
    taps = {"B": 2, "S": max(1, n // 24), "CH": 12, "K": 4, "P": 0, "silu": 1}
    return [
        ((adds.STEP_ROWS,), adds.ROWS, rows),
        (adds.KERNELS, adds.FLAT, flat),
        (mlstm.KERNELS, mlstm.MLSTM, chunks),
        (slstm.KERNELS, slstm.SLSTM, units),
        (conv.KERNELS, conv.CONV, taps),
    ]


def sample(kernel: MetalKernel, rng: np.random.Generator, n: int, instance: str = "") -> Launch:
    """Return a typical launch of a kernel, of about n elements; one that takes an instance."""
    family, numbers = next(
        (family, numbers)
        for kernels, family, numbers in _sizes(n)
        if any(kernel in (one, *one.variants) for one in kernels)
    )
    if instance:  # its sequences in a threadgroup
        numbers = {**numbers, "B": int(instance)}
    launch = kernel.launch(arrays(family, kernel, rng, numbers), **numbers)
    return replace(launch, kernel=kernel)  # also of results alone in another type


def arrays(
    family: Family, kernel: MetalKernel, rng: np.random.Generator, numbers: Numbers
) -> dict[str, Any]:
    """Return random arrays by name, of the shapes that the numbers of a launch give."""
    numbers, draws = {**numbers, **family.derived(numbers)}, DRAWS[family.header]
    return {
        one.name: draws.get(one.name, _normal)(rng, family.shape(one.name, numbers)).astype(
            one.dtype
        )
        for one in kernel.inputs
        if not one.scalar
    }
