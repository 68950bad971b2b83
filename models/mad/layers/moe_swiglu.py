"""Experts of which every position takes the best few: a sparse mixture of SwiGLUs.

    s = R u + r                                  (B, S, E), one score per expert
    p = softmax of the `active` largest s, 0 elsewhere
    y = sum over e of p_e W3_e( SiLU(W1_e u) * W2_e u )

The router "mad" is mad-lab's: the scores of the other experts count as 0 before the softmax, so
they keep a weight, and every expert's output is a map of all inner units, z = W3 [..], row e + E i
of which is unit i of expert e.

Sources: Shazeer et al. 2017, arXiv:1701.06538 (softmax over the best k); mad-lab.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from mlxhog.errors import ConfigError
from mlxhog.models.mad.layers.linear_spec import bias, bound, linear
from mlxhog.models.spec import ParamSpec

ROUTERS = ("top-k", "mad")


@dataclass(frozen=True, kw_only=True)
class MoESwiGLU:
    """Numbers of the layer: `inner` is the width of each expert, `active` the experts taken."""

    name: ClassVar[str] = "moe-swiglu"
    kind: ClassVar[Literal["mixer", "channel"]] = "channel"

    experts: int = 8
    active: int = 2
    inner: int = 16
    router: str = "top-k"

    def check(self, d: int) -> None:
        """See `Layer.check`."""
        if self.inner < 1:
            raise ConfigError(f"inner is {self.inner}; set it to at least 1")
        if not 1 <= self.active <= self.experts:
            raise ConfigError(
                f"active is {self.active} of {self.experts} experts; take 1 to {self.experts}"
            )
        if self.router not in ROUTERS:
            raise ConfigError(f"router is {self.router!r}; choose one of {', '.join(ROUTERS)}")

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        """See `Layer.param_spec`; linear maps begin as torch.nn.Linear's do."""
        E, U = self.experts, self.experts * self.inner
        yield linear("router.weight", E, d, product=False)
        yield bias("router.bias", E, d)
        yield linear("w1.weight", U, d)
        yield linear("w2.weight", U, d)
        if self.router == "mad":
            yield linear("w3.weight", E * d, U)
        else:  # an output of one expert has its own inner units alone as inputs
            yield replace(linear("w3.weight", d, U), init=bound(self.inner))

    def state(self, d: int, length: int) -> Mapping[str, int]:
        """See `Layer.state`: positions do not meet."""
        return {}
