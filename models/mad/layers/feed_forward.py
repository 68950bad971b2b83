"""The feed-forward layers: a plain one, and two gated ones.

    mlp        y = W2 GELU(W1 x + b1) + b2       GELU in its form with tanh; width 4 d
    swiglu     y = W3( SiLU(W1 x) * W2 x )       8 d / 3, rounded down, then up to whole sixteens
    geglu      y = W3( GELU(W1 x) * W2 x )       1.3 d, rounded up to whole 64s; the exact GELU

At d = 128 the inner widths are 512, 352 and 192. `geglu` is the one of xLSTM's sLSTM blocks.

Sources: Vaswani et al. 2017, arXiv:1706.03762; Shazeer 2020, GLU Variants Improve Transformer,
arXiv:2002.05202; Beck et al. 2024, xLSTM, arXiv:2405.04517; the widths and the activation of `mlp`
and `swiglu` as in mad-lab.
"""

from __future__ import annotations

from mlxhog.models.mad.layer import *


@dataclass(frozen=True, kw_only=True)
class MLP(Layer):
    """Numbers of the layer: `inner` is the width between the maps, None the one above."""

    name = "mlp"
    about = "two linear maps with GELU between them"
    kind = "channel"

    inner: int | None = None

    def width(self, d: int) -> int:
        """Inner width at width d."""
        return 4 * d if self.inner is None else self.inner

    def check(self, d: int) -> None:
        if self.width(d) < 1:
            raise ConfigError(f"inner is {self.inner}; set it to at least 1, or leave it out")

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        U = self.width(d)
        yield linear("w1.weight", U, d)
        yield bias("w1.bias", U, d)
        yield linear("w2.weight", d, U)
        yield bias("w2.bias", d, U)

    def forward(
        self, cfg: Sizes, p: Params, x: Array, state: State | None, run: Pass[Array]
    ) -> tuple[Array, State]:
        u = run.linear(x, p, "w1")
        u = run.ops.activate(u, "gelu_tanh")
        return run.linear(u, p, "w2"), ()


@dataclass(frozen=True, kw_only=True)
class SwiGLU(MLP):
    """Numbers of the layer, as of `MLP`."""

    name = "swiglu"
    about = "a gated feed-forward layer with SiLU"
    gate = "silu"

    def width(self, d: int) -> int:
        """Inner width at width d."""
        return 16 * math.ceil(8 * d // 3 / 16) if self.inner is None else self.inner

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        U = self.width(d)
        yield linear("w1.weight", U, d)
        yield linear("w2.weight", U, d)
        yield linear("w3.weight", d, U)

    def forward(
        self, cfg: Sizes, p: Params, x: Array, state: State | None, run: Pass[Array]
    ) -> tuple[Array, State]:
        gate, up = run.linears(x, p, "w1", "w2")
        return run.linear(self.gated(gate, up, run), p, "w3"), ()

    def gated(self, gate: Array, up: Array, run: Pass[Array]) -> Array:
        """Return what goes into the last map."""
        return run.ops.swiglu(gate, up)


@dataclass(frozen=True, kw_only=True)
class GEGLU(SwiGLU):
    """Numbers of the layer, as of `MLP`."""

    name = "geglu"
    about = "a gated feed-forward layer with GELU"
    gate = "gelu"

    def width(self, d: int) -> int:
        """Inner width at width d."""
        return 64 * math.ceil(1.3 * d / 64) if self.inner is None else self.inner

    def gated(self, gate: Array, up: Array, run: Pass[Array]) -> Array:
        """Return what goes into the last map."""
        return run.ops.glu(gate, up, "gelu")
