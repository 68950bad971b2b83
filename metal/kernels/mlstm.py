"""The mLSTM cell: the launches forward, `mlstm.h`, and backward, `mlstm_backward.h`.

Forward they compute gates and weights, and then, segment by segment, the states of its chunks and
its outputs; backward denominators and scores, and then, segment by segment from the last, the
states anew, their gradients and the gradients of the inputs. So the matrix states of one segment
exist at a time, and between the passes only those between segments are kept (`segments`); that
costs the states' products a second time, and a copy of the segments' results into one array. Arrays
keep the layout of the model, and a last chunk may be shorter: nothing is transposed or padded.

Backward, the stabilizers m and M are constants. The gradient of M, on which h depends through eps,
is a separate output, dM; the gradients of the forget gates are outputs as those of their sums b in
each chunk. `models/ops/metal/cells.py` combines them.

Source: Beck et al. 2025, Tiled Flash Linear Attention, arXiv:2503.14376.
"""

from collections.abc import Callable
from dataclasses import replace
from math import isqrt, prod

from mlxhog.errors import ShapeError
from mlxhog.metal.kernel import MetalKernel, Size
from mlxhog.metal.kernels.family import Family, Numbers

LANES = 32
POSITIONS = 8  # of a threadgroup of mlstm_bwd_pre, a simdgroup each
TILE_ROWS, TILE_COLUMNS, TILE_SIMDGROUPS = 64, 32, 4  # kTileRows and the others in tiles.h
MAX_CHUNK = 64
"""The rows of a tile; scores of a longer chunk would not fit a thread's registers."""
MAX_SHORT_CHUNK = 8
"""Chunks of which every 32 columns of h have a threadgroup of their own, as in decoding."""

_FORWARD_SHAPES = {
    "q": "B S NH DK real", "k": "B S NH DK real",
    "v": "B S NH DV real", "h": "B S NH DV real",
    "i": "B S NH", "f": "B S NH",  # pre-activations of the gates
    "starts": "B S int32", "since": "B NH S int32",  # of documents, see `mlstm_first`
    "b": "B NH S", "a": "B NH S",  # sums of log-forget-gates in a chunk; weights at its end
    "g": "B NH NC", "amax": "B NH NC",  # of every chunk: the last b, the largest a
    "y": "B NH S", "decay": "B NH NC",  # weights of positions and of the state in the next state
    "m": "B NH NB",  # around every chunk
    "C0": "B NH DK DV", "n0": "B NH DK", "m0": "B NH",  # the state before a segment
    "C_end": "B NH DK DV", "n_end": "B NH DK",  # and after it
    "C": "B NH NS DK DV", "n": "B NH NS DK",  # before its chunks; dC and dn: after them
    "den": "B NH S", "M": "B NH S",  # denominator and stabilizer of every position
    "i_part": "B SS NH", "b_part": "B NH SS",  # of the SS positions of a segment
    "q_part": "B SS NH DK real", "k_part": "B SS NH DK real",
    "v_part": "B SS NH DV real", "h_part": "B SS NH DV real",
    "den_part": "B NH SS", "M_part": "B NH SS",
}  # fmt: skip
_SHAPES = {
    **_FORWARD_SHAPES,
    **{f"d{name}": shape for name, shape in _FORWARD_SHAPES.items()},
    "rN": "B NH S",  # 1 / N of every position
    "wN": "B NH S", "we": "B NH S",  # weights of states in the gradient
    "X": "B NH S L", "A": "B NH S L",  # of every position and every key of its chunk
    "zq": "B NH S", "zk": "B NH S",  # sums over pairs, by position and by key
    "dots": "B NH NS ND",  # parts of <C, dC> + n . dn
}  # fmt: skip
"""Shape of every array by its name; NC chunks have NB borders. dX is the gradient of X."""


def segments(S: int, chunk: int) -> list[dict[str, int]]:
    """Return the first chunk and the number of chunks of every segment of S positions.

    A segment of n of NC chunks keeps NC / n states in every layer from its forward pass to its
    backward pass, while the 2 n of the backward pass exist in one layer at a time. Their sum would
    be least at sqrt(NC / 2); the layers make it 2 sqrt(NC).
    """
    NC = -(-S // chunk)
    n = isqrt(4 * NC)
    return [{"FIRST": first, "NS": min(n, NC - first)} for first in range(0, NC, n)]


def _derived(n: Numbers) -> dict[str, int]:
    """The number of chunks, of which the last may be shorter, and of their borders."""
    if not 1 <= n["L"] <= MAX_CHUNK:
        raise ShapeError(
            f"mLSTM kernels got chunks of {n['L']} positions and take 1 to {MAX_CHUNK}, "
            "whose keys fit threadgroup memory; choose a chunk in that range, "
            "which changes no result"
        )
    NC, DK, DV = -(-n["S"] // n["L"]), n.get("DK", 0), n.get("DV", 0)
    first, NS = n.get("FIRST", 0), n.get("NS", 0)
    shape = (n["B"], n["NH"], NS, DK, DV)
    if prod(shape) >= 2**32:
        raise ShapeError(
            f"mLSTM kernels index with 32 bits, and the states of {NS} chunks, "
            f"(B, NH, NS, DK, DV) = {shape}, are too many elements; "
            "run fewer sequences at once"
        )
    return {
        "NC": NC,
        "NB": NC + 1,
        "SS": min(n["S"], (first + NS) * n["L"]) - first * n["L"],
        "ND": -(-DK // TILE_ROWS) * -(-DV // TILE_COLUMNS) * TILE_SIMDGROUPS,
        "W": TILE_COLUMNS if n["L"] <= MAX_SHORT_CHUNK else DV,
    }


MLSTM = Family(
    header="mlstm_backward.h",
    struct="MlstmShape{B, NH, S, L, DK, DV, FIRST, NS}",
    shapes=_SHAPES,
    derived=_derived,
)
_FORWARD = replace(MLSTM, header="mlstm.h")
_GATES = replace(_FORWARD, struct="MlstmShape{B, NH, S, L, 0, 0, 0, 0}")
_ALL_CHUNKS = replace(MLSTM, struct="MlstmShape{B, NH, S, L, DK, DV, 0, 0}")
_IN_THREADGROUP = "threadgroup_position_in_grid, thread_position_in_threadgroup"


def _matrices(n: Numbers) -> Size:
    """A threadgroup per tile of every head's matrix."""
    tiles = -(-n["DV"] // TILE_COLUMNS), -(-n["DK"] // TILE_ROWS)
    return (LANES * tiles[0], TILE_SIMDGROUPS * tiles[1], n["B"] * n["NH"])


def _tiled(
    family: Family, name: str, inputs: str, outputs: str, scalars: str = "", *,
    grid: Callable[[Numbers], Size], sums: str = "", rtol: float = 2e-5,
) -> MetalKernel:  # fmt: skip
    """Declare a kernel whose threadgroups multiply tiles; `sums` are floats that they share."""
    return family.kernel(
        name, inputs, outputs, scalars, grid=grid,
        threadgroup=lambda n: (LANES, TILE_SIMDGROUPS, 1), at=_IN_THREADGROUP,
        memory={"tiles": "mlxhog::kTileFloats"} | ({"sums": sums} if sums else {}),
        uses_barriers=True, rtol=rtol,
    )  # fmt: skip


GATES = _GATES.kernel(
    "mlstm_gates", "i f starts", "b a g amax since",
    grid=lambda n: (n["L"], n["NC"], n["B"] * n["NH"]), threadgroup=lambda n: (n["L"], 1, 1),
    at=_IN_THREADGROUP, uses_barriers=True, rtol=2e-5,
    memory={"totals": "mlxhog::kMlstmSimdgroups", "peaks": "mlxhog::kMlstmSimdgroups"},
)  # fmt: skip
WEIGHTS = _GATES.kernel(
    "mlstm_weights", "a g amax since m0", "y decay m",
    grid=lambda n: (n["L"], 1, n["B"] * n["NH"]), threadgroup=lambda n: (n["L"], 1, 1), rtol=2e-5,
)  # fmt: skip
STATES = _tiled(_FORWARD, "mlstm_states", "k v y decay C0 n0", "C n C_end n_end", grid=_matrices)
OUT = _tiled(
    _FORWARD, "mlstm_out", "q k v b i since m C n", "h_part den_part M_part", "W eps:float32",
    grid=lambda n: (
        LANES * -(-n["DV"] // n["W"]), TILE_SIMDGROUPS, n["B"] * n["NH"] * n["NS"],
    ),
    sums="mlxhog::kMlstmOutSums",
)  # fmt: skip
BWD_PRE = _ALL_CHUNKS.kernel(
    "mlstm_bwd_pre", "b since m den M h dh", "rN dden dM wN we", "eps:float32",
    grid=lambda n: (
        LANES, -(-n["S"] // POSITIONS) * POSITIONS, n["B"] * n["NH"],  # whole threadgroups
    ),
    threadgroup=lambda n: (LANES, POSITIONS, 1), uses_barriers=True, rtol=2e-5,
)  # fmt: skip
BWD_SCORES = _tiled(
    _ALL_CHUNKS, "mlstm_bwd_scores", "q k v i b since M rN dden dh", "X A zq zk",
    grid=lambda n: (LANES, TILE_SIMDGROUPS, n["B"] * n["NH"] * n["NC"]),
    sums="mlxhog::kMlstmScoreSums", rtol=1e-4,
)  # fmt: skip
BWD_STATES = _tiled(
    MLSTM, "mlstm_bwd_states", "q decay wN we dh C n dC_end dn_end", "dC dn dC0 dn0 dots",
    grid=_matrices,
)  # fmt: skip
BWD_OUT = _tiled(
    MLSTM, "mlstm_bwd_out", "q k v C n wN we y X A zq zk dh dC dn",
    "dq_part dk_part dv_part di_part db_part",
    grid=lambda n: (2 * LANES, TILE_SIMDGROUPS, n["B"] * n["NH"] * n["NS"]),
    sums="mlxhog::kMlstmRowSums", rtol=1e-4,
)  # fmt: skip

KERNELS = (GATES, WEIGHTS, STATES, OUT, BWD_PRE, BWD_SCORES, BWD_STATES, BWD_OUT)
