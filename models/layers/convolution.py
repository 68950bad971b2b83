"""Convolutions: short ones, and Hyena's, which are as long as the sequence.

conv_k is depthwise and causal, with kernel size k.
"""

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from mlxhog.errors import ConfigError
from mlxhog.models.layers.layer import (
    ForwardContext,
    Layer,
    Output,
    Params,
    Shapes,
    State,
    conv_params,
    linear_params,
)
from mlxhog.models.ops.arrays import Array, Arrays
from mlxhog.models.spec import ParamSpec


class _ShortConvolution(Layer):
    kernel: int = 4  # k

    def state_shapes(self, d: int, length: int) -> Shapes:
        return {"conv": [(self.kernel - 1, d)]}


class GatedConv(_ShortConvolution):
    """A short convolution between two gates, as in LFM2.

        b, c, v = W_in u                             each (B, S, d)
        y = W_out( c * conv_k( b * v ) )             no bias, no activation

    Source: Hugging Face transformers, `lfm2`.
    """

    name = "gated-conv"

    kernel: int = 3  # k

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        yield from linear_params(d, in_proj=3 * d)
        yield from conv_params("conv", d, self.kernel)
        yield from linear_params(d, out_proj=d)

    def forward(self, p: Params, x: Array, state: State, ctx: ForwardContext) -> Output:
        d = x.shape[-1]
        b, c, v = ctx.parts(x, p, "in_proj", d, 2 * d)
        y, last = ctx.conv(b * v, p, state[0], silu=False)
        return ctx.linear(c * y, p, "out_proj"), (last,)


class Canon(_ShortConvolution):
    """A short convolution before any other layer.

        y = conv_k( u )                              no bias, no activation

    Canon's residual, u + conv_k( u ), is that of every layer, so a Canon layer fits before any
    other: "canon mlstm canon swiglu" has those of the paper before mixer and channel mixer (A and
    C). There the sum is the input of the next layer only; here it stays in the residual stream.

    Source: Allen-Zhu 2025, Physics of Language Models 4.1, arXiv:2512.17351.
    """

    name = "canon"

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        yield from conv_params("conv", d, self.kernel)

    def forward(self, p: Params, x: Array, state: State, ctx: ForwardContext) -> Output:
        y, last = ctx.conv(x, p, state[0], silu=False)
        return y, (last,)


FEATURES = 3
LAYERS = 4
SLOWEST, FASTEST = math.log(100) / 1.5, math.log(100) / 0.3


class _LongConvolution(Layer):
    """The projections, short convolution and filter of both kinds of Hyena.

    The filter, with T the longest sequence, for every distance t = 0 .. T - 1:

        z_t = [t / T, cos(2 pi t / T), sin(2 pi t / T)]
        f_t = W3 sin(W2 sin(W1 sin(W0 z_t + b0) + b1) + b2) * exp(-(t / T) delta)

    one entry per channel, whose decay delta is fixed: from ln(100) / 1.5 for the first channel to
    ln(100) / 0.3 for the last. The filter is 0 from T on.

    `groups` is the number of repetitions of the projected channels, `kernel` k, `filter_width` the
    width of the filter network.

    Sources: Poli et al. 2023, Hyena Hierarchy, arXiv:2302.10866; Massaroli et al. 2023, Laughing
    Hyena Distillery, arXiv:2310.18780; the hyperparameters are mad-lab's.
    """

    groups = 4
    kernel = 3
    filter_width = 4

    def inner(self, d: int) -> int:
        """Return the width of each of the three projections."""
        return d

    def filters(self, d: int) -> int:
        """Return the number of filters: one for each channel."""
        return self.inner(d)

    def check(self, d: int) -> None:
        super().check(d)
        if (channels := 3 * self.inner(d)) % self.groups:
            raise ConfigError(
                f"groups is {self.groups}, and the projections have {channels} channels; "
                "choose a divisor"
            )

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        inner, filters = self.inner(d), self.filters(d)
        yield from linear_params(d, bias=True, in_proj=3 * inner // self.groups)
        yield from conv_params("conv", 3 * inner, self.kernel, bias=True)
        sizes = (FEATURES, *[self.filter_width] * (LAYERS - 1), filters)
        for number, (inputs, out) in enumerate(zip(sizes, sizes[1:], strict=False)):
            own = {f"filter.{number}": out}
            yield from linear_params(inputs, autocast=False, bias=number < LAYERS - 1, outs=own)
        yield ParamSpec("skip", (filters,), "normal:1.0")
        yield from linear_params(inner, bias=True, out_proj=d)

    def projected(
        self, p: Params, x: Array, state: State, ctx: ForwardContext
    ) -> tuple[Sequence[Array], Array]:
        """Return the three projections, (B, S, I) each, and the convolution's last inputs."""
        u = ctx.ops.xp.tile(ctx.linear(x, p, "in_proj"), (1, 1, self.groups))
        u, last = ctx.conv(u, p, state[0], silu=False)
        return ctx.ops.xp.split(u, 3, -1), last


class Hyena(_LongConvolution):
    """A convolution as long as the sequence, with the filter of a network.

        [x0; x1; v] = conv_k( repeat(W_in u + b) )   each (B, S, I), I = expand d
        w = v * x1
        y = W_out( x0 * (f * w + D w) ) + b          f one filter per channel

    `repeat` writes the projected channels `groups` times in a row, so W_in has 3 I / groups rows.
    """

    name = "hyena"

    expand: int = 4
    groups: int = 4
    kernel: int = 3
    filter_width: int = 4

    def inner(self, d: int) -> int:
        return self.expand * d

    def state_shapes(self, d: int, length: int) -> Shapes:
        # In a row that has read fewer positions than another, the first w are 0.
        inner = self.inner(d)
        return {"conv": [(self.kernel - 1, 3 * inner)], "cache": [(length, inner)]}

    def forward(self, p: Params, x: Array, state: State, ctx: ForwardContext) -> Output:
        ops, xp = ctx.ops, ctx.ops.xp
        (x0, x1, v), last = self.projected(p, x, state, ctx)
        w = v * x1
        all_w = w if state[1] is None else xp.concatenate([state[1], w], 1)
        f = hyena_filter(p, all_w.shape[1], ctx.max_length, xp)
        y = x0 * (ops.long_conv(all_w, f)[:, -x.shape[1] :] + p["skip"] * w)
        return ctx.linear(y, p, "out_proj"), (last, all_w[:, -ctx.max_length :])


class MHHyena(_LongConvolution):
    """Multi-head Hyena, which multiplies keys with values.

        [q; v; k] = conv_k( repeat(W_in u + b) )     each (B, S, d), heads of dh = d / heads
        Z_t = sum over j <= t of f_{t-j} k_j v_j^T + D k_t v_t^T          f and D one per head
        y = W_out( q^T Z ) + b

    `forward` sums (q_t . k_j) f_{t-j} v_j, which is the same without the matrices.
    """

    name = "mh-hyena"

    heads: int = 8
    groups: int = 4
    kernel: int = 3
    filter_width: int = 2

    def filters(self, d: int) -> int:
        return self.heads

    def state_shapes(self, d: int, length: int) -> Shapes:
        # In a row that has read fewer positions than another, the first keys and values are 0.
        cache = [(length, self.heads, d // self.heads)] * 2
        return {"conv": [(self.kernel - 1, 3 * d)], "cache": cache}

    def forward(self, p: Params, x: Array, state: State, ctx: ForwardContext) -> Output:
        xp, (B, S, d) = ctx.ops.xp, x.shape
        parts, last = self.projected(p, x, state, ctx)
        q, v, k = (y.reshape(B, S, self.heads, -1) for y in parts)
        if state[1] is not None:
            k, v = xp.concatenate([state[1], k], 1), xp.concatenate([state[2], v], 1)
        L = k.shape[1]
        # Weight of key j for query t, whose own key is L - S + t.
        f = hyena_filter(p, L, ctx.max_length, xp)
        f = xp.concatenate([f[:, :1] + p["skip"][:, None], f[:, 1:]], 1)
        distance = xp.arange(L - S, L, like=x)[:, None] - xp.arange(0, L, like=x)[None, :]
        weights = xp.where(
            distance >= 0, f[:, xp.maximum(distance, 0).flatten()].reshape(-1, S, L), 0.0
        )
        scores = xp.einsum("bthd,bjhd->bhtj", q, k) * weights
        y = xp.einsum("bhtj,bjhd->bthd", scores, v)
        y = ctx.linear(y.reshape(B, S, d), p, "out_proj")
        return y, (last, k[:, -ctx.max_length :], v[:, -ctx.max_length :])


@lru_cache(maxsize=16)
def _distances(S: int, T: int, channels: int) -> tuple[Any, Any]:
    """Return z (S, 3) and the decay (channels, S) of S distances, float64."""
    t = np.arange(S) / T
    z = np.stack([t, np.cos(2 * np.pi * t), np.sin(2 * np.pi * t)], -1)
    return z, np.exp(-np.linspace(SLOWEST, FASTEST, channels)[:, None] * t)


def hyena_filter(p: Params, S: int, T: int, xp: Arrays) -> Array:
    """Return the filter at S distances, (channels, S) float32; 0 from T on."""
    w = p[f"filter.{LAYERS - 1}.weight"]
    z, decay = (xp.from_numpy(x, like=w) for x in _distances(min(S, T), T, len(w)))
    for number in range(LAYERS - 1):
        z = xp.sin(xp.linear(z, p[f"filter.{number}.weight"], p[f"filter.{number}.bias"]))
    return xp.pad((w @ z.T) * decay, [(0, 0), (0, max(S - T, 0))])
