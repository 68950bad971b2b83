"""The ops in MLX with the cells as Metal kernels; float32.

`kernels.py` says what each op promises, `reference/ops_mlx.py` has those that MLX itself does well.
On the engine `mlx` a cell is as lazy as any op. An emulated one evaluates its inputs when it is
called, so keep that out of `mx.compile`.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import mlx.core as mx
from mlx.core import array

from mlxhog.metal.engine import Engine
from mlxhog.models.ops import arrays_mlx
from mlxhog.models.ops.metal import conv_mlx as metal_conv_mlx
from mlxhog.models.ops.metal import mlstm as metal_mlstm
from mlxhog.models.ops.metal import slstm_mlx as metal_slstm_mlx
from mlxhog.models.ops.metal.call_mlx import enter, leave
from mlxhog.models.ops.reference import ops_mlx as reference_mlx


class MetalOps:
    """The ops on one engine: `mlx` takes MLX's arrays as they are, the others NumPy arrays."""

    xp = arrays_mlx
    rms_norm = staticmethod(reference_mlx.rms_norm)
    layer_norm = staticmethod(reference_mlx.layer_norm)
    head_norm = staticmethod(reference_mlx.head_norm)
    linears = staticmethod(reference_mlx.linears)
    block_diagonal = staticmethod(reference_mlx.block_diagonal)
    activate = staticmethod(reference_mlx.activate)
    glu = staticmethod(reference_mlx.glu)
    swiglu = staticmethod(reference_mlx.swiglu)
    soft_cap = staticmethod(reference_mlx.soft_cap)
    rope = staticmethod(reference_mlx.rope)
    attention = staticmethod(reference_mlx.attention)
    decay_cell = staticmethod(reference_mlx.decay_cell)
    delta_cell = staticmethod(reference_mlx.delta_cell)
    selective_scan = staticmethod(reference_mlx.selective_scan)
    long_conv = staticmethod(reference_mlx.long_conv)
    head_norm_gate = staticmethod(reference_mlx.head_norm_gate)
    head_norm_skip_gate = staticmethod(reference_mlx.head_norm_skip_gate)
    capped_cross_entropy = staticmethod(reference_mlx.capped_cross_entropy)

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._cell = lru_cache(partial(_mlstm_cell, engine))
        self._slstm = metal_slstm_mlx.on_engine(engine)

    def causal_conv(
        self,
        x: array,
        w: array,
        b: array,
        *,
        state: array | None = None,
        starts: array | None = None,
        silu: bool,
    ) -> tuple[array, array]:
        """Convolve every channel of x (B, S, C) with its own K taps, w (C, 1, K)."""
        return metal_conv_mlx.causal_conv(self.engine, x, w, b, state, starts, silu)

    def mlstm_cell(
        self,
        q: array,
        k: array,
        v: array,
        i: array,
        f: array,
        *,
        chunk_size: int,
        eps: float,
        state: Sequence[array] | None = None,
    ) -> tuple[array, tuple[array, array, array]]:
        """Run the cell over (B, S, NH, ...), any S, from `state` (C, n, m) or from zeros."""
        q, k, v, i, f = (x.astype(mx.float32) for x in (q, k, v, i, f))
        B, S, NH, DK = q.shape
        if state is None:
            C = mx.zeros((B, NH, DK, v.shape[-1]))
            state = (C, mx.zeros((B, NH, DK)), mx.zeros((B, NH)))
        chunk = metal_mlstm.chunk_of(chunk_size, S)
        h, C, n, m, *_ = self._cell(chunk, eps)(q, k, v, i, f, *state)
        return h, (C[:, :, -1], n[:, :, -1], m[:, :, -1])

    def slstm_cell(
        self,
        i: array,
        f: array,
        z: array,
        o: array,
        R: array,
        b: array,
        *,
        state: Sequence[array] | None = None,
        starts: array | None = None,
    ) -> tuple[array, tuple[array, array, array, array]]:
        """Run the cell over (B, S, NH, DH), any S, from `state` (h, c, n, m) or from zeros."""
        return metal_slstm_mlx.slstm_cell(self._slstm, i, f, z, o, R, b, state, starts)


def _mlstm_cell(engine: Engine, chunk: int, eps: float) -> Callable[..., Any]:
    """`INPUTS` -> `RESULTS` of `mlstm.py`; h and the last state have a gradient."""

    def forward(*inputs: array) -> tuple[array, ...]:
        given = dict(zip(metal_mlstm.INPUTS, enter(engine, inputs), strict=True))
        return leave(engine, metal_mlstm.forward(engine, given, chunk=chunk, eps=eps))

    def backward(primals: Any, cotangents: Any, results: Any) -> Any:
        q, k, v, i, f, *_ = primals
        _, C, n, m, _, _, M = results
        dh, dC, dn, dm, *_ = cotangents
        names = ("q", "k", "v", "i", *metal_mlstm.RESULTS, "dh", "dC_last", "dn_last")
        arrays = enter(engine, (q, k, v, i, *results, dh, dC[:, :, -1], dn[:, :, -1]))
        saved = dict(zip(names, arrays, strict=True))
        found = metal_mlstm.backward(engine, saved, chunk=chunk, eps=eps)
        dq, dk, dv, di, db, dC, dn, dM = leave(engine, found)
        states = (C * dC).sum((-2, -1)) + (n * dn).sum(-1)  # (B, NH, NC + 1)
        dM = dM.at[..., -1].add(dm[..., -1] - states[..., -1])
        lf = -mx.logaddexp(-f, 0).swapaxes(1, 2)
        di_M, dlf_M, dm = _through_stabilisers(i.swapaxes(1, 2), lf, m[..., 0], M, dM)
        dlf = _through_sums(db, states[..., 1:], chunk) + dlf_M
        df = mx.sigmoid(-f) * dlf.swapaxes(1, 2)
        di = di + di_M.swapaxes(1, 2)
        return dq, dk, dv, di, df, dC[:, :, 0], dn[:, :, 0], dm + states[..., 0]

    function = mx.custom_function(forward)
    function.vjp(backward)
    result: Callable[..., Any] = function
    return result


def _through_sums(db: array, at_end: array, chunk: int) -> array:
    """Gradient of logsig(f) (B, NH, S): of all sums b from there to the end of the chunk."""
    B, NH, S = db.shape
    db = mx.pad(db, [(0, 0), (0, 0), (0, -S % chunk)]).reshape(B, NH, -1, chunk)
    later = mx.cumsum(db, -1, reverse=True) + at_end[..., None]
    return later.flatten(-2)[..., :S]


def _through_stabilisers(
    i: array, lf: array, m0: array, M: array, dM: array
) -> tuple[array, array, array]:
    """Gradients of i, lf and m0 through M_t = max(lf_t + M_t-1, i_t); all (B, NH, S), m0 (B, NH).

    From a position dM goes back through lf to the one where i was larger, or else to m0.
    """
    S = i.shape[-1]
    opened = i >= lf + mx.concatenate([m0[..., None], M[..., :-1]], -1)
    position = mx.where(opened, mx.arange(S), S)
    next_opened = _pad(mx.cummin(position, -1, reverse=True)[..., 1:], S)
    later = _pad(mx.cumsum(dM, -1, reverse=True), 0)
    dM = later[..., :-1] - mx.take_along_axis(later, next_opened, -1)
    dlf = mx.where(opened, 0.0, dM)
    return mx.where(opened, dM, 0.0), dlf, dlf[..., 0]


def _pad(x: array, value: int) -> array:
    """One more entry on the last axis."""
    return mx.pad(x, [(0, 0), (0, 0), (0, 1)], constant_values=value)
