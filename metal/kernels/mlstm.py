"""The mLSTM cell's forward pass in three launches: gates, states, outputs (`mlstm.h`).

Arrays keep the layout of the model, q, k (B, S, NH, DK), v, h (B, S, NH, DV), i, f (B, S, NH), so
that nothing is transposed; a last chunk that is shorter is handled in the kernels, so that nothing
is padded. What the kernels tell each other: b, a, den, M (B, NH, S), g, amax (B, NH, NC), and the
states before every chunk and after the last, C (B, NH, NC + 1, DK, DV), n (B, NH, NC + 1, DK) and
m (B, NH, NC + 1).

Source: Beck et al. 2025, Tiled Flash Linear Attention, arXiv:2503.14376.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from mlxhog.metal.kernel import Argument, Kernel, Launch
from mlxhog.metal.kernels import mlstm_reference
from mlxhog.metal.kernels.arguments import arrays, check
from mlxhog.metal.kernels.mlstm_shape import ALL_SIZES, GATE_SIZES, Sizes, round_up

LANES = 32
STATE_ROWS = 4  # kMlstmStateRows in mlstm.h
OUT_ROWS = 8  # kMlstmOutRows


def mlstm_gates(i: Any, f: Any, *, chunk: int) -> Launch:
    """Sum log-forget-gates inside every chunk.

    Args:
        i: (B, S, NH) float32, input-gate pre-activations.
        f: as i, of the forget gate.
        chunk: positions of a chunk, 1 to 64.

    Returns:
        A launch with the outputs b, a, g and amax.

    Raises:
        ShapeError: shapes differ, or the chunk is too long.
    """
    B, S, NH = i.shape
    size = Sizes(B=B, S=S, NH=NH, L=chunk)
    check("mlstm_gates", {"f": f}, {"f": (B, S, NH)})
    by_position, by_chunk = (B, NH, S), (B, NH, size.NC)
    return Launch(
        kernel=GATES,
        inputs={"i": i, "f": f, **size.scalars(GATE_SIZES)},
        outputs={"b": by_position, "a": by_position, "g": by_chunk, "amax": by_chunk},
        grid=(chunk, size.NC, B * NH),
        group=(chunk, 1, 1),
    )


def mlstm_states(
    k: Any, v: Any, a: Any, g: Any, amax: Any, C0: Any, n0: Any, m0: Any, *, chunk: int
) -> Launch:
    """Carry the state from chunk to chunk.

    Args:
        k: (B, S, NH, DK) float32.
        v: (B, S, NH, DV) float32.
        a: from `mlstm_gates`.
        g: from `mlstm_gates`.
        amax: from `mlstm_gates`.
        C0: (B, NH, DK, DV), the state before the first position.
        n0: (B, NH, DK).
        m0: (B, NH).
        chunk: as in `mlstm_gates`.

    Returns:
        A launch with the outputs C, n and m.

    Raises:
        ShapeError: shapes differ, or the state is too large.
    """
    B, S, NH, DK = k.shape
    DV = v.shape[-1]
    size = Sizes(B=B, S=S, NH=NH, L=chunk, DK=DK, DV=DV)
    given = {"k": k, "v": v, "a": a, "g": g, "amax": amax, "C0": C0, "n0": n0, "m0": m0}
    by_chunk = (B, NH, size.NC)
    check(
        "mlstm_states",
        given,
        {
            "v": (B, S, NH, DV),
            "a": (B, NH, S),
            "g": by_chunk,
            "amax": by_chunk,
            "C0": (B, NH, DK, DV),
            "n0": (B, NH, DK),
            "m0": (B, NH),
        },
    )
    C = size.state_shape
    return Launch(
        kernel=STATES,
        inputs={**given, **size.scalars(ALL_SIZES)},
        outputs={"C": C, "n": C[:-1], "m": C[:-2]},
        grid=(DV, -(-DK // STATE_ROWS), B * NH),
        group=(LANES, 8, 1),
    )


def mlstm_out(
    q: Any,
    k: Any,
    v: Any,
    b: Any,
    i: Any,
    C: Any,
    n: Any,
    m: Any,
    *,
    chunk: int,
    eps: float,
) -> Launch:
    """Compute the output of every position.

    Args:
        q: (B, S, NH, DK) float32.
        k: as q.
        v: (B, S, NH, DV) float32.
        b: from `mlstm_gates`.
        i: (B, S, NH), as given to `mlstm_gates`.
        C: from `mlstm_states`.
        n: from `mlstm_states`.
        m: from `mlstm_states`.
        chunk: as in `mlstm_gates`.
        eps: added to the denominator.

    Returns:
        A launch with the outputs h (B, S, NH, DV), den and M (B, NH, S).

    Raises:
        ShapeError: shapes differ.
    """
    B, S, NH, DK = q.shape
    DV = v.shape[-1]
    size = Sizes(B=B, S=S, NH=NH, L=chunk, DK=DK, DV=DV)
    given = {"q": q, "k": k, "v": v, "b": b, "i": i, "C": C, "n": n, "m": m}
    state = size.state_shape
    check(
        "mlstm_out",
        given,
        {
            "k": (B, S, NH, DK),
            "v": (B, S, NH, DV),
            "b": (B, NH, S),
            "i": (B, S, NH),
            "C": state,
            "n": state[:-1],
            "m": state[:-2],
        },
    )
    return Launch(
        kernel=OUT,
        inputs={**given, **size.scalars(ALL_SIZES), "eps": eps},
        outputs={"h": (B, S, NH, DV), "den": (B, NH, S), "M": (B, NH, S)},
        # Whole groups: a simdgroup is a position, and every thread meets every barrier.
        grid=(round_up(DV, LANES), round_up(chunk, OUT_ROWS), B * NH * size.NC),
        group=(LANES, OUT_ROWS, 1),
    )


def sample_cell(
    rng: np.random.Generator, *, B: int, S: int, NH: int, DK: int, DV: int
) -> dict[str, Any]:
    """Random inputs of the cell, with a state to start from."""
    shapes = {
        "q": (B, S, NH, DK),
        "k": (B, S, NH, DK),
        "v": (B, S, NH, DV),
        "i": (B, S, NH),
        "f": (B, S, NH),
        "C0": (B, NH, DK, DV),
        "n0": (B, NH, DK),
        "m0": (B, NH),
    }
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def forward_launches(x: dict[str, Any], *, chunk: int, eps: float) -> Iterator[Launch]:
    """Yield the three launches; whoever runs one adds its outputs to x before the next."""
    yield mlstm_gates(x["i"], x["f"], chunk=chunk)
    states = ("k", "v", "a", "g", "amax", "C0", "n0", "m0")
    yield mlstm_states(*(x[name] for name in states), chunk=chunk)
    out = ("q", "k", "v", "b", "i", "C", "n", "m")
    yield mlstm_out(*(x[name] for name in out), chunk=chunk, eps=eps)


def run_reference(x: dict[str, Any], launches: Iterator[Launch]) -> list[Launch]:
    """Run launches in NumPy, add their outputs to x, and return them."""
    done = []
    for launch in launches:
        outputs = {name: np.zeros(shape, np.float32) for name, shape in launch.outputs.items()}
        launch.kernel.reference(**launch.inputs, **outputs)
        x.update(outputs)
        done.append(launch)
    return done


SAMPLE_CHUNK = 64
"""Two simdgroups share a chunk, so that barriers between them matter."""


def sample_of_size(rng: np.random.Generator, n: int) -> dict[str, Any]:
    """Random inputs of two sequences of two heads, v of about n elements.

    At least one chunk of `SAMPLE_CHUNK` is whole and another is not; keys take two strips.
    """
    return sample_cell(rng, B=2, S=max(100, n // 48), NH=2, DK=40, DV=12)


def _sample(kernel: str) -> Callable[[np.random.Generator, int], Launch]:
    """A launch of a kernel on `sample_of_size`."""

    def sample(rng: np.random.Generator, n: int) -> Launch:
        x = sample_of_size(rng, n)
        launches = run_reference(x, forward_launches(x, chunk=SAMPLE_CHUNK, eps=1e-6))
        return next(launch for launch in launches if launch.kernel.name == kernel)

    return sample


GATES = Kernel(
    name="mlstm_gates",
    header="mlstm.h",
    source="""
        threadgroup float totals[mlxhog::kMlstmSimdgroups];
        threadgroup float peaks[mlxhog::kMlstmSimdgroups];
        static_assert(sizeof(totals) + sizeof(peaks) <= 32768, "more than a chip has");
        mlxhog::mlstm_gates(i, f, b, a, g, amax, mlxhog::MlstmShape{B, NH, S, L, 0, 0}, totals,
                            peaks, threadgroup_position_in_grid, thread_position_in_threadgroup);
    """,
    inputs=(*arrays("i f"), *GATE_SIZES),
    outputs=arrays("b a g amax"),
    reference=mlstm_reference.mlstm_gates,
    sample=_sample("mlstm_gates"),
    lockstep=True,
    rtol=2e-5,
)

STATES = Kernel(
    name="mlstm_states",
    header="mlstm.h",
    source="""
        mlxhog::mlstm_states(k, v, a, g, amax, C0, n0, m0, C, n, m,
                             mlxhog::MlstmShape{B, NH, S, L, DK, DV}, thread_position_in_grid);
    """,
    inputs=(*arrays("k v a g amax C0 n0 m0"), *ALL_SIZES),
    outputs=arrays("C n m"),
    reference=mlstm_reference.mlstm_states,
    sample=_sample("mlstm_states"),
    rtol=2e-5,
)

OUT = Kernel(
    name="mlstm_out",
    header="mlstm.h",
    source="""
        threadgroup float tile[mlxhog::kMlstmOutTile];
        static_assert(sizeof(tile) <= 32768, "more threadgroup memory than a chip has");
        mlxhog::mlstm_out(q, k, v, b, i, C, n, m, h, den, M,
                          mlxhog::MlstmShape{B, NH, S, L, DK, DV}, eps, tile,
                          threadgroup_position_in_grid, thread_position_in_threadgroup);
    """,
    inputs=(
        *arrays("q k v b i C n m"),
        *ALL_SIZES,
        Argument(name="eps", scalar=True),
    ),
    outputs=arrays("h den M"),
    reference=mlstm_reference.mlstm_out,
    sample=_sample("mlstm_out"),
    lockstep=True,
    rtol=2e-5,
)

KERNELS = (GATES, STATES, OUT)
