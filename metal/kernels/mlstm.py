"""The mLSTM cell: three launches forward, `mlstm.h`, and four backward, `mlstm_backward.h`.

Forward they compute gates, states and outputs, backward denominators, states, scores and outputs,
these by products of tiles in threadgroup memory. Arrays keep the layout of the model, and a last
chunk may be shorter: nothing is transposed or padded.

Backward, the stabilizers m and M are constants. The gradient of M, on which h depends through eps,
is a separate output, dM; the gradients of the forget gates are outputs as those of their sums b in
each chunk. `models/ops/metal/cells.py` combines them.

Source: Beck et al. 2025, Tiled Flash Linear Attention, arXiv:2503.14376.
"""

from math import prod
from typing import Any

from mlxhog.errors import ShapeError
from mlxhog.metal.kernel import MetalKernel, Size
from mlxhog.metal.kernels.family import Family, Numbers

LANES = 32
STATE_ROWS = 4  # kMlstmStateRows in mlstm.h
OUT_ROWS = 8  # kMlstmOutRows
POSITIONS = 8  # of a threadgroup of mlstm_bwd_pre, a simdgroup each
TILE_ROWS, TILE_COLUMNS, TILE_SIMDGROUPS = 64, 32, 4  # kTileRows and the others in tiles.h
MAX_CHUNK = 64
"""Keys and scores of a longer chunk would not fit 32 KiB of threadgroup memory."""

_FORWARD = {
    "q": "B S NH DK", "k": "B S NH DK", "v": "B S NH DV", "h": "B S NH DV",
    "i": "B S NH", "f": "B S NH",  # pre-activations of the gates
    "starts": "B S int32", "since": "B NH S int32",  # of documents, see `mlstm_first`
    "b": "B NH S", "a": "B NH S",  # sums of log-forget-gates in a chunk; weights at its end
    "g": "B NH NC", "amax": "B NH NC",  # of every chunk: the last b, the largest a
    "C0": "B NH DK DV", "n0": "B NH DK", "m0": "B NH",  # the state before the first position
    "C": "B NH NB DK DV", "n": "B NH NB DK", "m": "B NH NB",  # around every chunk
    "den": "B NH S", "M": "B NH S",  # denominator and stabilizer of every position
}  # fmt: skip
_SHAPES = {
    **_FORWARD,
    **{f"d{name}": shape for name, shape in _FORWARD.items()},
    "dC_last": "B NH DK DV", "dn_last": "B NH DK",  # of the state after the last position
    "rN": "B NH S",  # 1 / N of every position
    "wN": "B NH S", "we": "B NH S", "y": "B NH S",  # weights of states in the gradient
    "X": "B NH S L", "A": "B NH S L",  # of every position and every key of its chunk
    "zq": "B NH S", "zk": "B NH S",  # sums over pairs, by position and by key
}  # fmt: skip
"""Shape of every array by its name; NC chunks have NB borders. dX is the gradient of X."""


def _derived(n: Numbers) -> dict[str, int]:
    """The number of chunks, of which the last may be shorter, and of their borders."""
    if not 1 <= n["L"] <= MAX_CHUNK:
        raise ShapeError(
            f"mLSTM kernels got chunks of {n['L']} positions and take 1 to {MAX_CHUNK}, "
            "whose keys fit threadgroup memory; choose a chunk in that range, "
            "which changes no result"
        )
    NC = -(-n["S"] // n["L"])
    shape = (n["B"], n["NH"], NC + 1, n.get("DK", 0), n.get("DV", 0))
    if prod(shape) >= 2**32:
        raise ShapeError(
            f"mLSTM kernels index with 32 bits, and the states of {NC + 1} chunk borders, "
            f"(B, NH, NC + 1, DK, DV) = {shape}, are too many elements; "
            "run fewer sequences at once"
        )
    return {"NC": NC, "NB": NC + 1}


MLSTM = Family(
    header="mlstm_backward.h",
    struct="MlstmShape{B, NH, S, L, DK, DV}",
    shapes=_SHAPES,
    derived=_derived,
)


def _groups(x: int, size: int) -> int:
    """Threads of whole threadgroups, so that every thread meets every barrier."""
    return -(-x // size) * size


_GRIDS: dict[str, Any] = {
    "mlstm_gates": lambda n: (n["L"], n["NC"], n["B"] * n["NH"]),
    "mlstm_states": lambda n: (n["DV"], -(-n["DK"] // STATE_ROWS), n["B"] * n["NH"]),
    "mlstm_out": lambda n: (
        _groups(n["DV"], LANES), _groups(n["L"], OUT_ROWS), n["B"] * n["NH"] * n["NC"],
    ),
    "mlstm_bwd_pre": lambda n: (LANES, _groups(n["S"], POSITIONS), n["B"] * n["NH"]),
    "mlstm_bwd_states": lambda n: (
        LANES * -(-n["DV"] // TILE_COLUMNS), TILE_SIMDGROUPS * -(-n["DK"] // TILE_ROWS),
        n["B"] * n["NH"],
    ),
    "mlstm_bwd_scores": lambda n: (LANES, TILE_SIMDGROUPS, n["B"] * n["NH"] * n["NC"]),
    "mlstm_bwd_out": lambda n: (2 * LANES, TILE_SIMDGROUPS, n["B"] * n["NH"] * n["NC"]),
}  # fmt: skip


def _kernel(
    name: str, inputs: str, outputs: str, rows: int, scalars: str = "", *, tiles: bool = False,
    rtol: float = 2e-5, **more: Any,
) -> MetalKernel:  # fmt: skip
    """Declare a kernel whose threadgroups have rows of lanes, maybe with shared memory."""

    def threadgroup(n: Numbers) -> Size:
        return (LANES, rows, 1) if rows else (n["L"], 1, 1)

    if tiles:
        more["at"] = "threadgroup_position_in_grid, thread_position_in_threadgroup"
        more.setdefault("memory", {"tiles": "mlxhog::kTileFloats"})
    how = {
        "grid": _GRIDS[name],
        "threadgroup": threadgroup,
        "rtol": rtol,
        "uses_barriers": True,
        **more,
    }
    return MLSTM.kernel(name, inputs, outputs, scalars, **how)


GATES = _kernel(
    "mlstm_gates", "i f starts", "b a g amax since", 0, header="mlstm.h", tiles=True,
    struct="MlstmShape{B, NH, S, L, 0, 0}",
    memory={"totals": "mlxhog::kMlstmSimdgroups", "peaks": "mlxhog::kMlstmSimdgroups"},
)  # fmt: skip
STATES = _kernel(
    "mlstm_states", "k v a g amax since C0 n0 m0", "C n m", 8, header="mlstm.h", uses_barriers=False
)
OUT = _kernel(
    "mlstm_out", "q k v b i since C n m", "h den M", OUT_ROWS, "eps:float32", header="mlstm.h",
    tiles=True, memory={"tile": "mlxhog::kMlstmOutTile"},
)  # fmt: skip
BWD_PRE = _kernel(
    "mlstm_bwd_pre", "i b since m den M h dh", "rN dden dM wN we y", POSITIONS, "eps:float32"
)
BWD_STATES = _kernel(
    "mlstm_bwd_states", "q b since m wN we dh dC_last dn_last", "dC dn", TILE_SIMDGROUPS, tiles=True
)
BWD_SCORES = _kernel(
    "mlstm_bwd_scores", "q k v i b since M rN dden dh", "X A zq zk", TILE_SIMDGROUPS, tiles=True,
    rtol=1e-4,
    memory={"tiles": "mlxhog::kTileFloats", "sums": "mlxhog::kMlstmScoreSums"},
)  # fmt: skip
BWD_OUT = _kernel(
    "mlstm_bwd_out", "q k v C n wN we y X A zq zk dh dC dn", "dq dk dv di db",
    TILE_SIMDGROUPS, tiles=True, rtol=1e-4,
    memory={"tiles": "mlxhog::kTileFloats", "sums": "mlxhog::kMlstmOutSums"},
)  # fmt: skip

FORWARD = (GATES, STATES, OUT)
BACKWARD = (BWD_PRE, BWD_STATES, BWD_SCORES, BWD_OUT)
KERNELS = (*FORWARD, *BACKWARD)
