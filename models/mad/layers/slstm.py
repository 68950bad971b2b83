"""The sLSTM cell between its projections, sequential in S: memory mixes inside a head.

    c = SiLU(conv_k(u))                          depthwise, causal; u itself where conv is 0
    h = sLSTM(Wi c, Wf c, Wz u, Wo u)            NH heads of DH = d / NH
    y = Wout LN_head(h)

The cell of one head, with the state h, c, n, m (DH each), zero at the start:

    i~ = (Wi c)_t + Ri h + bi,  and so f~, z~, o~
    m' = max(logsig(f~) + m, i~), or i~ where n is 0     I = exp(i~ - m')
    F = exp(logsig(f~) + m - m')
    c = F c + I tanh(z~)     n = F n + I     m = m'     h = sigmoid(o~) c / n

Forget biases begin at 3 to 6, spread over the units of a head; recurrent matrices begin at 0.

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


@dataclass(frozen=True, kw_only=True)
class SLSTM:
    """Numbers of the layer: `heads` is NH, `conv` is k, the taps of the convolution, 0 for none."""

    name: ClassVar[str] = "slstm"
    kind: ClassVar[Literal["mixer", "channel"]] = "mixer"

    heads: int = 4
    conv: int = 0

    def check(self, d: int) -> None:
        """See `Layer.check`."""
        check_heads(self.heads, d)
        if self.conv < 0:
            raise ConfigError(f"conv is {self.conv}; give a number of taps, or 0 for none")

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        """See `Layer.param_spec`; linear maps begin as torch.nn.Linear's do."""
        NH, DH = self.heads, d // self.heads
        if self.conv:
            yield taps("conv.weight", d, self.conv)
            yield ParamSpec("conv.bias", (d,), "zeros")
        for gate in "ifzo":
            yield linear(f"{gate}gate.weight", d, d, product=False)
        yield ParamSpec("recurrent.weight", (NH, 4 * DH, DH), "zeros", decay=True)
        yield ParamSpec("recurrent.bias", (4 * d,), f"slstm_linspace:{NH}:3.0:6.0")
        yield ParamSpec("head_norm.weight", (d,), "ones")
        yield linear("out_proj.weight", d, d)

    def state(self, d: int, length: int) -> Mapping[str, int]:
        """See `Layer.state`: h, c, n and m, and the last inputs of the convolution."""
        return {"cell": 4 * d} | ({"conv": d * (self.conv - 1)} if self.conv else {})
