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
from mlxhog.models.ops.reference.layers_numpy import causal_conv, layer_norm
from mlxhog.models.ops.reference.slstm_numpy import slstm_cell


@dataclass(frozen=True, kw_only=True)
class SLSTM:
    """Numbers of the layer: `heads` is NH, `conv` is k, the taps of the convolution, 0 for none."""

    name: ClassVar[str] = "slstm"
    kind: ClassVar[Literal["mixer", "channel"]] = "mixer"

    heads: int = 4
    conv: int = 0

    def check(self, d: int) -> None:
        """Refuse numbers that cannot be built at width d."""
        check_heads(self.heads, d)
        if self.conv < 0:
            raise ConfigError(f"conv is {self.conv}; give a number of taps, or 0 for none")

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        """Declare the parameters; linear maps begin as torch.nn.Linear's do."""
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
        """Return the sizes of h, c, n and m, and the last inputs of the convolution."""
        return {"cell": 4 * d} | ({"conv": d * (self.conv - 1)} if self.conv else {})

    def init_state(self, d: int, B: int, xp: Arrays[Array]) -> State:
        """Return zeros: the convolution's inputs (B, k - 1, d), where it has one, and h, c, n, m.

        Those of the cell are (B, NH, DH) each; all float32.
        """
        NH, DH = self.heads, d // self.heads
        inputs = (xp.zeros((B, self.conv - 1, d)),) if self.conv else ()
        return *inputs, *(xp.zeros((B, NH, DH)) for _ in range(4))

    def forward(
        self, cfg: Sizes, p: Params, x: Array, state: State | None, run: Pass[Array]
    ) -> tuple[Array, State]:
        """Map x (B, S, d) to y (B, S, d) and the state after the last position."""
        ops, xp = run.ops, run.ops.xp
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
        i, f = ops.linears(c, [p["igate.weight"], p["fgate.weight"]])
        z, o = ops.linears(x, [p["zgate.weight"], p["ogate.weight"]])
        i, f, z, o = i.reshape(heads), f.reshape(heads), z.reshape(heads), o.reshape(heads)
        R, b = p["recurrent.weight"], p["recurrent.bias"]
        h, cell = ops.slstm_cell(i, f, z, o, R, b, state=state and state[-4:])
        y = ops.head_norm(xp.astype(h, x), p["head_norm.weight"], cfg.norm_eps)
        (y,) = ops.linears(y, [p["out_proj.weight"]])
        return y, (*inputs, *cell)

    def reference(self, cfg: Sizes, p: Mapping[str, Float], x: Float) -> Float:
        """Map x (B, S, d) to y (B, S, d) in float64, position by position."""
        heads = (*x.shape[:2], self.heads, -1)
        c = x
        if self.conv:
            c, _, _ = causal_conv(x, p["conv.weight"], p["conv.bias"], silu=True)
        i, f = ((c @ p[f"{gate}gate.weight"].T).reshape(heads) for gate in "if")
        z, o = ((x @ p[f"{gate}gate.weight"].T).reshape(heads) for gate in "zo")
        (h, *_), _ = slstm_cell(i, f, z, o, p["recurrent.weight"], p["recurrent.bias"])
        normed, _ = layer_norm(h, cfg.norm_eps)
        return (p["head_norm.weight"] * normed.reshape(x.shape)) @ p["out_proj.weight"].T
