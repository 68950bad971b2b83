"""A sparse mixture of SwiGLUs: every position uses the few experts with the best scores.

    s = R u + r                                  (B, S, E), one score per expert
    p = softmax of the `active` largest s, 0 elsewhere
    y = sum over e of p_e W3_e( SiLU(W1_e u) * W2_e u )

The router "mad" is mad-lab's: the scores of the other experts count as 0 before the softmax, so
they keep a weight, and every expert's output is a map of all inner units, z = W3 [..], row e + E i
of which is unit i of expert e.

Sources: Shazeer et al. 2017, arXiv:1701.06538 (softmax over the best k); mad-lab.
"""

from __future__ import annotations

from mlxhog.models.mad.layer import *

ROUTERS = ("top-k", "mad")


@dataclass(frozen=True, kw_only=True)
class MoESwiGLU(Layer):
    """Numbers of the layer: `inner` is each expert's width, `active` the experts per position."""

    name = "moe-swiglu"
    about = "a mixture of SwiGLUs: every position takes the best few"
    kind = "channel"

    experts: int = 8
    active: int = 2
    inner: int = 16
    router: str = "top-k"

    def check(self, d: int) -> None:
        check_positive(inner=self.inner)
        if not 1 <= self.active <= self.experts:
            raise ConfigError(
                f"active is {self.active} of {self.experts} experts; take 1 to {self.experts}"
            )
        if self.router not in ROUTERS:
            raise ConfigError(f"router is {self.router!r}; choose one of {', '.join(ROUTERS)}")

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        E, U = self.experts, self.experts * self.inner
        yield linear("router.weight", E, d, product=False)
        yield bias("router.bias", E, d)
        yield linear("w1.weight", U, d)
        yield linear("w2.weight", U, d)
        if self.router == "mad":
            yield linear("w3.weight", E * d, U)
        else:  # an output of one expert has its own inner units alone as inputs
            yield replace(linear("w3.weight", d, U), init=bound(self.inner))

    def forward(
        self, cfg: Sizes, p: Params, x: Array, state: State | None, run: Pass[Array]
    ) -> tuple[Array, State]:
        """Map x (B, S, d) to y (B, S, d); computes all experts, and the others have weight 0."""
        ops, xp = run.ops, run.ops.xp
        E = self.experts
        scores = run.linear(x, p, "router")
        gate, up = run.linears(x, p, "w1", "w2")
        h = ops.swiglu(gate, up)
        is_active = scores >= xp.sort(xp.stop_gradient(scores), -1)[..., E - self.active, None]
        if self.router == "top-k":
            share = xp.softmax(xp.where(is_active, scores, -math.inf), -1)
            weighted = h.reshape(*h.shape[:-1], E, self.inner) * share[..., None]
            y = run.linear(weighted.flatten(-2), p, "w3")
            return y, ()
        share = xp.softmax(xp.where(is_active, scores, 0.0), -1)
        z = run.linear(h, p, "w3")
        return (z.reshape(*x.shape, E) * share[..., None, :]).sum(-1), ()
