"""The operators in MLX with the cells and the convolution as Metal kernels; float32.

`kernels.py` says what each operator promises; the others are the plain ones of
`reference/ops_mlx.py`, which MLX itself does well. On the engine `mlx` a cell is as lazy as any
operator. An emulated one evaluates its inputs when it is called, so keep that out of `mx.compile`.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.core import array

from mlxhog.metal.engine import Engine
from mlxhog.models.ops.metal import launches
from mlxhog.models.ops.reference import ops_mlx as reference_mlx
from mlxhog.models.ops.reference.ops_mlx import last_inputs, positions_back


class MetalOps:
    """The operators on one engine: `mlx` takes MLX's arrays as they are, others NumPy arrays."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._mlstm = lru_cache(partial(_mlstm, engine))
        self._slstm = _slstm(engine)

    def __getattr__(self, name: str) -> Any:
        """Return the plain operator: what is not here has no Metal kernel."""
        return getattr(reference_mlx, name)

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
        B, S, K = *x.shape[:2], w.shape[-1]
        inputs = x.astype(mx.float32)
        if state is not None:
            inputs = mx.concatenate([state.astype(mx.float32), inputs], 1)
        back = mx.full((B, S), K - 1, mx.int32) if starts is None else positions_back(starts, K)
        y: array = _conv(self.engine, silu)(
            inputs, w.astype(mx.float32), b.astype(mx.float32), back
        )
        padded = mx.pad(inputs, [(0, 0), (max(0, K - 1 - inputs.shape[1]), 0), (0, 0)])
        return y.astype(x.dtype), last_inputs(padded[:, padded.shape[1] - (K - 1) :], starts)

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
        chunk = launches.chunk_of(chunk_size, S)
        h, C, n, m, *_ = self._mlstm(chunk, eps)(q, k, v, i, f, *state)
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
        B, S, NH, DH = i.shape
        G = mx.stack([x.astype(mx.float32) for x in (i, f, z, o)], 2)
        R, b = (x.astype(mx.float32) for x in (R, b))
        R, b = R.reshape(NH, 4, DH, DH), b.reshape(4, NH, DH)
        if state is None:
            zeros = mx.zeros((B, NH, DH))
            state = (zeros, zeros, zeros, zeros)
        if starts is None:
            starts = mx.zeros((B, S))
        h, c, n, m = self._slstm(G, R, b, *state, starts.astype(mx.int32))
        return h, (h[:, -1], c[:, -1], n[:, -1], m[:, -1])


def _conv(engine: Engine, silu: bool) -> Callable[..., Any]:
    """The arrays of `launches.conv` -> y."""

    def forward(*arrays: array) -> array:
        (y,) = _leave(engine, [launches.conv(engine, *_enter(engine, arrays), silu=silu)])
        return y

    def backward(primals: Any, dy: array, _: Any) -> Any:
        arrays = _enter(engine, (*primals, dy))
        grads = launches.conv_grad(engine, *arrays, silu=silu)
        return *_leave(engine, grads), mx.zeros_like(primals[3])

    function = mx.custom_function(forward)
    function.vjp(backward)
    result: Callable[..., Any] = function
    return result


def _mlstm(engine: Engine, chunk: int, eps: float) -> Callable[..., Any]:
    """`MLSTM_INPUTS` -> `MLSTM_RESULTS`; h and the last state have a gradient."""

    def forward(*inputs: array) -> tuple[array, ...]:
        inputs_by_name = dict(zip(launches.MLSTM_INPUTS, _enter(engine, inputs), strict=True))
        return _leave(engine, launches.mlstm(engine, inputs_by_name, chunk=chunk, eps=eps))

    def backward(primals: Any, cotangents: Any, results: Any) -> Any:
        q, k, v, i, f, *_ = primals
        _, C, n, m, _, _, M = results
        dh, dC, dn, dm, *_ = cotangents
        arrays = _enter(engine, (q, k, v, i, *results, dh, dC[:, :, -1], dn[:, :, -1]))
        saved = dict(zip(launches.MLSTM_SAVED, arrays, strict=True))
        grads = launches.mlstm_grad(engine, saved, chunk=chunk, eps=eps)
        dq, dk, dv, di, db, dC, dn, dM = _leave(engine, grads)
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


def _slstm(engine: Engine) -> Callable[..., Any]:
    """`SLSTM_INPUTS` -> `SLSTM_STATES`; every h and the last c, n, m have a gradient."""

    def forward(*inputs: array) -> tuple[array, ...]:
        inputs_by_name = dict(zip(launches.SLSTM_INPUTS, _enter(engine, inputs), strict=True))
        return _leave(engine, launches.slstm(engine, inputs_by_name))

    def backward(primals: Any, cotangents: Any, states: Any) -> Any:
        (_, _, _, h0, *_, starts), (h, *_) = primals, states
        dh, *d_states = cotangents
        arrays = _enter(engine, (*primals, *states, dh, *(x[:, -1] for x in d_states)))
        saved = dict(zip(launches.SLSTM_SAVED, arrays, strict=True))
        dG, *d_state = _leave(engine, launches.slstm_grad(engine, saved))
        dR, db = _parameter_gradients(dG, h0, h, starts)
        return dG, dR, db, *d_state, mx.zeros_like(starts)

    function = mx.custom_function(forward)
    function.vjp(backward)
    result: Callable[..., Any] = function
    return result


def _parameter_gradients(dG: array, h0: array, h: array, starts: array) -> tuple[array, array]:
    """Gradients of R (NH, 4, DH, DH) and of the biases (4, NH, DH), summed over all positions."""
    B, S, _, NH, DH = dG.shape
    before = mx.concatenate([h0[:, None], h[:, :-1]], 1)
    before = mx.where(starts[:, :, None, None] != 0, 0.0, before)
    rows = dG.transpose(3, 2, 4, 0, 1).reshape(NH, 4 * DH, B * S)
    dR = rows @ before.transpose(2, 0, 1, 3).reshape(NH, B * S, DH)
    return dR.reshape(NH, 4, DH, DH), dG.sum((0, 1))


def _enter(engine: Engine, arrays: Sequence[array]) -> list[Any]:
    """Return the engine's own arrays; only `mlx` leaves them unevaluated."""
    if engine.name == "mlx":
        return list(arrays)
    mx.eval(arrays)
    return [engine.array(np.array(x)) for x in arrays]


def _leave(engine: Engine, arrays: Sequence[Any]) -> tuple[array, ...]:
    """Return MLX's arrays of what the engine computed."""
    if engine.name == "mlx":
        return tuple(arrays)
    return tuple(mx.array(engine.host(x)) for x in arrays)
