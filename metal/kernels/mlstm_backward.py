"""The mLSTM cell's backward pass in three launches: denominators, states, outputs.

Layouts as in `mlstm.py`. The stabilisers m and M are held constant (`mlstm_backward.h`), what h
owes to M through eps comes apart as dM, and the forget gates' gradients come as those of their sums
b inside each chunk; `models/ops/metal/launches.py` says how to put them together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from mlxhog.metal.kernel import Argument, Kernel, Launch
from mlxhog.metal.kernels import mlstm_backward_reference as reference
from mlxhog.metal.kernels.arguments import arrays, check, sizes
from mlxhog.metal.kernels.mlstm import (
    LANES,
    SAMPLE_CHUNK,
    forward_launches,
    run_reference,
    sample_of_size,
)
from mlxhog.metal.kernels.mlstm_shape import ALL_SIZES, Sizes, round_up

PRE_SIZES = sizes("B NH S DV")
BACKWARD_ROWS = 8  # kMlstmBackwardRows in mlstm_backward.h


def mlstm_bwd_pre(den: Any, M: Any, h: Any, dh: Any, *, eps: float) -> Launch:
    """Differentiate the denominators.

    Args:
        den: (B, NH, S) float32, from `mlstm_out`.
        M: as den.
        h: (B, S, NH, DV), from `mlstm_out`.
        dh: gradient of h.
        eps: as in `mlstm_out`.

    Returns:
        A launch with the outputs rN, dden and dM, (B, NH, S).

    Raises:
        ShapeError: shapes differ.
    """
    B, S, NH, DV = h.shape
    size = Sizes(B=B, S=S, NH=NH, L=1, DV=DV)
    given = {"den": den, "M": M, "h": h, "dh": dh}
    by_position = (B, NH, S)
    check("mlstm_bwd_pre", given, {"den": by_position, "M": by_position, "dh": (B, S, NH, DV)})
    return Launch(
        kernel=PRE,
        inputs={**given, **size.scalars(PRE_SIZES), "eps": eps},
        outputs={"rN": by_position, "dden": by_position, "dM": by_position},
        grid=(S, B * NH, 1),
    )


def mlstm_bwd_states(
    q: Any,
    b: Any,
    m: Any,
    M: Any,
    rN: Any,
    dden: Any,
    dh: Any,
    dC_last: Any,
    dn_last: Any,
    *,
    chunk: int,
) -> Launch:
    """Carry the state's gradient from the last chunk to the first.

    Args:
        q: (B, S, NH, DK) float32.
        b: from `mlstm_gates`.
        m: from `mlstm_states`.
        M: from `mlstm_out`.
        rN: from `mlstm_bwd_pre`.
        dden: from `mlstm_bwd_pre`.
        dh: (B, S, NH, DV).
        dC_last: (B, NH, DK, DV), gradient of the state after the last position.
        dn_last: (B, NH, DK).
        chunk: as in the forward pass.

    Returns:
        A launch with the outputs dC and dn: of the state before every chunk, and after the last.

    Raises:
        ShapeError: shapes differ.
    """
    B, S, NH, DK = q.shape
    DV = dh.shape[-1]
    size = Sizes(B=B, S=S, NH=NH, L=chunk, DK=DK, DV=DV)
    given = {
        "q": q,
        "b": b,
        "m": m,
        "M": M,
        "rN": rN,
        "dden": dden,
        "dh": dh,
        "dC_last": dC_last,
        "dn_last": dn_last,
    }
    by_position, state = (B, NH, S), size.state_shape
    wanted = {
        "m": state[:-2],
        "dh": (B, S, NH, DV),
        "dC_last": (B, NH, DK, DV),
        "dn_last": (B, NH, DK),
    }
    check("mlstm_bwd_states", given, wanted | dict.fromkeys(("b", "M", "rN", "dden"), by_position))
    return Launch(
        kernel=STATES,
        inputs={**given, **size.scalars(ALL_SIZES)},
        outputs={"dC": state, "dn": state[:-1]},
        grid=(DV, DK, B * NH),
        group=(LANES, 8, 1),
    )


def mlstm_bwd_out(
    q: Any,
    k: Any,
    v: Any,
    i: Any,
    b: Any,
    C: Any,
    n: Any,
    m: Any,
    M: Any,
    rN: Any,
    dden: Any,
    dh: Any,
    dC: Any,
    dn: Any,
    *,
    chunk: int,
) -> Launch:
    """Differentiate every position.

    Args:
        q: (B, S, NH, DK) float32.
        k: as q.
        v: (B, S, NH, DV).
        i: (B, S, NH).
        b: from `mlstm_gates`.
        C: from `mlstm_states`.
        n: from `mlstm_states`.
        m: from `mlstm_states`.
        M: from `mlstm_out`.
        rN: from `mlstm_bwd_pre`.
        dden: from `mlstm_bwd_pre`.
        dh: (B, S, NH, DV).
        dC: from `mlstm_bwd_states`.
        dn: from `mlstm_bwd_states`.
        chunk: as in the forward pass.

    Returns:
        A launch with the outputs dq, dk, dv, di, shaped as q, k, v, i, and db (B, NH, S).

    Raises:
        ShapeError: shapes differ.
    """
    B, S, NH, DK = q.shape
    DV = v.shape[-1]
    size = Sizes(B=B, S=S, NH=NH, L=chunk, DK=DK, DV=DV)
    given = {
        "q": q,
        "k": k,
        "v": v,
        "i": i,
        "b": b,
        "C": C,
        "n": n,
        "m": m,
        "M": M,
        "rN": rN,
        "dden": dden,
        "dh": dh,
        "dC": dC,
        "dn": dn,
    }
    by_position, state = (B, NH, S), size.state_shape
    wanted = {
        "k": (B, S, NH, DK),
        "v": (B, S, NH, DV),
        "i": (B, S, NH),
        "C": state,
        "n": state[:-1],
        "m": state[:-2],
        "dh": (B, S, NH, DV),
        "dC": state,
        "dn": state[:-1],
    }
    check("mlstm_bwd_out", given, wanted | dict.fromkeys(("b", "M", "rN", "dden"), by_position))
    return Launch(
        kernel=OUT,
        inputs={**given, **size.scalars(ALL_SIZES)},
        outputs={
            "dq": (B, S, NH, DK),
            "dk": (B, S, NH, DK),
            "dv": (B, S, NH, DV),
            "di": (B, S, NH),
            "db": by_position,
        },
        # Whole groups: a simdgroup is a position.
        grid=(LANES, round_up(S, BACKWARD_ROWS), B * NH),
        group=(LANES, BACKWARD_ROWS, 1),
    )


def backward_launches(x: dict[str, Any], *, chunk: int, eps: float) -> Iterator[Launch]:
    """Yield the three launches; whoever runs one adds its outputs to x before the next."""
    yield mlstm_bwd_pre(x["den"], x["M"], x["h"], x["dh"], eps=eps)
    yield mlstm_bwd_states(*(x[argument.name] for argument in _STATES_ARRAYS), chunk=chunk)
    yield mlstm_bwd_out(*(x[argument.name] for argument in _OUT_ARRAYS), chunk=chunk)


def sample_gradients(rng: np.random.Generator, x: dict[str, Any]) -> None:
    """Add random gradients of the output and of the last state to x."""
    for name, like in (("dh", "v"), ("dC_last", "C0"), ("dn_last", "n0")):
        x[name] = rng.standard_normal(x[like].shape, np.float32)


def _sample(kernel: str) -> Callable[[np.random.Generator, int], Launch]:
    """A launch of a kernel on `sample_of_size`."""

    def sample(rng: np.random.Generator, n: int) -> Launch:
        x = sample_of_size(rng, n)
        sample_gradients(rng, x)
        run_reference(x, forward_launches(x, chunk=SAMPLE_CHUNK, eps=1e-6))
        launches = run_reference(x, backward_launches(x, chunk=SAMPLE_CHUNK, eps=1e-6))
        return next(launch for launch in launches if launch.kernel.name == kernel)

    return sample


_STATES_ARRAYS = arrays("q b m M rN dden dh dC_last dn_last")
_OUT_ARRAYS = arrays("q k v i b C n m M rN dden dh dC dn")

PRE = Kernel(
    name="mlstm_bwd_pre",
    header="mlstm_backward.h",
    source="""
        mlxhog::mlstm_bwd_pre(den, M, h, dh, rN, dden, dM,
                              mlxhog::MlstmShape{B, NH, S, 1, 0, DV}, eps,
                              thread_position_in_grid);
    """,
    inputs=(*arrays("den M h dh"), *PRE_SIZES, Argument(name="eps", scalar=True)),
    outputs=arrays("rN dden dM"),
    reference=reference.mlstm_bwd_pre,
    sample=_sample("mlstm_bwd_pre"),
    rtol=2e-5,
)

STATES = Kernel(
    name="mlstm_bwd_states",
    header="mlstm_backward.h",
    source="""
        mlxhog::mlstm_bwd_states(q, b, m, M, rN, dden, dh, dC_last, dn_last, dC, dn,
                                 mlxhog::MlstmShape{B, NH, S, L, DK, DV},
                                 thread_position_in_grid);
    """,
    inputs=(*_STATES_ARRAYS, *ALL_SIZES),
    outputs=arrays("dC dn"),
    reference=reference.mlstm_bwd_states,
    sample=_sample("mlstm_bwd_states"),
    rtol=2e-5,
)

OUT = Kernel(
    name="mlstm_bwd_out",
    header="mlstm_backward.h",
    source="""
        threadgroup float weights[mlxhog::kMlstmBackwardWeights];
        static_assert(sizeof(weights) <= 32768, "more than a chip has");
        mlxhog::mlstm_bwd_out(q, k, v, i, b, C, n, m, M, rN, dden, dh, dC, dn, dq, dk, dv, di, db,
                              mlxhog::MlstmShape{B, NH, S, L, DK, DV}, weights,
                              thread_position_in_grid, thread_position_in_threadgroup);
    """,
    inputs=(*_OUT_ARRAYS, *ALL_SIZES),
    outputs=arrays("dq dk dv di db"),
    reference=reference.mlstm_bwd_out,
    sample=_sample("mlstm_bwd_out"),
    lockstep=True,
    rtol=1e-4,
)

KERNELS = (PRE, STATES, OUT)
