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

from mlxhog.errors import ConfigError
from mlxhog.models.mad.layers.checks import check_heads
from mlxhog.models.mad.layers.linear_spec import linear, taps
from mlxhog.models.spec import ParamSpec

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
        """See `Layer.check`."""
        check_heads(self.heads, d)
        if self.conv < 0:
            raise ConfigError(f"conv is {self.conv}; give a number of taps, or 0 for none")

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        """See `Layer.param_spec`; linear maps begin as torch.nn.Linear's do, gates closed to x."""
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
        """See `Layer.state`: C, n and m, and the last inputs of the convolution."""
        DH = d // self.heads
        cell = {"cell": self.heads * (DH * DH + DH + 1)}
        return cell | ({"conv": d * (self.conv - 1)} if self.conv else {})
