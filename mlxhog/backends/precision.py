"""The precision of a backend's float32: small computations whose exact results are known.

Each kind shows a fault that a device, its compiler or a framework has had:

    products   of 1, 7, 9 and 32 rows, for which libraries have kernels of their own. TF32 cuts the
               operands to 10 bits (mlx issue 3860); more than 8 rows were once wrong (3585). A long
               one adds more terms than torch adds right on an M1 or M2 (`LONGEST_SUM`): it reads
               behind the operands, where NaN lies here before.
    gates      at -inf, -1e4, -88, 0 and 88. Fast mathematics makes NaN of exp(-inf) (3592).
    chain      operators that depend on each other in one graph, which a lazy framework sends to
               the device together (3347).
    tiny       products below 1.2e-38. A device may flush them to zero; that is no fault.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.backends.autodiff import MLXArrays, TorchArrays
from mlxhog.models.ops.operators import Ops

Array = NDArray[Any]
Inputs = Mapping[str, Any]

PRODUCTS, GATES, CHAIN, TINY = "products", "gates", "chain", "tiny"
LONG = f"{PRODUCTS}/long"
ALLOWED = {PRODUCTS: 4e-6, GATES: 1e-4, CHAIN: 2e-5}
"""Largest error of an entry, as a share of the largest entry. TF32 products have 7e-4."""
LEAST_NORMAL = 2.0**-126
"""Largest error of tiny products: the smallest number that no device flushes to zero."""

ROWS = (1, 7, 9, 32)
EXTREMES = (0.0, -math.inf, -1e4, -88.0, 88.0, 0.0, -math.inf, 0.0)
FORGETS = (0.0, 88.0, 0.0, 88.0, 0.0, 88.0, -88.0, -1e4)
"""Forget gates; sums of their logarithms over a chunk cancel little."""
B, S, NH, DH, CHUNK = 2, 16, 2, 8, 8
D = NH * DH
DEPTH = 4


@dataclass(frozen=True)
class Probe:
    """A computation with operators.

    Attributes:
        draw: draws its inputs, float32.
        call: from operators and inputs to the result.
    """

    draw: Callable[[np.random.Generator], dict[str, Array]]
    call: Callable[[Any, Inputs], Any]

    def inputs(self) -> dict[str, Array]:
        """Return its inputs, the same in every process."""
        return self.draw(np.random.default_rng(0))

    @cached_property
    def exact(self) -> Array:
        """The result in float64; computed once, which imports torch."""
        from mlxhog.models.ops.reference.ops_float64 import OPS, tensor

        result = self.call(OPS, {name: tensor(x) for name, x in self.inputs().items()})
        exact: Array = result.numpy()
        return exact


def _uniform(r: np.random.Generator, *shape: int, low: float = 0.5, high: float = 2.0) -> Array:
    return r.uniform(low, high, shape).astype(np.float32)


def _along(values: tuple[float, ...], *shape: int) -> Array:
    """Repeat values along the second axis."""
    column = np.resize(np.array(values, np.float32), shape[1]).reshape(-1, *[1] * (len(shape) - 2))
    return np.broadcast_to(column, shape).copy()


def _product(rows: int) -> Probe:
    return Probe(
        lambda r: {"x": _uniform(r, rows, 32), "w": _uniform(r, 40, 32)},
        lambda ops, t: ops.linears(t["x"], [t["w"]])[0],
    )


def _long(r: np.random.Generator) -> dict[str, Array]:
    """Small integers, whose sums are exact in any order."""
    return {name: r.integers(1, 4, (24, 40_000)).astype(np.float32) for name in "xw"}


def _output_gate(r: np.random.Generator) -> dict[str, Array]:
    h, o = _uniform(r, B, S, NH, DH), _along(EXTREMES, B, S, D)
    return {"h": h, "o": o, "w": _uniform(r, D)}


def _mlstm(r: np.random.Generator) -> dict[str, Array]:
    cell = (B, S, NH, DH)
    gates = {"i": _along(EXTREMES, B, S, NH), "f": _along(FORGETS, B, S, NH)}
    return {name: _uniform(r, *cell) for name in "qkv"} | gates


def _slstm(r: np.random.Generator) -> dict[str, Array]:
    cell = (B, S, NH, DH)
    gates = {"i": _along(EXTREMES, *cell), "f": _along(FORGETS, *cell)}
    others = {"z": _uniform(r, *cell), "o": _along(EXTREMES, *cell)}
    return gates | others | {"R": _uniform(r, NH, 4 * DH, DH, high=0.6), "b": _uniform(r, 4 * D)}


def _chained(r: np.random.Generator) -> dict[str, Array]:
    gates = {name: _uniform(r, B, S, NH) for name in "if"}
    return {"x": _uniform(r, B, S, D), "w": _uniform(r, D, D), "norm": _uniform(r, D)} | gates


def _chain(ops: Any, t: Inputs) -> Any:
    x = t["x"]
    for _ in range(DEPTH):
        q = ops.linears(x, [t["w"]])[0].reshape(B, S, NH, DH)
        h, _ = ops.mlstm_cell(q, q, q, t["i"], t["f"], chunk_size=CHUNK, eps=1e-6)
        x = ops.swiglu(ops.soft_cap(h.reshape(B, S, D), 15.0), x)
        x = ops.rms_norm(x, t["norm"], 1e-6)
    return x


PROBES = {
    **{f"{PRODUCTS}/{rows} rows": _product(rows) for rows in ROWS},
    LONG: Probe(_long, lambda ops, t: ops.linears(t["x"], [t["w"]])[0]),
    f"{GATES}/output gate": Probe(
        _output_gate, lambda ops, t: ops.head_norm_gate(t["h"], t["o"], t["w"], 1e-6)
    ),
    f"{GATES}/mlstm_cell": Probe(
        _mlstm,
        lambda ops, t: ops.mlstm_cell(*(t[n] for n in "qkvif"), chunk_size=CHUNK, eps=1e-6)[0],
    ),
    f"{GATES}/slstm_cell": Probe(
        _slstm, lambda ops, t: ops.slstm_cell(*(t[n] for n in ("i", "f", "z", "o", "R", "b")))[0]
    ),
    f"{CHAIN}/{DEPTH} layers": Probe(_chained, _chain),
    f"{TINY}/products": Probe(
        lambda r: {
            "x": np.float32(2.0) ** -np.arange(120, 140, dtype=np.float32),
            "y": _uniform(r, 20),
        },
        lambda ops, t: t["x"] * t["y"],
    ),
}
"""By kind and name."""


def exact() -> Iterator[tuple[str, Array]]:
    """Yield the exact result of every probe."""
    for name, probe in PROBES.items():
        yield name, probe.exact


def computes_long_products(arrays: TorchArrays | MLXArrays, ops: Ops) -> bool:
    """Whether the long product is right; takes milliseconds."""
    probe = PROBES[LONG]
    y = arrays.host(probe.call(ops, uploaded(arrays, probe.inputs())))
    return np.array_equal(y, probe.exact)


def uploaded(arrays: TorchArrays | MLXArrays, inputs: Inputs) -> dict[str, Any]:
    """Copy inputs to memory around which NaN lies, if the device takes freed memory again."""
    sizes = [x.shape for x in inputs.values() for _ in range(3)]
    spoilt = [arrays.array(np.full(size, math.nan, np.float32)) for size in sizes]
    arrays.evaluate(*spoilt)
    del spoilt
    return {key: arrays.array(x) for key, x in inputs.items()}
