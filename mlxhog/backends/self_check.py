"""The self-check of a GPU worker's Metal kernels: each operator that has one, on small inputs.

Outputs, states and gradients are compared with those of the framework's plain operators on its CPU,
whose float32 no setting of a GPU changes. The inputs have several chunks, documents, a state before
the first position, and sizes below and above a group of threads, but no multiple of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.backends.autodiff import MLXArrays, TorchArrays
from mlxhog.errors import MlxhogError, message_of
from mlxhog.models.ops.kernels import choose
from mlxhog.models.ops.operators import Ops

Array = NDArray[Any]
Inputs = Mapping[str, Any]


@dataclass(frozen=True)
class Allowed:
    """Allowed difference between two float32 computations of one array.

    Attributes:
        atol: in any case.
        of_largest: share of the array's largest entry.
        of_all: share of the largest entry of all arrays of this kind.
    """

    atol: float = 0.0
    of_largest: float = 0.0
    of_all: float = 0.0


ALLOWED = {
    "y": Allowed(atol=1e-6, of_largest=3e-6),
    "h": Allowed(atol=1e-6, of_largest=2e-5),
    "state": Allowed(atol=1e-5, of_largest=1e-4),
    "grad": Allowed(of_largest=2e-3, of_all=1e-7),
}
"""By kind: the output of the convolution, that of a cell, a state, and a gradient. `parity` takes
its tolerances from here; `mlxhog/parity/tolerances.py` has a reason for each."""

B, K = 2, 4


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """S positions, in chunks of `chunk`; NH heads of widths DK, DV and DH; CH channels."""

    S: int
    chunk: int
    NH: int
    DK: int
    DV: int
    DH: int
    CH: int

    def starts(self) -> Array:
        """Where documents start, (B, S); the first row continues the one before."""
        starts = np.zeros((B, self.S), bool)
        starts[0, self.S // 2] = starts[1, 0] = starts[1, 2 * self.S // 3] = True
        return starts


SIZES = (
    Sizes(S=21, chunk=8, NH=4, DK=6, DV=10, DH=12, CH=14),  # narrower than a group of threads
    Sizes(S=70, chunk=64, NH=4, DK=72, DV=40, DH=80, CH=300),  # several groups, the longest chunk
)


@dataclass(frozen=True)
class Check:
    """The check of one operator.

    Attributes:
        results: names of the output and of the states that `call` returns.
        draw: draws the inputs, float32.
        call: from operators, inputs, the starts of documents and the chunk to the results.
    """

    results: tuple[str, ...]
    draw: Callable[[np.random.Generator, Sizes], dict[str, Array]]
    call: Callable[[Ops, Inputs, Any, int], tuple[Any, Sequence[Any]]]

    def kind(self, name: str) -> str:
        """The kind of a result, as in `ALLOWED`."""
        return name if name == self.results[0] else "state" if name in self.results else "grad"


def _normal(r: np.random.Generator, *shape: int) -> Array:
    return r.standard_normal(shape, dtype=np.float32)


def _positive(r: np.random.Generator, *shape: int) -> Array:
    """Numbers whose products cancel nowhere, as the mLSTM's denominator could."""
    return r.uniform(0.5, 2.0, shape).astype(np.float32)


def _conv(r: np.random.Generator, s: Sizes) -> dict[str, Array]:
    x, state = _normal(r, B, s.S, s.CH), _normal(r, B, K - 1, s.CH)
    return {"x": x, "w": _normal(r, s.CH, 1, K), "b": _normal(r, s.CH), "state": state}


def _mlstm(r: np.random.Generator, s: Sizes) -> dict[str, Array]:
    gates, state = (B, s.S, s.NH), (B, s.NH)
    return {
        "q": _positive(r, *gates, s.DK),
        "k": _positive(r, *gates, s.DK),
        "v": _normal(r, *gates, s.DV),
        "i": _normal(r, *gates),
        "f": 2.0 + _normal(r, *gates),
        "C": _normal(r, *state, s.DK, s.DV),
        "n": _positive(r, *state, s.DK),
        "m": _normal(r, *state),
    }


def _slstm(r: np.random.Generator, s: Sizes) -> dict[str, Array]:
    gates = {name: _normal(r, B, s.S, s.NH, s.DH) for name in "ifzo"}
    gates["R"] = np.float32(s.DH**-0.5) * _normal(r, s.NH, 4 * s.DH, s.DH)
    gates["b"] = 0.3 * _normal(r, 4 * s.NH * s.DH)
    draws = {"h": _normal, "c": _normal, "n": _positive, "m": _normal}
    return gates | {name: draw(r, B, s.NH, s.DH) for name, draw in draws.items()}


def _call_conv(ops: Ops, t: Inputs, starts: Any, chunk: int) -> tuple[Any, Sequence[Any]]:
    y, last = ops.causal_conv(t["x"], t["w"], t["b"], state=t["state"], starts=starts, silu=True)
    return y, (last,)


def _call_mlstm(ops: Ops, t: Inputs, starts: Any, chunk: int) -> tuple[Any, Sequence[Any]]:
    state = [t[name] for name in "Cnm"]
    return ops.mlstm_cell(*(t[name] for name in "qkvif"), chunk_size=chunk, eps=1e-6, state=state)


def _call_slstm(ops: Ops, t: Inputs, starts: Any, chunk: int) -> tuple[Any, Sequence[Any]]:
    state = [t[name] for name in "hcnm"]
    return ops.slstm_cell(*(t[name] for name in "ifzoRb"), state=state, starts=starts)


CHECKS = {
    "causal_conv": Check(("y", "last inputs"), _conv, _call_conv),
    "mlstm_cell": Check(("h", "last C", "last n", "last m"), _mlstm, _call_mlstm),
    "slstm_cell": Check(("h", "last h", "last c", "last n", "last m"), _slstm, _call_slstm),
}
"""By operator: every one with Metal kernels."""


def faults(
    framework: str, device: str, ops: Ops, *, threads: int, names: Iterable[str] = ()
) -> dict[str, str]:
    """Compare the operators with Metal kernels with the plain ones on the CPU.

    Leaves `device` as MLX's default device, and this number of threads.

    Args:
        framework: "torch" or "mlx", which is imported here.
        device: of `ops`: "cpu", "gpu" or "mps".
        ops: with Metal kernels.
        threads: of the framework on the CPU.
        names: operators; all by default.

    Returns:
        By operator the fault that was found first; operators without one are missing.
    """
    Arrays = TorchArrays if framework == "torch" else MLXArrays
    arrays, plain = Arrays("cpu", threads), choose(framework, "reference", "cpu")
    cases = list(product(names or CHECKS, SIZES))
    expected = [dict(_results(arrays, plain, *case)) for case in cases]
    arrays, found = Arrays(device, threads), dict[str, str]()
    for (name, sizes), exact in zip(cases, expected, strict=True):
        try:
            results = dict(_results(arrays, ops, name, sizes))
        except (MlxhogError, RuntimeError, ValueError) as error:  # also of a lazy framework
            found.setdefault(name, message_of(error))
            continue
        fault = next(_differences(CHECKS[name], results, exact), None)
        if fault is not None:
            found.setdefault(name, fault)
    return found


def _results(
    arrays: TorchArrays | MLXArrays, ops: Ops, name: str, sizes: Sizes
) -> Iterator[tuple[str, Array]]:
    """Yield output, states and gradients of one operator, the same inputs in every process."""
    check, rng = CHECKS[name], np.random.default_rng([*name.encode(), sizes.S])
    inputs = {key: arrays.array(x) for key, x in check.draw(rng, sizes).items()}
    starts = arrays.array(sizes.starts())
    output, states = check.call(ops, inputs, starts, sizes.chunk)
    results = [arrays.host(x) for x in (output, *states)]
    yield from zip(check.results, results, strict=True)
    weights = [arrays.array(_normal(rng, *x.shape)) for x in results]

    def total(t: Inputs) -> Any:
        y, last = check.call(ops, t, starts, sizes.chunk)
        return sum((x * w).sum() for x, w in zip((y, *last), weights, strict=True))

    _, grads = arrays.value_and_grad(total, inputs)
    for key, grad in grads.items():
        yield f"gradient of {key}", arrays.host(grad)


def _differences(
    check: Check, results: Mapping[str, Array], expected: Mapping[str, Array]
) -> Iterator[str]:
    """Yield a sentence for each array that is too far from the expected one."""
    largest = {name: float(np.abs(x).max()) for name, x in expected.items()}
    for name, exact in expected.items():
        kind = check.kind(name)
        allowed = ALLOWED[kind]
        most = allowed.atol + allowed.of_largest * largest[name]
        most += allowed.of_all * max(n for other, n in largest.items() if check.kind(other) == kind)
        off = float(np.abs(results[name] - exact).max())
        if not off <= most:  # or not a number
            share, limit = off / largest[name], most / largest[name]
            yield f"{name} is off by {share:.1e} of its largest entry, expected {limit:.1e} at most"
