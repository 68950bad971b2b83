"""The mLSTM cell between its projections, behind a short convolution.

    c = SiLU(conv_k(u))                          depthwise, causal; u itself where conv is 0
    q = Wq c,  k = Wk c,  v = Wv u,  o = Wo u    each (B, S, d), NH heads of DH = d / NH
    i~ = Wi u + bi,  f~ = Wf u + bf              (B, S, NH)
    h = mLSTM(q, k, v, i~, f~)
    y = Wout( sigmoid(o) * LN_head(h) )

The cell of one head, with the state C (DH, DH), n (DH), m, zero at the start:

    m' = max(logsig(f~) + m, i~)      I = exp(i~ - m')      F = exp(logsig(f~) + m - m')
    C = F C + I k v^T     n = F n + I k     m = m'
    h = C^T q / (sqrt(DH) max(|n^T q| / sqrt(DH), exp(-m)))

which equals the parallel form with L[t, j] = sum_{j < s <= t} logsig(f~_s) + i~_j in its exponents.
Forget biases begin at 3 to 6, spread over the heads.

Source: Beck et al. 2024, xLSTM, arXiv:2405.04517.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from mlxhog.errors import ConfigError
from mlxhog.models.mad.layer import (
    Array,
    Arrays,
    Float,
    Params,
    ParamSpec,
    Pass,
    Sizes,
    State,
    check_heads,
    linear,
    taps,
)
from mlxhog.models.mad.plain_numpy import sigmoid
from mlxhog.models.ops.reference.layers_numpy import causal_conv, layer_norm
from mlxhog.models.ops.reference.mlstm_numpy import recurrent

CHUNK_SIZE = 64
CELL_EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class MLSTM:
    """Numbers of the layer: `heads` is NH, `conv` is k, the taps of the convolution, 0 for none."""

    name: ClassVar[str] = "mlstm"
    kind: ClassVar[Literal["mixer", "channel"]] = "mixer"

    heads: int = 4
    conv: int = 4

    def check(self, d: int) -> None:
        """Refuse numbers that cannot be built at width d."""
        check_heads(self.heads, d)
        if self.conv < 0:
            raise ConfigError(f"conv is {self.conv}; give a number of taps, or 0 for none")

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        """Declare the parameters; linear maps begin as torch.nn.Linear's do, gates closed to x."""
        if self.conv:
            yield taps("conv.weight", d, self.conv)
            yield ParamSpec("conv.bias", (d,), "zeros")
        for name in ("q_proj", "k_proj", "v_proj", "ogate"):
            yield linear(f"{name}.weight", d, d)
        for name, bias in (("igate", "zeros"), ("fgate", "linspace:3.0:6.0")):
            yield ParamSpec(f"{name}.weight", (self.heads, d), "zeros", decay=True)
            yield ParamSpec(f"{name}.bias", (self.heads,), bias)
        yield ParamSpec("head_norm.weight", (d,), "ones")
        yield linear("out_proj.weight", d, d)

    def state(self, d: int, length: int) -> Mapping[str, int]:
        """Return the sizes of C, n and m, and the last inputs of the convolution."""
        DH = d // self.heads
        cell = {"cell": self.heads * (DH * DH + DH + 1)}
        return cell | ({"conv": d * (self.conv - 1)} if self.conv else {})

    def init_state(self, d: int, B: int, xp: Arrays[Array]) -> State:
        """Return zeros: the convolution's inputs (B, k - 1, d), where it has one, and C, n, m.

        C (B, NH, DH, DH), n (B, NH, DH) and m (B, NH) of the cell; all float32.
        """
        NH, DH = self.heads, d // self.heads
        inputs = (xp.zeros((B, self.conv - 1, d)),) if self.conv else ()
        return *inputs, xp.zeros((B, NH, DH, DH)), xp.zeros((B, NH, DH)), xp.zeros((B, NH))

    def forward(
        self, cfg: Sizes, p: Params, x: Array, state: State | None, run: Pass[Array]
    ) -> tuple[Array, State]:
        """Map x (B, S, d) to y (B, S, d) and the state after the last position."""
        ops = run.ops
        heads = (*x.shape[:2], self.heads, -1)
        c, inputs = x, list[Array]()
        if self.conv:
            c, last = ops.causal_conv(
                x,
                p["conv.weight"],
                p["conv.bias"],
                state=None if state is None else state[0],
                silu=True,
            )
            inputs.append(last)
        q, k = ops.linears(c, [p["q_proj.weight"], p["k_proj.weight"]])
        names = ("v_proj", "ogate", "igate", "fgate")
        v, o, i, f = ops.linears(
            x, [p[f"{name}.weight"] for name in names], [p.get(f"{name}.bias") for name in names]
        )
        q, k, v = q.reshape(heads), k.reshape(heads), v.reshape(heads)
        cell = state and state[-3:]
        h, cell = ops.mlstm_cell(q, k, v, i, f, chunk_size=CHUNK_SIZE, eps=CELL_EPS, state=cell)
        y = ops.head_norm_gate(h, o, p["head_norm.weight"], cfg.norm_eps)
        (y,) = ops.linears(y, [p["out_proj.weight"]])
        return y, (*inputs, *cell)

    def reference(self, cfg: Sizes, p: Mapping[str, Float], x: Float) -> Float:
        """Map x (B, S, d) to y (B, S, d) in float64, position by position."""
        heads = (*x.shape[:2], self.heads, -1)
        c = x
        if self.conv:
            c, _, _ = causal_conv(x, p["conv.weight"], p["conv.bias"], silu=True)
        q, k = ((c @ p[f"{name}_proj.weight"].T).reshape(heads) for name in "qk")
        v = (x @ p["v_proj.weight"].T).reshape(heads)
        i, f = (x @ p[f"{name}.weight"].T + p[f"{name}.bias"] for name in ("igate", "fgate"))
        h, _, _ = recurrent(q, k, v, i, f, eps=CELL_EPS)
        normed, _ = layer_norm(h, cfg.norm_eps)
        y = sigmoid(x @ p["ogate.weight"].T) * (p["head_norm.weight"] * normed.reshape(x.shape))
        return np.asarray(y) @ p["out_proj.weight"].T
