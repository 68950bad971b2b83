"""Hyena of several heads: outer products of keys and values, convolved, and read by a query.

    [q; v; k] = conv_k( repeat(W_in u + b) )     each (B, S, d), heads of dh = d / heads
    Z_t = sum over j <= t of f_{t-j} k_j v_j^T + D k_t v_t^T          f and D one per head
    y = W_out( q^T Z ) + b

The twins add up (q_t . k_j) f_{t-j} v_j, which is the same sum without the matrices. `repeat` and
the filter are those of `hyena.py`.

Sources: Massaroli et al. 2023, Laughing Hyena Distillery, arXiv:2310.18780; the numbers of mad-lab,
whose 16 are the width of a head.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from mlxhog.models.mad.layers.checks import check_heads
from mlxhog.models.mad.layers.hyena import short_spec
from mlxhog.models.mad.layers.linear_spec import bias, linear
from mlxhog.models.mad.layers.long_filter import check_kernel, filter_spec
from mlxhog.models.spec import ParamSpec


@dataclass(frozen=True, kw_only=True)
class MHHyena:
    """Numbers of the layer; all but `heads` as of Hyena."""

    name: ClassVar[str] = "mh-hyena"
    kind: ClassVar[Literal["mixer", "channel"]] = "mixer"

    heads: int = 8
    groups: int = 4
    kernel: int = 3
    filter_width: int = 2

    def check(self, d: int) -> None:
        """See `Layer.check`."""
        check_heads(self.heads, d)
        check_kernel(self.kernel, self.groups, self.filter_width, 3 * d)

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        """See `Layer.param_spec`; maps and taps begin as torch's do."""
        yield from short_spec(d, d, self.groups, self.kernel)
        yield from filter_spec(self.heads, self.filter_width)
        yield ParamSpec("skip", (self.heads,), "normal:1.0")
        yield linear("out_proj.weight", d, d)
        yield bias("out_proj.bias", d, d)

    def state(self, d: int, length: int) -> Mapping[str, int]:
        """See `Layer.state`: every key and value, and the last inputs of the convolution."""
        return {"cache": 2 * d * length, "conv": 3 * d * (self.kernel - 1)}
