"""The ops of xLSTM Large in MLX with the mLSTM cell as Metal kernels; float32.

`kernels.py` says what each op promises, `reference_mlx.py` has the ops that MLX itself does well.
On the engine `mlx` the cell is as lazy as any op. An emulated one evaluates its inputs when it is
called, so keep that out of `mx.compile`.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.core import array

from mlxhog.metal.engine import Engine
from mlxhog.models.ops import metal_mlstm, reference_mlx


class MetalOps:
    """The ops on one engine: `mlx` takes MLX's arrays as they are, the others NumPy arrays."""

    rms_norm = staticmethod(reference_mlx.rms_norm)
    layer_norm = staticmethod(reference_mlx.layer_norm)
    head_norm = staticmethod(reference_mlx.head_norm)
    linears = staticmethod(reference_mlx.linears)
    block_diagonal = staticmethod(reference_mlx.block_diagonal)
    causal_conv = staticmethod(reference_mlx.causal_conv)
    glu = staticmethod(reference_mlx.glu)
    swiglu = staticmethod(reference_mlx.swiglu)
    soft_cap = staticmethod(reference_mlx.soft_cap)
    head_norm_gate = staticmethod(reference_mlx.head_norm_gate)
    head_norm_skip_gate = staticmethod(reference_mlx.head_norm_skip_gate)
    capped_cross_entropy = staticmethod(reference_mlx.capped_cross_entropy)

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._cell = lru_cache(partial(_mlstm_cell, engine))

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


def _mlstm_cell(engine: Engine, chunk: int, eps: float) -> Callable[..., Any]:
    """`INPUTS` -> `RESULTS` of `metal_mlstm.py`; h and the last C and n have a gradient."""

    def forward(*inputs: array) -> tuple[array, ...]:
        given = dict(zip(metal_mlstm.INPUTS, _enter(engine, inputs), strict=True))
        return _leave(engine, metal_mlstm.forward(engine, given, chunk=chunk, eps=eps))

    def backward(primals: Any, cotangents: Any, results: Any) -> Any:
        q, k, v, i, f, *_, m0 = primals
        _, C, n, *_ = results
        dh, dC, dn, *_ = cotangents
        names = ("q", "k", "v", "i", *metal_mlstm.RESULTS, "dh", "dC_last", "dn_last")
        arrays = _enter(engine, (q, k, v, i, *results, dh, dC[:, :, -1], dn[:, :, -1]))
        saved = dict(zip(names, arrays, strict=True))
        found = metal_mlstm.backward(engine, saved, chunk=chunk, eps=eps)
        dq, dk, dv, di, db, dC, dn = _leave(engine, found)
        df = _forget_gradient(f, db, C, n, dC, dn, chunk)
        return dq, dk, dv, di, df, dC[:, :, 0], dn[:, :, 0], mx.zeros_like(m0)

    function = mx.custom_function(forward)
    function.vjp(backward)
    result: Callable[..., Any] = function
    return result


def _forget_gradient(
    f: array, db: array, C: array, n: array, dC: array, dn: array, chunk: int
) -> array:
    """Gradient of f (B, S, NH): of all sums b from its position to the end of the chunk."""
    B, S, NH = f.shape
    at_end = (C[:, :, 1:] * dC[:, :, 1:]).sum((-2, -1)) + (n[:, :, 1:] * dn[:, :, 1:]).sum(-1)
    db = mx.pad(db, [(0, 0), (0, 0), (0, -S % chunk)]).reshape(B, NH, -1, chunk)
    later = mx.cumsum(db, -1, reverse=True) + at_end[..., None]
    return mx.sigmoid(-f) * later.flatten(-2)[..., :S].transpose(0, 2, 1)


def _enter(engine: Engine, arrays: Sequence[array]) -> list[Any]:
    """Return the engine's own arrays; only `mlx` leaves them unevaluated."""
    if engine.name == "mlx":
        return list(arrays)
    mx.eval(arrays)
    return [engine.array(np.array(x)) for x in arrays]


def _leave(engine: Engine, arrays: Sequence[Any]) -> tuple[array, ...]:
    if engine.name == "mlx":
        return tuple(arrays)
    return tuple(mx.array(engine.host(x)) for x in arrays)
