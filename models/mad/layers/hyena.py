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
    bias,
    linear,
    taps,
)
from mlxhog.models.mad.layers.long_filter import (
    check_kernel,
    filter_spec,
    filter_taps,
    reference_taps,
)
from mlxhog.models.ops.reference.layers_numpy import causal_conv


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
        """Refuse numbers that cannot be built at width d."""
        if self.expand < 1:
            raise ConfigError(f"expand is {self.expand}; set it to at least 1")
        check_kernel(self.kernel, self.groups, self.filter_width, 3 * self.expand * d)

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        """Declare the parameters; maps and taps begin as torch's do."""
        inner = self.expand * d
        yield from short_spec(inner, d, self.groups, self.kernel)
        yield from filter_spec(inner, self.filter_width)
        yield ParamSpec("skip", (inner,), "normal:1.0")
        yield linear("out_proj.weight", d, inner)
        yield bias("out_proj.bias", d, inner)

    def state(self, d: int, length: int) -> Mapping[str, int]:
        """Return the sizes of every w, and the last inputs of the short convolution."""
        inner = self.expand * d
        return {"cache": inner * length, "conv": 3 * inner * (self.kernel - 1)}

    def init_state(self, d: int, B: int, xp: Arrays[Array]) -> State:
        """Return the convolution's last inputs (B, k - 1, 3 I), zeros, and every w (B, L, I).

        L is 0. Of a row that has read fewer than L positions, the first are 0.
        """
        inner = self.expand * d
        return xp.zeros((B, self.kernel - 1, 3 * inner)), xp.zeros((B, 0, inner))

    def forward(
        self, cfg: Sizes, p: Params, x: Array, state: State | None, run: Pass[Array]
    ) -> tuple[Array, State]:
        """Map x (B, S, d) to y (B, S, d) and the state after the last position."""
        ops, xp = run.ops, run.ops.xp
        S = x.shape[1]
        (u,) = ops.linears(x, [p["in_proj.weight"]], [p["in_proj.bias"]])
        u, last = ops.causal_conv(
            xp.tile(u, (1, 1, self.groups)),
            p["conv.weight"],
            p["conv.bias"],
            state=None if state is None else state[0],
            silu=False,
        )
        x0, x1, v = xp.split(u, 3, -1)
        w = v * x1
        all_w = w if state is None else xp.concatenate([state[1], w], 1)
        f = filter_taps(p, all_w.shape[1], cfg.max_length, xp)
        y = x0 * (ops.long_conv(all_w, f)[:, -S:] + p["skip"] * w)
        (y,) = ops.linears(y, [p["out_proj.weight"]], [p["out_proj.bias"]])
        return y, (last, all_w[:, -cfg.max_length :])

    def reference(self, cfg: Sizes, p: Mapping[str, Float], x: Float) -> Float:
        """Map x (B, S, d) to y (B, S, d) in float64, position by position."""
        u = np.tile(x @ p["in_proj.weight"].T + p["in_proj.bias"], (1, 1, self.groups))
        u, _, _ = causal_conv(u, p["conv.weight"], p["conv.bias"], silu=False)
        x0, x1, v = np.split(u, 3, -1)
        w = v * x1
        f = reference_taps(p, x.shape[1], cfg.max_length)
        y = p["skip"] * w
        for t in range(x.shape[1]):
            for j in range(t + 1):
                y[:, t] += f[:, t - j] * w[:, j]
        return (x0 * y) @ p["out_proj.weight"].T + p["out_proj.bias"]


def short_spec(inner: int, d: int, groups: int, kernel: int) -> Iterable[ParamSpec]:
    """Declare the projection to 3 * inner channels, and the convolution behind it."""
    rows = 3 * inner // groups
    yield linear("in_proj.weight", rows, d)
    yield bias("in_proj.bias", rows, d)
    yield taps("conv.weight", 3 * inner, kernel)
    yield bias("conv.bias", 3 * inner, kernel)
