"""The operators in NumPy's float64, without their gradients, behind `Ops`."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.models.ops.operators import Ops
from mlxhog.models.ops.reference import layers_numpy, mlstm_numpy, recurrences_numpy

Array = NDArray[Any]


def _head_norm(h: Array, w: Array, eps: float) -> Array:
    return w * layers_numpy.layer_norm(h, eps)[0].reshape(*h.shape[:2], -1)


def _slstm_cell(*x: Array, **how: Any) -> tuple[Array, Sequence[Array]]:
    states, _ = recurrences_numpy.slstm_cell(*x, **how)
    return states[0], [part[:, -1] for part in states]


def _cross_entropy(x: Array, w: Array, labels: Array, *, cap: float | None) -> tuple[Array, int]:
    logits = x @ w.T
    logits = logits if cap is None else cap * np.tanh(logits / cap)
    labelled: Array = logits[np.arange(len(labels)), labels]
    return (np.log(np.exp(logits).sum(-1)) - labelled).sum(), len(labels)


FLOAT64 = Ops(
    SimpleNamespace(
        xp=None,
        linears=lambda x, ws, bs: [
            x @ w.T + (0.0 if b is None else b) for w, b in zip(ws, bs, strict=True)
        ],
        block_diagonal=lambda x, ws, bs: [
            layers_numpy.block_diagonal(x, w, b)[0] for w, b in zip(ws, bs, strict=True)
        ],
        causal_conv=lambda *x, **how: layers_numpy.causal_conv(*x, **how)[:2],
        rms_norm=layers_numpy.rms_norm,
        layer_norm=lambda x, w, eps: w * layers_numpy.layer_norm(x, eps)[0],
        head_norm=_head_norm,
        head_norm_gate=lambda h, o, w, eps: layers_numpy.sigmoid(o) * _head_norm(h, w, eps),
        head_norm_skip_gate=lambda h, c, z, w, skip, eps: layers_numpy.head_norm_skip_gate(
            h, c, z, w, skip, eps
        )[0],
        swiglu=lambda gate, up: layers_numpy.glu(gate, up, "silu")[0],
        glu=lambda gate, up, activation: layers_numpy.glu(gate, up, activation)[0],
        soft_cap=lambda x, c: layers_numpy.soft_cap(x, c)[0],
        mlstm_cell=lambda *x, chunk_size, **how: mlstm_numpy.recurrent(*x, **how)[:2],
        slstm_cell=_slstm_cell,
        linear_cross_entropy=_cross_entropy,
    )
)
