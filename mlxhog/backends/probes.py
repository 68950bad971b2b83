"""Computations on small inputs that reveal faults of a device, a compiler or a kernel.

`PROBES` test the precision of a backend's float32 against float64. Each kind reveals a fault that a
device, its compiler or a framework has had:

    products   matmuls of 1, 7, 9 and 32 rows, for which libraries have kernels of their own. TF32
               cuts the operands to 10 bits (mlx issue 3860); more than 8 rows were once wrong
               (3585). A long one has a larger K than torch sums right on an M1 or M2
               (`MAX_SUM_TERMS`): it reads past the operands, where there is NaN.
    gates      at -inf, -1e4, -88, 0 and 88. Fast math makes NaN of exp(-inf) (3592).
    chain      operators that depend on each other in one graph, which a lazy framework sends to
               the device together (3347).

`CHECKS` compare the operators with Metal kernels, in outputs, states and gradients, with the eager
operators on the framework's CPU, whose float32 no setting of a GPU changes. Their inputs have
several chunks, documents, a state before the first position, and sizes below and above a
threadgroup, but no multiple of one. With a model they also have the widths of its cells, and every
number of sequences for which a cell has a kernel of its own, so all that it will use are compiled.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlxhog.base.capabilities import CellShape
from mlxhog.errors import MlxhogError, is_lost_gpu, whole_text
from mlxhog.metal.kernels import slstm
from mlxhog.models.ops import kernels
from mlxhog.models.ops.operators import Ops

Array = NDArray[Any]
Inputs = Mapping[str, Any]
Named = Iterator[tuple[str, Array]]

PRODUCTS, GATES, CHAIN = "products", "gates", "chain"
LONG = f"{PRODUCTS}/long"


class Device:
    """Arrays of a framework on a "cpu", "gpu" or "mps", without a model; imports the framework.

    The device becomes MLX's default.
    """

    def __init__(self, framework: str, device: Any, threads: int) -> None:
        self.xp = kernels.choose(framework, "eager", "cpu").xp
        self._like: Any = None
        if framework == "torch":
            import torch

            torch.set_num_threads(threads)
            self._like = torch.empty(0, device=device)
        else:
            import mlx.core as mx

            from mlxhog.models.ops.native import adapter_mlx

            mx.set_default_device(mx.gpu if device == "gpu" else mx.cpu)
            adapter_mlx.set_threads(threads)

    def array(self, x: Array) -> Any:
        """Return x as an array of the framework."""
        return self.xp.from_numpy(x, like=self._like)

    def host(self, x: Any) -> Array:
        """Return a copy of an array as a contiguous one of NumPy."""
        if self._like is not None:
            return np.array(x.detach().cpu().numpy(), order="C")
        import mlx.core as mx

        mx.eval(x)  # NumPy drops an error that is raised as it asks for the memory
        return np.array(x, order="C")


@dataclass(frozen=True)
class Allowed:
    """Allowed difference between two computations of one array, one of them in float32."""

    atol: float = 0.0  # absolute
    of_largest: float = 0.0  # relative to the array's largest entry
    of_all: float = 0.0  # relative to the largest entry of all arrays of this kind


ALLOWED = {
    PRODUCTS: Allowed(of_largest=4e-6),  # TF32 products have 7e-4
    GATES: Allowed(of_largest=1e-4),
    CHAIN: Allowed(of_largest=2e-5),
    "y": Allowed(atol=1e-6, of_largest=3e-6),  # the output of the convolution
    "h": Allowed(atol=1e-6, of_largest=2e-5),  # that of a cell
    "state": Allowed(atol=1e-5, of_largest=1e-4),
    "grad": Allowed(of_largest=2e-3, of_all=1e-7),
}
"""By kind; `mlxhog/conformance/tolerances.py` has the reasons, and `parity` uses them, too."""

OF_BF16 = {"grad": 2.0**-6, "h": 2.0**-7, "y": 2.0**-7}
"""The part of the largest entry that is added where arrays are bfloat16, as for every operator in
mixed precision: 8 bits of a result, and of its gradient. States stay float32."""
NARROW = frozenset({"q", "k", "v", "x", "state"})  # inputs that may be bfloat16

DEPTH = 4


class Sizes(NamedTuple):
    """S positions, in chunks of `chunk`; NH heads of widths DK, DV and DH; CH channels.

    B sequences, and convolutions of K inputs.
    """

    S: int
    chunk: int
    NH: int
    DK: int
    DV: int
    DH: int
    CH: int
    B: int = 2
    K: int = 4
    bf16: bool = False  # whether operators that take arrays of bfloat16 get some

    def reset_mask(self) -> Array:
        """Return where documents start, (B, S); the first row continues a document."""
        mask = np.zeros((self.B, self.S), bool)
        mask[0, -3] = mask[1:, 0] = mask[-1, 2 * self.S // 3] = True
        return mask


OF_PROBES = Sizes(S=16, chunk=8, NH=2, DK=8, DV=8, DH=8, CH=16)
SIZES = (
    Sizes(S=21, chunk=8, NH=4, DK=6, DV=10, DH=12, CH=14),  # narrower than a threadgroup
    Sizes(S=70, chunk=64, NH=4, DK=72, DV=40, DH=80, CH=300),  # several, and the longest chunk
)
"""The sizes of the checks of any model."""


def cases_of(cells: Iterable[CellShape]) -> Iterator[tuple[str, Sizes]]:
    """Yield operators with the widths of a model's cells, in every kernel that they may need."""
    for operator, widths in cells:
        own = SIZES[0]._replace(S=9)
        if operator == "causal_conv":
            yield operator, own._replace(K=widths[0], CH=widths[1])
        elif operator == "slstm_cell":
            own = own._replace(NH=min(2, widths[0]), DH=widths[1])
            yield from ((operator, own._replace(B=B)) for B in slstm.batch_sizes(widths[1]))
        else:
            NH, DK, DV, chunk = widths
            own = own._replace(S=chunk + 5, chunk=chunk, NH=min(2, NH), DK=DK, DV=DV)
            yield operator, own


class Probe(NamedTuple):
    """A small computation: random inputs, and a function (ops, inputs, reset_mask, sizes)."""

    draw: Callable[[np.random.Generator, Sizes], dict[str, Array]]  # its inputs, float32
    call: Callable[[Any, Inputs, Any, Sizes], Sequence[Any]]
    results: tuple[str, ...] = ()  # names of output and states, of a check

    def kind(self, name: str) -> str:
        """Return the kind of a result of a check, as in `ALLOWED`."""
        return name if name == self.results[0] else "state" if name in self.results else "grad"


# -- inputs ----------------------------------------------------------------------------------------


def _normal(r: np.random.Generator, *shape: int) -> Array:
    return r.standard_normal(shape, dtype=np.float32)


def _positive(r: np.random.Generator, *shape: int) -> Array:
    """Draw numbers whose products do not cancel, as in the mLSTM's denominator."""
    return r.uniform(0.5, 2.0, shape).astype(np.float32)


def _conv(r: np.random.Generator, s: Sizes) -> dict[str, Array]:
    x, state = _normal(r, s.B, s.S, s.CH), _normal(r, s.B, s.K - 1, s.CH)
    return {"x": x, "w": _normal(r, s.CH, 1, s.K), "b": _normal(r, s.CH), "state": state}


def _mlstm(r: np.random.Generator, s: Sizes) -> dict[str, Array]:
    gates, state = (s.B, s.S, s.NH), (s.B, s.NH)
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
    gates = {name: _normal(r, s.B, s.S, s.NH, s.DH) for name in "ifzo"}
    gates["R"] = np.float32(s.DH**-0.5) * _normal(r, s.NH, 4 * s.DH, s.DH)
    gates["b"] = 0.3 * _normal(r, 4 * s.NH * s.DH)
    draws = {"h": _normal, "c": _normal, "n": _positive, "m": _normal}
    return gates | {name: draw(r, s.B, s.NH, s.DH) for name, draw in draws.items()}


EXTREMES = {
    "i": (0.0, -math.inf, -1e4, -88.0, 88.0, 0.0, -math.inf, 0.0),
    "f": (0.0, 88.0, 0.0, 88.0, 0.0, 88.0, -88.0, -1e4),  # sums of their logarithms cancel little
    "o": (0.0, -math.inf, -1e4, -88.0, 88.0, 0.0, -math.inf, 0.0),
}
"""Values of gates along the positions."""


def _extreme(draw: Callable[..., dict[str, Array]]) -> Callable[..., dict[str, Array]]:
    """Return the same inputs with extreme gates."""

    def drawn(r: np.random.Generator, s: Sizes) -> dict[str, Array]:
        inputs = draw(r, s)
        for name in EXTREMES.keys() & inputs.keys():
            shape = inputs[name].shape
            column = np.resize(np.array(EXTREMES[name], np.float32), shape[1])
            inputs[name] = np.broadcast_to(column.reshape(-1, *[1] * len(shape[2:])), shape).copy()
        return inputs

    return drawn


def _chained(r: np.random.Generator, s: Sizes) -> dict[str, Array]:
    gates, D = {name: _positive(r, s.B, s.S, s.NH) for name in "if"}, s.NH * s.DH
    return {
        "x": _positive(r, s.B, s.S, D),
        "w": _positive(r, D, D),
        "norm": _positive(r, D),
    } | gates


# -- computations ----------------------------------------------------------------------------------


def _call_mlstm(ops: Ops, t: Inputs, reset_mask: Any, s: Sizes) -> Sequence[Any]:
    how: dict[str, Any] = {"chunk_size": s.chunk, "eps": 1e-6, "state": [t[name] for name in "Cnm"]}
    h, last = ops.mlstm_cell(*(t[name] for name in "qkvif"), **how, reset_mask=reset_mask)
    return h, *last


def _call_slstm(ops: Ops, t: Inputs, reset_mask: Any, s: Sizes) -> Sequence[Any]:
    state = [t[name] for name in "hcnm"]
    h, last = ops.slstm_cell(*(t[name] for name in "ifzoRb"), state=state, reset_mask=reset_mask)
    return h, *last


def _call_linear(ops: Ops, t: Inputs, reset_mask: Any, s: Sizes) -> Sequence[Any]:
    return ops.linears(t["x"], [t["w"]])


def _call_chain(ops: Ops, t: Inputs, reset_mask: Any, s: Sizes) -> Sequence[Any]:
    x = t["x"]
    for _ in range(DEPTH):
        q = ops.linears(x, [t["w"]])[0].reshape(s.B, s.S, s.NH, s.DH)
        h, _ = ops.mlstm_cell(q, q, q, t["i"], t["f"], chunk_size=s.chunk, eps=1e-6)
        x = ops.swiglu(ops.soft_cap(h.reshape(x.shape), 15.0), x)
        x = ops.rms_norm(x, t["norm"], 1e-6)
    return (x,)


CHECKS = {
    "causal_conv": Probe(
        _conv,
        lambda ops, t, reset_mask, _: ops.causal_conv(**t, reset_mask=reset_mask, silu=True),
        ("y", "last inputs"),
    ),
    "mlstm_cell": Probe(_mlstm, _call_mlstm, ("h", "last C", "last n", "last m")),
    "slstm_cell": Probe(_slstm, _call_slstm, ("h", "last h", "last c", "last n", "last m")),
}
"""The operators with Metal kernels, by name."""

PROBES = {
    **{
        f"{PRODUCTS}/{rows} rows": Probe(
            lambda r, s, rows=rows: {"x": _positive(r, rows, 32), "w": _positive(r, 40, 32)},  # type: ignore[misc]
            _call_linear,
        )
        for rows in (1, 7, 9, 32)
    },
    LONG: Probe(  # of small integers, whose sums are exact in any order
        lambda r, s: {n: r.integers(1, 4, (24, 40_000)).astype(np.float32) for n in "xw"},
        _call_linear,
    ),
    f"{GATES}/output gate": Probe(
        _extreme(
            lambda r, s: {
                "h": _positive(r, s.B, s.S, s.NH, s.DH),
                "o": _positive(r, s.B, s.S, s.NH * s.DH),
                "w": _positive(r, s.NH * s.DH),
            }
        ),
        lambda ops, t, *_: (ops.head_norm_gate(t["h"], t["o"], t["w"], 1e-6),),
    ),
    f"{GATES}/mlstm_cell": Probe(_extreme(_mlstm), _call_mlstm),
    f"{GATES}/slstm_cell": Probe(_extreme(_slstm), _call_slstm),
    f"{CHAIN}/{DEPTH} layers": Probe(_chained, _call_chain),
}
"""Probes by "kind/name"."""


def _uploaded(device: Device, inputs: Inputs) -> dict[str, Any]:
    """Copy inputs to memory surrounded by NaN, if the device reuses freed memory."""
    sizes = [x.shape for x in inputs.values() for _ in range(3)]
    poison = [device.array(np.full(size, math.nan, np.float32)) for size in sizes]
    assert all(np.isnan(device.host(x)).all() for x in poison), "which evaluates a lazy array"
    del poison
    return {key: device.array(x) for key, x in inputs.items()}


# -- the precision of float32 ----------------------------------------------------------------------


def probed(device: Device, ops: Ops, names: Iterable[str] = PROBES) -> Named:
    """Yield the result of every probe on a device."""
    for name in names:
        probe = PROBES[name]
        inputs = _uploaded(device, probe.draw(np.random.default_rng(0), OF_PROBES))
        yield name, device.host(probe.call(ops, inputs, None, OF_PROBES)[0])


@cache
def _exact(name: str) -> Array:
    from mlxhog.models.ops.eager.ops_float64 import OPS, tensor

    inputs = PROBES[name].draw(np.random.default_rng(0), OF_PROBES)
    wide = {key: tensor(x) for key, x in inputs.items()}
    exact: Array = PROBES[name].call(OPS, wide, None, OF_PROBES)[0].numpy()
    return exact


def exact() -> Named:
    """Yield the result of every probe in float64; imports torch."""
    for name in PROBES:
        yield name, _exact(name)


def computes_long_products(device: Device, ops: Ops) -> bool:
    """Whether the long matmul is right; takes milliseconds."""
    return all(np.array_equal(y, _exact(name)) for name, y in probed(device, ops, [LONG]))


# -- operators with Metal kernels ------------------------------------------------------------------


class Compared(NamedTuple):
    """The comparison of an operator at one size with the eager one."""

    name: str
    positions: int
    where: str  # the result with the largest error over tolerance
    error: float | None  # relative to its largest entry; None if it did not run
    allowed: float | None
    fault: str  # a sentence, or a compiler's whole text; "" if every result is within tolerance


def compared(
    framework: str, device: str, ops: Ops, *, threads: int, names: Iterable[str] = (),
    cells: Iterable[CellShape] = (), bf16: bool = False,
) -> Iterator[Compared]:  # fmt: skip
    """Compare operators with Metal kernels, all or the named ones, with eager ones on the CPU.

    Those of `cells` also have their widths; with `bf16` also arrays of that type, where they take
    them.
    """
    host, eager = Device(framework, "cpu", threads), kernels.choose(framework, "eager", "cpu")
    cases = [*product(names or CHECKS, SIZES), *cases_of(cells)]
    if bf16:
        own = [case for case in cases if case[0] in ops.takes_bf16]
        cases += [(name, sizes._replace(bf16=True)) for name, sizes in own]
    expected = [dict(_results(host, eager, *case)) for case in cases]
    tested = Device(framework, device, threads)
    for (name, sizes), exact in zip(cases, expected, strict=True):
        try:
            results = dict(_results(tested, ops, name, sizes))
        except (MlxhogError, RuntimeError, ValueError) as error:  # also of a lazy framework
            if is_lost_gpu(error):  # no fault of the operator
                raise
            yield Compared(name, sizes.S, "", None, None, whole_text(error))
            continue
        where, share, allowed = _worst(CHECKS[name], results, exact, sizes.bf16)
        of = " of its largest entry" if exact[where].any() else ", where it should be 0"
        sentence = f"{where} is off by {share:.1e}{of}, expected {allowed:.1e} at most"
        fault = "" if share <= allowed else sentence  # or not a number
        yield Compared(name, sizes.S, where, share, allowed, fault)


def faults(
    framework: str, device: str, ops: Ops, *, threads: int,
    beat: Callable[[], object] = lambda: None, cells: Iterable[CellShape] = (), bf16: bool = False,
) -> dict[str, str]:  # fmt: skip
    """Return the first fault of each faulty operator; `beat` is called after each case."""
    by_name = dict[str, str]()
    for case in compared(framework, device, ops, threads=threads, cells=cells, bf16=bf16):
        if case.fault:
            by_name.setdefault(case.name, case.fault)
        beat()
    return by_name


def _results(device: Device, ops: Ops, name: str, sizes: Sizes) -> Named:
    """Yield output, states and gradients of one operator; inputs are the same in every process."""
    check, rng = CHECKS[name], np.random.default_rng([*name.encode(), sizes.S])
    inputs, reset_mask = _uploaded(device, check.draw(rng, sizes)), device.array(sizes.reset_mask())
    xp = device.xp
    if sizes.bf16:
        narrow = {key: xp.bfloat16(inputs[key]) for key in NARROW & inputs.keys()}
        is_taken = name in ops.takes_bf16
        inputs |= {key: x if is_taken else xp.float32(x) for key, x in narrow.items()}
    results = [device.host(xp.float32(x)) for x in check.call(ops, inputs, reset_mask, sizes)]
    yield from zip(check.results, results, strict=True)
    weights = [device.array(_normal(rng, *x.shape)) for x in results]

    def total(t: Inputs) -> Any:
        outputs = check.call(ops, t, reset_mask, sizes)
        return sum((x * w).sum() for x, w in zip(outputs, weights, strict=True))

    _, grads = xp.value_and_grad(total, inputs)
    for key, grad in grads.items():
        yield f"gradient of {key}", device.host(xp.float32(grad))


def _worst(
    check: Probe, results: Mapping[str, Array], expected: Mapping[str, Array], bf16: bool
) -> tuple[str, float, float]:
    """Return the first result out of tolerance, else the one with the largest error over tolerance.

    With it come its error and the allowed one, relative to the largest entry, unless that is 0.
    """
    largest = {name: float(np.abs(x).max(initial=0.0)) for name, x in expected.items()}
    shares = list[tuple[str, float, float]]()
    for name, exact in expected.items():
        kind = check.kind(name)
        allowed = ALLOWED[kind]
        of_largest = allowed.of_largest + (OF_BF16.get(kind, 0.0) if bf16 else 0.0)
        tolerance = allowed.atol + of_largest * largest[name]
        of_kind = max(n for other, n in largest.items() if check.kind(other) == kind)
        tolerance += allowed.of_all * of_kind
        error = float(np.abs(results[name] - exact).max(initial=0.0))
        scale = largest[name] or 1.0
        shares.append((name, error / scale, tolerance / scale))
        if not error <= tolerance:  # or not a number
            return shares[-1]
    return max(shares, key=lambda each: each[1] and each[1] / each[2])
