"""The feed-forward layers: a plain one, two gated ones, and a mixture of experts.

At d = 128 the inner widths of the first three are 512, 352 and 192.
"""

import math
from collections.abc import Iterable
from dataclasses import replace

from mlxhog.errors import ConfigError
from mlxhog.models.mad.layer import Layer, Params, Run, State, bias, bound, linear, maps
from mlxhog.models.ops.arrays import Array
from mlxhog.models.spec import ParamSpec


class MLP(Layer):
    """Two linear maps with GELU between them.

        y = W2 GELU(W1 x + b1) + b2                  GELU in its form with tanh; width 4 d

    Source: Vaswani et al. 2017, arXiv:1706.03762; the width and the activation as in mad-lab.
    """

    name = "mlp"
    kind = "channel"

    inner: int | None = None  # width between the maps, None the one above

    def width(self, d: int) -> int:
        """Inner width at width d."""
        return 4 * d if self.inner is None else self.inner

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        U = self.width(d)
        yield linear("w1.weight", U, d)
        yield bias("w1.bias", U, d)
        yield linear("w2.weight", d, U)
        yield bias("w2.bias", d, U)

    def forward(self, p: Params, x: Array, state: State, run: Run) -> tuple[Array, State]:
        u = run.ops.activate(run.linear(x, p, "w1"), "gelu_tanh")
        return run.linear(u, p, "w2"), ()


class SwiGLU(MLP):
    """A gated feed-forward layer with SiLU.

        y = W3( SiLU(W1 x) * W2 x )                  8 d / 3, rounded down, then up to whole 16s

    Source: Shazeer 2020, GLU Variants Improve Transformer, arXiv:2002.05202; as in mad-lab.
    """

    name = "swiglu"

    def width(self, d: int) -> int:
        return 16 * math.ceil(8 * d // 3 / 16) if self.inner is None else self.inner

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        U = self.width(d)
        yield from maps(d, w1=U, w2=U)
        yield from maps(U, w3=d)

    def forward(self, p: Params, x: Array, state: State, run: Run) -> tuple[Array, State]:
        gate, up = run.linears(x, p, "w1", "w2")
        return run.linear(self.gated(gate, up, run), p, "w3"), ()

    def gated(self, gate: Array, up: Array, run: Run) -> Array:
        """Return what goes into the last map."""
        return run.ops.swiglu(gate, up)


class GEGLU(SwiGLU):
    """A gated feed-forward layer with GELU.

        y = W3( GELU(W1 x) * W2 x )                  1.3 d, rounded up to whole 64s; the exact GELU

    It is the one of xLSTM's sLSTM blocks. Source: Beck et al. 2024, xLSTM, arXiv:2405.04517.
    """

    name = "geglu"

    def width(self, d: int) -> int:
        return 64 * math.ceil(1.3 * d / 64) if self.inner is None else self.inner

    def gated(self, gate: Array, up: Array, run: Run) -> Array:
        return run.ops.glu(gate, up, "gelu")


ROUTERS = ("top-k", "mad")


class MoESwiGLU(Layer):
    """A mixture of SwiGLUs: every position takes the best few.

        s = R u + r                                  (B, S, E), one score per expert
        p = softmax of the `active` largest s, 0 elsewhere
        y = sum over e of p_e W3_e( SiLU(W1_e u) * W2_e u )

    All experts are computed, and the others have weight 0. The router "mad" is mad-lab's: the
    scores of the other experts count as 0 before the softmax, so they keep a weight, and every
    expert's output is a map of all inner units, z = W3 [..], row e + E i of which is unit i of
    expert e.

    Sources: Shazeer et al. 2017, arXiv:1701.06538 (softmax over the best k); mad-lab.
    """

    name = "moe-swiglu"
    kind = "channel"

    experts: int = 8
    active: int = 2  # experts per position
    inner: int = 16  # each expert's width
    router: str = "top-k"

    def check(self, d: int) -> None:
        super().check(d)
        if self.active > self.experts:
            raise ConfigError(
                f"active is {self.active} of {self.experts} experts; take 1 to {self.experts}"
            )
        if self.router not in ROUTERS:
            raise ConfigError(f"router is {self.router!r}; choose one of {', '.join(ROUTERS)}")

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        E, U = self.experts, self.experts * self.inner
        yield linear("router.weight", E, d, product=False)
        yield bias("router.bias", E, d)
        yield from maps(d, w1=U, w2=U)
        if self.router == "mad":
            yield linear("w3.weight", E * d, U)
        else:  # an output of one expert has its own inner units alone as inputs
            yield replace(linear("w3.weight", d, U), init=bound(self.inner))

    def forward(self, p: Params, x: Array, state: State, run: Run) -> tuple[Array, State]:
        xp, E = run.ops.xp, self.experts
        scores = run.linear(x, p, "router")
        gate, up = run.linears(x, p, "w1", "w2")
        h = run.ops.swiglu(gate, up)
        is_active = scores >= xp.sort(xp.stop_gradient(scores), -1)[..., E - self.active, None]
        if self.router == "top-k":
            share = xp.softmax(xp.where(is_active, scores, -math.inf), -1)
            weighted = h.reshape(*h.shape[:-1], E, self.inner) * share[..., None]
            return run.linear(weighted.flatten(-2), p, "w3"), ()
        share = xp.softmax(xp.where(is_active, scores, 0.0), -1)
        z = run.linear(h, p, "w3")
        return (z.reshape(*x.shape, E) * share[..., None, :]).sum(-1), ()
