"""The sLSTM cell over a whole sequence in one launch, and its gradient in another (`slstm.h`).

Time is sequential, so a head of a sequence is one group of threads, a thread per unit; a GPU allows
at most 1024. The recurrent matrices are read from device memory, through its cache. Their gradient
and that of the bias are sums over all positions; the caller computes them by one matrix product,
which adds in a fixed order:

    dR[:, g] = sum_t dG[t, g] h[t - 1]^T        dbias = sum_t dG[t]

with h[t - 1] = 0 where a document starts at t. R and bias are laid out as the xlstm package stores
them for the CPU. A launch with other shapes than those in `SHAPES`, or with too wide heads, raises
`ShapeError`.

Source: Beck et al. 2024, xLSTM, arXiv:2405.04517.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.errors import ShapeError
from mlxhog.metal.kernel import Kernel, Launch
from mlxhog.metal.kernels.arguments import arrays, launch, sizes

Array = NDArray[Any]
Arrays = Mapping[str, Any]
"""Arrays by name; those that a launch does not take are ignored."""

MOST_UNITS = 1024
_STATE = ("h0", "c0", "n0", "m0")
_EVERY = ("h", "c", "n", "m")
_LAST = ("dc_last", "dn_last", "dm_last")

SHAPES = {
    "G": "B S 4 NH DH",  # parts of the gates i, f, z, o from the inputs
    "R": "NH 4 DH DH",  # from the last index to the one before
    "bias": "4 NH DH",
    **dict.fromkeys(_STATE, "B NH DH"),  # before the first position; where n0 is 0 the stabiliser
    # starts at the first input gate
    "starts": "B S",  # int32, not 0 where a document starts: the state before it counts as zero
    **dict.fromkeys(_EVERY, "B S NH DH"),  # the state after every position
    "dh": "B S NH DH",  # gradient of h, that of the last state's h included
    **dict.fromkeys(_LAST, "B NH DH"),
    "dG": "B S 4 NH DH",
    **{f"d{name}": "B NH DH" for name in _STATE},
}
"""Shape of every array by its name, float32."""


def slstm_forward(x: Arrays) -> Launch:
    """Run the cell over a sequence: h, c, n and m after every position."""
    return _launch(FORWARD, x)


def slstm_backward(x: Arrays) -> Launch:
    """Differentiate `slstm_forward`, exactly: dG and the gradients of the first state."""
    return _launch(BACKWARD, x)


def _launch(kernel: Kernel, x: Arrays) -> Launch:
    B, S, _, NH, DH = x["G"].shape
    if DH > MOST_UNITS:
        raise ShapeError(
            f"{kernel.name}: heads of {DH} units, and a group of threads has at most {MOST_UNITS}; "
            "use more heads, or the framework's own operations"
        )
    numbers = {"B": B, "S": S, "NH": NH, "DH": DH}
    return launch(kernel, x, SHAPES, numbers, grid=(DH, B * NH, 1), group=(DH, 1, 1))


def sample_slstm(
    rng: np.random.Generator, *, B: int, S: int, NH: int, DH: int, fresh: bool, packed: bool = False
) -> dict[str, Any]:
    """Random arguments of `slstm_forward`; a fresh state is zeros, packed are several documents."""
    letters = {"B": B, "S": S, "NH": NH, "DH": DH, "4": 4}
    x: dict[str, Any] = {
        name: rng.standard_normal([letters[word] for word in SHAPES[name].split()], np.float32)
        for name in ("G", "R", "bias", *_STATE)
    }
    x["R"] *= np.float32(DH**-0.5)
    x["n0"] = 0.5 + np.abs(x["n0"])
    if fresh:
        x |= {name: np.zeros_like(x[name]) for name in _STATE}
    x["starts"] = (rng.random((B, S)) < (0.3 if packed else 0)).astype(np.int32)
    return x


def _forward_reference(
    *, starts: Array, h: Array, c: Array, n: Array, m: Array, **x: Array
) -> None:
    """Run the cell in float64, step by step, and keep the state after every step."""
    G, R, bias, *now = _float64(*(x[name] for name in ("G", "R", "bias", *_STATE)))
    for t in range(G.shape[1]):
        h_now, c_now, n_now, m_now = (_unless(starts[:, t], part) for part in now)
        i, f, z, o = _gates(G, R, bias, h_now, t)
        lf = m_now - np.logaddexp(0.0, -f)
        m_now = np.where(n_now == 0, i, np.maximum(i, lf))
        I, F = _weights(i, lf, m_now)  # noqa: E741  the papers' letter
        c_now = F * c_now + I * np.tanh(z)
        n_now = F * n_now + I
        now = [_sigmoid(o) * c_now / n_now, c_now, n_now, m_now]
        h[:, t], c[:, t], n[:, t], m[:, t] = now


def _backward_reference(*, starts: Array, dG: Array, **x: Array) -> None:
    """Differentiate the cell in float64, step by step."""
    G, R, bias, dh, dc, dn, dm = _float64(*(x[name] for name in ("G", "R", "bias", "dh", *_LAST)))
    h, c, n, m = (
        _with_start(*_float64(x[start], x[every]))
        for start, every in zip(_STATE, _EVERY, strict=True)
    )
    dh_through, free = np.zeros_like(dc), dm - dc * c[:, -1] - dn * n[:, -1]
    for t in reversed(range(G.shape[1])):
        h_old, c_old, n_old, m_old = (_unless(starts[:, t], part[:, t]) for part in (h, c, n, m))
        i, f, z, o = _gates(G, R, bias, h_old, t)
        lf = m_old - np.logaddexp(0.0, -f)
        by_input = (n_old == 0) | (i >= lf)  # m' = i
        I, F = _weights(i, lf, m[:, t + 1])  # noqa: E741
        z, o = np.tanh(z), _sigmoid(o)
        ratio = c[:, t + 1] / n[:, t + 1]
        dh_now = dh[:, t] + dh_through
        dratio = dh_now * o / n[:, t + 1]
        dc = dc + dratio
        dn = dn - dratio * ratio
        d_pre = np.stack(
            [
                (dc * z + dn) * I + np.where(by_input, free, 0.0),
                ((dc * c_old + dn * n_old) * F + np.where(by_input, 0.0, free)) * _sigmoid(-f),
                dc * I * (1.0 - z * z),
                dh_now * ratio * o * (1.0 - o),
            ],
            1,
        )
        dG[:, t] = d_pre
        dh_through = np.einsum("ngej,bgne->bnj", R, d_pre)
        before = (dh_through, dc * F, dn * F, np.where(by_input, 0.0, free))
        dh_through, dc, dn, free = (_unless(starts[:, t], part) for part in before)
    x["dh0"][...], x["dc0"][...], x["dn0"][...] = dh_through, dc, dn
    x["dm0"][...] = free + dc * x["c0"] + dn * x["n0"]


def _unless(starts: Array, state: Array) -> Array:
    """The state (B, NH, DH), or 0 where a document starts."""
    result: Array = np.where(starts[:, None, None] != 0, 0.0, state)
    return result


def _float64(*arrays: Array) -> list[Array]:
    return [np.asarray(x, np.float64) for x in arrays]


def _with_start(start: Array, steps: Array) -> Array:
    """The state before every step, and after the last: (B, S + 1, NH, DH)."""
    return np.concatenate([start[:, None], steps], 1)


def _gates(G: Array, R: Array, bias: Array, h: Array, t: int) -> Array:
    """Pre-activations (4, B, NH, DH) of step t from the h before it."""
    total: Array = G[:, t] + np.einsum("ngej,bnj->bgne", R, h) + bias
    return total.swapaxes(0, 1)


def _weights(i: Array, lf: Array, m: Array) -> tuple[Array, Array]:
    return np.exp(np.minimum(i - m, 0.0)), np.exp(np.minimum(lf - m, 0.0))


def _sigmoid(x: Array) -> Array:
    result: Array = np.exp(-np.logaddexp(0.0, -x))
    return result


def _sample_forward(rng: np.random.Generator, n: int) -> Launch:
    x = sample_slstm(rng, B=2, S=max(1, n // 48), NH=2, DH=12, fresh=True, packed=True)
    return slstm_forward(x)


def _sample_backward(rng: np.random.Generator, n: int) -> Launch:
    forward = _sample_forward(rng, n)
    x = dict(forward.inputs)
    x |= {name: np.zeros(shape, np.float32) for name, shape in forward.outputs.items()}
    forward.kernel.reference(**x)
    x |= {name: rng.standard_normal(x["h"][:, 0].shape, np.float32) for name in _LAST}
    x["dh"] = rng.standard_normal(x["h"].shape, np.float32)
    return slstm_backward(x)


_INPUTS = (*arrays("G R bias h0 c0 n0 m0"), *arrays("starts", "int32"))

FORWARD = Kernel(
    name="slstm_forward",
    header="slstm.h",
    source="""
        threadgroup float shared_h[mlxhog::kSlstmUnits];
        static_assert(sizeof(shared_h) <= 32768, "more threadgroup memory than a chip has");
        mlxhog::slstm_forward(G, R, bias, h0, c0, n0, m0, starts, h, c, n, m,
                              mlxhog::SlstmShape{B, S, NH, DH}, shared_h,
                              thread_position_in_grid);
    """,
    inputs=(*_INPUTS, *sizes("B S NH DH")),
    outputs=arrays("h c n m"),
    reference=_forward_reference,
    sample=_sample_forward,
    lockstep=True,
    rtol=1e-5,
)

BACKWARD = Kernel(
    name="slstm_backward",
    header="slstm.h",
    source="""
        threadgroup float shared[mlxhog::kSlstmShared];
        static_assert(sizeof(shared) <= 32768, "more threadgroup memory than a chip has");
        mlxhog::slstm_backward(G, R, bias, h0, c0, n0, m0, starts, h, c, n, m, dh, dc_last, dn_last,
                               dm_last, dG, dh0, dc0, dn0, dm0, mlxhog::SlstmShape{B, S, NH, DH},
                               shared, thread_position_in_grid);
    """,
    inputs=(*_INPUTS, *arrays("h c n m dh dc_last dn_last dm_last"), *sizes("B S NH DH")),
    outputs=arrays("dG dh0 dc0 dn0 dm0"),
    reference=_backward_reference,
    sample=_sample_backward,
    lockstep=True,
    rtol=1e-5,
)

KERNELS = (FORWARD, BACKWARD)
