"""Hyena of order 2: a convolution as long as the sequence, between two gates.

    [x0; x1; v] = conv_k( repeat(W_in u + b) )   each (B, S, I), I = expand d; depthwise, causal
    w = v * x1
    y = W_out( x0 * (f * w + D w) ) + b          f one filter per channel, see `long_filter.py`

`repeat` writes the projected channels `groups` times in a row, so W_in has 3 I / groups rows.

Source: Poli et al. 2023, Hyena Hierarchy, arXiv:2302.10866; the numbers of mad-lab.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from mlxhog.errors import ConfigError
from mlxhog.models.mad.layers.linear_spec import bias, linear, taps
from mlxhog.models.mad.layers.long_filter import check_kernel, filter_spec
from mlxhog.models.spec import ParamSpec


@dataclass(frozen=True, kw_only=True)
class Hyena:
    """Numbers of the layer.

    Attributes:
        expand: inner width as a multiple of d.
        groups: how often the projected channels are repeated.
        kernel: k, taps of the short convolution.
        filter_width: of the network that makes the filter.
    """

    name: ClassVar[str] = "hyena"
    kind: ClassVar[Literal["mixer", "channel"]] = "mixer"

    expand: int = 4
    groups: int = 4
    kernel: int = 3
    filter_width: int = 4

    def check(self, d: int) -> None:
        """See `Layer.check`."""
        if self.expand < 1:
            raise ConfigError(f"expand is {self.expand}; set it to at least 1")
        check_kernel(self.kernel, self.groups, self.filter_width, 3 * self.expand * d)

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        """See `Layer.param_spec`; maps and taps begin as torch's do."""
        inner = self.expand * d
        yield from short_spec(inner, d, self.groups, self.kernel)
        yield from filter_spec(inner, self.filter_width)
        yield ParamSpec("skip", (inner,), "normal:1.0")
        yield linear("out_proj.weight", d, inner)
        yield bias("out_proj.bias", d, inner)

    def state(self, d: int, length: int) -> Mapping[str, int]:
        """See `Layer.state`: every w, and the last inputs of the short convolution."""
        inner = self.expand * d
        return {"cache": inner * length, "conv": 3 * inner * (self.kernel - 1)}


def short_spec(inner: int, d: int, groups: int, kernel: int) -> Iterable[ParamSpec]:
    """Declare the projection to 3 * inner channels, and the convolution behind it."""
    rows = 3 * inner // groups
    yield linear("in_proj.weight", rows, d)
    yield bias("in_proj.bias", rows, d)
    yield taps("conv.weight", 3 * inner, kernel)
    yield bias("conv.bias", 3 * inner, kernel)
