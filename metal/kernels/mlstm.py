"""The mLSTM cell: three launches forward, `mlstm.h`, and four backward, `mlstm_backward.h`.

Forward they compute gates, states and outputs, backward denominators, states, scores and outputs,
these by products of tiles in threadgroup memory. Arrays keep the layout of the model, so that
nothing is transposed; a last chunk that is shorter is handled in the kernels, so that nothing is
padded. `SHAPES` has all that the kernels read and write; a launch whose arrays have other shapes
raises `ShapeError`.

Backward, the stabilisers m and M are constants. The gradient of M, on which h depends through eps,
is a separate output, dM; the gradients of the forget gates are outputs as those of their sums b in
each chunk. `models/ops/metal/cells.py` combines them.

Source: Beck et al. 2025, Tiled Flash Linear Attention, arXiv:2503.14376.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mlxhog.errors import ShapeError
from mlxhog.metal.kernel import Kernel, Launch
from mlxhog.metal.kernels.arguments import arrays, declare, floats, launch

LANES = 32
STATE_ROWS = 4  # kMlstmStateRows in mlstm.h
OUT_ROWS = 8  # kMlstmOutRows
POSITIONS = 8  # of a group of mlstm_bwd_pre, a simdgroup each
TILE_ROWS, TILE_COLUMNS, TILE_SIMDGROUPS = 64, 32, 4  # kTileRows and the others in tiles.h
LONGEST_CHUNK = 64
"""Keys and scores of a longer chunk would not fit 32 KiB of threadgroup memory."""

Arrays = Mapping[str, Any]
"""Arrays by name; those that a launch does not take are ignored."""

_FORWARD = {
    "q": "B S NH DK", "k": "B S NH DK", "v": "B S NH DV", "h": "B S NH DV",
    "i": "B S NH", "f": "B S NH",  # pre-activations of the gates
    "b": "B NH S", "a": "B NH S",  # sums of log-forget-gates in a chunk; weights at its end
    "g": "B NH NC", "amax": "B NH NC",  # of every chunk: the last b, the largest a
    "C0": "B NH DK DV", "n0": "B NH DK", "m0": "B NH",  # the state before the first position
    "C": "B NH NB DK DV", "n": "B NH NB DK", "m": "B NH NB",  # around every chunk
    "den": "B NH S", "M": "B NH S",  # denominator and stabiliser of every position
}  # fmt: skip
SHAPES = {
    **_FORWARD,
    **{f"d{name}": shape for name, shape in _FORWARD.items()},
    "dC_last": "B NH DK DV", "dn_last": "B NH DK",  # of the state after the last position
    "rN": "B NH S",  # 1 / N of every position
    "wN": "B NH S", "we": "B NH S", "y": "B NH S",  # weights of states in the gradient
    "X": "B NH S L", "A": "B NH S L",  # of every position and every key of its chunk
    "zq": "B NH S", "zk": "B NH S",  # sums over pairs, by position and by key
}  # fmt: skip
"""Shape of every array by its name, float32; NC chunks have NB borders. dX is the gradient of X."""


@dataclass(frozen=True, kw_only=True)
class MLSTMSizes:
    """B sequences of S positions in chunks of L, NH heads of widths DK and DV."""

    B: int
    S: int
    NH: int
    L: int
    DK: int = 0
    DV: int = 0

    def __post_init__(self) -> None:
        """Refuse sizes that the kernels cannot run."""
        if not 1 <= self.L <= LONGEST_CHUNK:
            raise ShapeError(
                f"mLSTM kernels got chunks of {self.L} positions and take 1 to {LONGEST_CHUNK}, "
                "whose keys fit threadgroup memory; choose a chunk in that range, "
                "which changes no result"
            )
        shape = (self.B, self.NH, self.NC + 1, self.DK, self.DV)
        if self.B * self.NH * (self.NC + 1) * self.DK * self.DV >= 2**32:
            raise ShapeError(
                f"mLSTM kernels index with 32 bits, and the states of {self.NC + 1} chunk borders, "
                f"(B, NH, NC + 1, DK, DV) = {shape}, are too many elements; "
                "run fewer sequences at once"
            )

    @property
    def NC(self) -> int:
        """Number of chunks; the last may be shorter."""
        return -(-self.S // self.L)

    def launch(
        self,
        kernel: Kernel,
        x: Arrays,
        grid: tuple[int, int, int],
        group: tuple[int, int, int],
        **more: float,
    ) -> Launch:
        """Launch a kernel on arrays of these sizes.

        Raises:
            ShapeError: shapes differ.
        """
        numbers = {**asdict(self), "NC": self.NC, "NB": self.NC + 1, **more}
        return launch(kernel, x, SHAPES, numbers, grid=grid, group=group)


def _sizes(keys: Any, values: Any, chunk: int) -> MLSTMSizes:
    B, S, NH, DK = keys.shape
    return MLSTMSizes(B=B, S=S, NH=NH, L=chunk, DK=DK, DV=values.shape[-1])


def mlstm_gates(x: Arrays, *, chunk: int) -> Launch:
    """Sum log-forget-gates inside every chunk: from i and f to b, a, g and amax.

    Raises:
        ShapeError: shapes differ, or the chunk is not of 1 to 64 positions.
    """
    B, S, NH = x["i"].shape
    s = MLSTMSizes(B=B, S=S, NH=NH, L=chunk)
    return s.launch(GATES, x, (chunk, s.NC, B * NH), (chunk, 1, 1))


def mlstm_states(x: Arrays, *, chunk: int) -> Launch:
    """Carry the state from chunk to chunk: C, n and m.

    Raises:
        ShapeError: shapes differ, or the state is too large.
    """
    s = _sizes(x["k"], x["v"], chunk)
    return s.launch(STATES, x, (s.DV, -(-s.DK // STATE_ROWS), s.B * s.NH), (LANES, 8, 1))


def mlstm_out(x: Arrays, *, chunk: int, eps: float) -> Launch:
    """Compute the output h of every position, its denominator den and its stabiliser M."""
    s = _sizes(x["q"], x["v"], chunk)
    # Whole groups: a simdgroup is a position, and every thread meets every barrier.
    grid = (_round_up(s.DV, LANES), _round_up(chunk, OUT_ROWS), s.B * s.NH * s.NC)
    return s.launch(OUT, x, grid, (LANES, OUT_ROWS, 1), eps=eps)


def mlstm_bwd_pre(x: Arrays, *, chunk: int, eps: float) -> Launch:
    """Differentiate the denominators: rN, dden, dM, and the weights wN, we and y of the states."""
    s = _sizes(x["q"], x["h"], chunk)
    # Whole groups: a simdgroup is a position.
    grid = (LANES, _round_up(s.S, POSITIONS), s.B * s.NH)
    return s.launch(BWD_PRE, x, grid, (LANES, POSITIONS, 1), eps=eps)


def mlstm_bwd_states(x: Arrays, *, chunk: int) -> Launch:
    """Carry the state's gradient from the last chunk to the first: dC and dn."""
    s = _sizes(x["q"], x["dh"], chunk)
    return _tiled(s, BWD_STATES, x, -(-s.DV // TILE_COLUMNS), -(-s.DK // TILE_ROWS), s.B * s.NH)


def mlstm_bwd_scores(x: Arrays, *, chunk: int) -> Launch:
    """Differentiate the product of every query with every key of its chunk: X, A, zq and zk."""
    s = _sizes(x["q"], x["v"], chunk)
    return _tiled(s, BWD_SCORES, x, 1, 1, s.B * s.NH * s.NC)


def mlstm_bwd_out(x: Arrays, *, chunk: int) -> Launch:
    """Differentiate every position: dq, dk, dv, di and db."""
    s = _sizes(x["q"], x["v"], chunk)
    return _tiled(s, BWD_OUT, x, 2, 1, s.B * s.NH * s.NC)


def _tiled(s: MLSTMSizes, kernel: Kernel, x: Arrays, *groups: int) -> Launch:
    """Launch this number of groups along x, y and z."""
    x_groups, y_groups, z_groups = groups
    grid = (LANES * x_groups, TILE_SIMDGROUPS * y_groups, z_groups)
    return s.launch(kernel, x, grid, (LANES, TILE_SIMDGROUPS, 1))


def _round_up(x: int, multiple: int) -> int:
    """Return the next multiple, so that lockstep groups are whole."""
    return -(-x // multiple) * multiple


def forward_launches(x: Arrays, *, chunk: int, eps: float) -> Iterator[Launch]:
    """Yield the three launches; the caller adds the outputs of each to x before the next."""
    yield mlstm_gates(x, chunk=chunk)
    yield mlstm_states(x, chunk=chunk)
    yield mlstm_out(x, chunk=chunk, eps=eps)


def backward_launches(x: Arrays, *, chunk: int, eps: float) -> Iterator[Launch]:
    """Yield the four launches; the caller adds the outputs of each to x before the next."""
    yield mlstm_bwd_pre(x, chunk=chunk, eps=eps)
    yield mlstm_bwd_states(x, chunk=chunk)
    yield mlstm_bwd_scores(x, chunk=chunk)
    yield mlstm_bwd_out(x, chunk=chunk)


def sample_arrays(rng: np.random.Generator, names: Iterable[str], **letters: int) -> dict[str, Any]:
    """Random arrays by name, of the shapes in `SHAPES`."""
    return {
        name: rng.standard_normal([letters[word] for word in SHAPES[name].split()], np.float32)
        for name in names
    }


SAMPLE_CHUNK = 64
"""Two simdgroups share a chunk, so that barriers between them matter."""


def _sample(kernel: str) -> Callable[[np.random.Generator, int], Launch]:
    """A launch of a kernel on two sequences of two heads, v of about n elements.

    At least one chunk of `SAMPLE_CHUNK` is whole and another is not; keys take two strips.
    """

    def sample(rng: np.random.Generator, n: int) -> Launch:
        s = MLSTMSizes(B=2, S=max(100, n // 48), NH=2, L=SAMPLE_CHUNK, DK=40, DV=12)
        x = sample_arrays(rng, SHAPES, **asdict(s), NC=s.NC, NB=s.NC + 1)
        how: dict[str, Any] = {"chunk": SAMPLE_CHUNK, "eps": 1e-6}
        launches = (*forward_launches(x, **how), *backward_launches(x, **how))
        return next(one for one in launches if one.kernel.name == kernel)

    return sample


def _kernel(
    name: str,
    inputs: str,
    outputs: str,
    *,
    header: str = "mlstm_backward.h",
    shape: str = "B, NH, S, L, DK, DV",
    tiles: bool = False,
    eps: bool = False,
    rtol: float = 2e-5,
    **more: Any,
) -> Kernel:
    """Declare a kernel of these arrays, which has tiles in threadgroup memory or not."""
    if tiles:
        more["at"] = "threadgroup_position_in_grid, thread_position_in_threadgroup"
        more.setdefault("memory", {"tiles": "mlxhog::kTileFloats"})
    return declare(
        name,
        header,
        arrays(inputs),
        arrays(outputs),
        floats("eps") if eps else (),
        sample=_sample(name),
        shape=f"MlstmShape{{{shape}}}",
        rtol=rtol,
        **{"lockstep": True, **more},
    )


GATES = _kernel(
    "mlstm_gates", "i f", "b a g amax", header="mlstm.h", shape="B, NH, S, L, 0, 0", tiles=True,
    memory={"totals": "mlxhog::kMlstmSimdgroups", "peaks": "mlxhog::kMlstmSimdgroups"},
)  # fmt: skip
STATES = _kernel("mlstm_states", "k v a g amax C0 n0 m0", "C n m", header="mlstm.h", lockstep=False)
OUT = _kernel(
    "mlstm_out", "q k v b i C n m", "h den M", header="mlstm.h", eps=True, tiles=True,
    memory={"tile": "mlxhog::kMlstmOutTile"},
)  # fmt: skip
BWD_PRE = _kernel("mlstm_bwd_pre", "i b m den M h dh", "rN dden dM wN we y", eps=True)
BWD_STATES = _kernel("mlstm_bwd_states", "q b m wN we dh dC_last dn_last", "dC dn", tiles=True)
BWD_SCORES = _kernel(
    "mlstm_bwd_scores", "q k v i b M rN dden dh", "X A zq zk", tiles=True, rtol=1e-4,
    memory={"tiles": "mlxhog::kTileFloats", "sums": "mlxhog::kMlstmScoreSums"},
)  # fmt: skip
BWD_OUT = _kernel(
    "mlstm_bwd_out", "q k v C n wN we y X A zq zk dh dC dn", "dq dk dv di db", tiles=True,
    rtol=1e-4, memory={"tiles": "mlxhog::kTileFloats", "sums": "mlxhog::kMlstmOutSums"},
)  # fmt: skip

KERNELS = (GATES, STATES, OUT, BWD_PRE, BWD_STATES, BWD_SCORES, BWD_OUT)
