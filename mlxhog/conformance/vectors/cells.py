"""The equations of cells, as `models/ops` computes them in float64.

Indices: B sequences, S positions (t), H heads, keys of width K, values of width V; C channels, N
states of each. A state is zero before the first position unless it is given.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from mlxhog.conformance.vectors.equations import Array, Equations, Options, Tensor
from mlxhog.models.ops.operators import Ops

Named = Mapping[str, Any]
Results = dict[str, torch.Tensor]


def _normal(rng: np.random.Generator, shape: tuple[int, ...], large: bool) -> Array:
    return rng.standard_normal(shape)


def _input_gate(rng: np.random.Generator, shape: tuple[int, ...], large: bool) -> Array:
    return rng.standard_normal(shape) * (30.0 if large else 1.0)


def _forget_gate(rng: np.random.Generator, shape: tuple[int, ...], large: bool) -> Array:
    """Return pre-activations of which most keep the state; large ones are of both signs."""
    x = rng.standard_normal(shape)
    return 40.0 * x if large else 2.0 + 1.5 * x


def _named(x: Named, *names: str) -> list[Any]:
    return [x.get(name) for name in names]


def _mlstm(ops: Ops, x: Named, options: Options) -> Results:
    state = _named(x, "state.C", "state.n", "state.m")
    h, (C, n, m) = ops.mlstm_cell(
        *_named(x, *"qkvif"), chunk_size=16, eps=options["eps"], state=state,
        reset_mask=x.get("reset_mask"),
    )  # fmt: skip
    return {"h": h, "state.C": C, "state.n": n, "state.m": m}


MLSTM = Equations(
    name="mlstm",
    text="""\
mLSTM cell (Beck et al. 2024, xLSTM, arXiv:2405.04517), each head by itself.
q, k [B,S,H,K]; v [B,S,H,V]; i, f [B,S,H]; h [B,S,H,V]; state C [B,H,K,V], n [B,H,K], m [B,H].
logsig(x) = -log(1 + exp(-x)). At position t, with C, n, m the state before it:
    m' = max(logsig(f) + m, i)     F = exp(logsig(f) + m - m')     I = exp(i - m')
    C[a,b] = F C[a,b] + I k[a] v[b]        n[a] = F n[a] + I k[a]        m = m'
    num[b] = sum_a C[a,b] q[a] / sqrt(K)   den = sum_a n[a] q[a] / sqrt(K)
    h[b] = num[b] / (max(|den|, exp(-m)) + eps)
Where reset_mask [B,S] is 1, C, n and m are set to 0 before the position.
Gradients are exact: m is a function of i, f and the first m, not a constant.""",
    tensors=(
        Tensor("q", "B S H K", _normal),
        Tensor("k", "B S H K", _normal),
        Tensor("v", "B S H V", _normal),
        Tensor("i", "B S H", _input_gate, rounds=False),
        Tensor("f", "B S H", _forget_gate, rounds=False),
        Tensor("state.C", "B H K V", _normal, "state", rounds=False),
        Tensor("state.n", "B H K", _normal, "state", rounds=False),
        Tensor("state.m", "B H", _normal, "state", rounds=False),
    ),
    compute=_mlstm,
    options={"eps": 1e-6},
    resets=True,
)

CELLS = {one.name: one for one in (MLSTM,)}
