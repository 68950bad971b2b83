"""Hyena: a convolution as long as the sequence; a small network computes its filter.

Order 2, between two gates:

    [x0; x1; v] = conv_k( repeat(W_in u + b) )   each (B, S, I), I = expand d; depthwise, causal
    w = v * x1
    y = W_out( x0 * (f * w + D w) ) + b          f one filter per channel

`repeat` writes the projected channels `groups` times in a row, so W_in has 3 I / groups rows.

With several heads, I = d: outer products of keys and values are convolved, and read by a query:

    [q; v; k] = conv_k( repeat(W_in u + b) )     each (B, S, d), heads of dh = d / heads
    Z_t = sum over j <= t of f_{t-j} k_j v_j^T + D k_t v_t^T          f and D one per head
    y = W_out( q^T Z ) + b

`forward` sums (q_t . k_j) f_{t-j} v_j, which is the same without the matrices.

The filter, with T the longest sequence, for every distance t = 0 .. T - 1:

    z_t = [t / T, cos(2 pi t / T), sin(2 pi t / T)]
    f_t = W3 sin(W2 sin(W1 sin(W0 z_t + b0) + b1) + b2) * exp(-(t / T) delta)

one entry per channel, whose decay delta is fixed: from ln(100) / 1.5 for the first channel to
ln(100) / 0.3 for the last. Distances from T on have no tap.

Sources: Poli et al. 2023, Hyena Hierarchy, arXiv:2302.10866; Massaroli et al. 2023, Laughing Hyena
Distillery, arXiv:2310.18780; the numbers of mad-lab, whose 16 are the width of a head.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import lru_cache

from mlxhog.models.mad.layer import *
from mlxhog.models.ops.reference.mlstm import Finite

FEATURES = 3
LAYERS = 4
SLOWEST, FASTEST = math.log(100) / 1.5, math.log(100) / 0.3


class _LongConvolution(Layer, ABC):
    """The projections, the short convolution and the filter that both kinds share."""

    bounded = True
    groups: int
    kernel: int
    filter_width: int

    @abstractmethod
    def inner(self, d: int) -> int:
        """Width of each of the three parts."""

    @abstractmethod
    def filters(self, d: int) -> int:
        """Number of filters."""

    def check(self, d: int) -> None:
        check_positive(kernel=self.kernel, filter_width=self.filter_width)
        channels = 3 * self.inner(d)
        if self.groups < 1 or channels % self.groups:
            raise ConfigError(
                f"groups is {self.groups}, and the projections have {channels} channels; "
                "choose a divisor"
            )

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        inner, filters = self.inner(d), self.filters(d)
        rows = 3 * inner // self.groups
        yield linear("in_proj.weight", rows, d)
        yield bias("in_proj.bias", rows, d)
        yield taps("conv.weight", 3 * inner, self.kernel)
        yield bias("conv.bias", 3 * inner, self.kernel)
        sizes = (FEATURES, *[self.filter_width] * (LAYERS - 1), filters)
        for number, (inputs, out) in enumerate(zip(sizes, sizes[1:], strict=False)):
            yield linear(f"filter.{number}.weight", out, inputs, product=False)
            if number < LAYERS - 1:
                yield bias(f"filter.{number}.bias", out, inputs)
        yield ParamSpec("skip", (filters,), "normal:1.0")
        yield linear("out_proj.weight", d, inner)
        yield bias("out_proj.bias", d, inner)

    def projected(
        self, p: Params, x: Array, state: State | None, run: Pass[Array]
    ) -> tuple[Array, Array]:
        """Return the three parts side by side (B, S, 3 I), and the convolution's last inputs."""
        u = run.linear(x, p, "in_proj")
        return run.ops.causal_conv(
            run.ops.xp.tile(u, (1, 1, self.groups)),
            p["conv.weight"],
            p["conv.bias"],
            state=None if state is None else state[0],
            silu=False,
        )


@dataclass(frozen=True, kw_only=True)
class Hyena(_LongConvolution):
    """Numbers of the layer.

    Attributes:
        expand: inner width as a multiple of d.
        groups: number of repetitions of the projected channels.
        kernel: k, taps of the short convolution.
        filter_width: width of the network that computes the filter.
    """

    name = "hyena"
    about = "a convolution as long as the sequence, whose filter a network makes"

    expand: int = 4
    groups: int = 4
    kernel: int = 3
    filter_width: int = 4

    def inner(self, d: int) -> int:
        """Width of each of the three parts."""
        return self.expand * d

    def filters(self, d: int) -> int:
        """Number of filters: one for each channel."""
        return self.inner(d)

    def check(self, d: int) -> None:
        check_positive(expand=self.expand)
        super().check(d)

    def state_shapes(self, d: int, length: int) -> Shapes:
        """Return the shapes of the convolution's last inputs, and of every w.

        Of a row that has read fewer positions than another, the first w are 0.
        """
        inner = self.inner(d)
        return {"conv": [(self.kernel - 1, 3 * inner)], "cache": [(length, inner)]}

    def forward(
        self, cfg: Sizes, p: Params, x: Array, state: State | None, run: Pass[Array]
    ) -> tuple[Array, State]:
        ops, xp = run.ops, run.ops.xp
        u, last = self.projected(p, x, state, run)
        x0, x1, v = xp.split(u, 3, -1)
        w = v * x1
        all_w = w if state is None else xp.concatenate([state[1], w], 1)
        f = filter_taps(p, all_w.shape[1], cfg.max_length, xp)
        y = x0 * (ops.long_conv(all_w, f)[:, -x.shape[1] :] + p["skip"] * w)
        return run.linear(y, p, "out_proj"), (last, all_w[:, -cfg.max_length :])


@dataclass(frozen=True, kw_only=True)
class MHHyena(_LongConvolution):
    """Numbers of the layer: `heads`, and those of `Hyena`."""

    name = "mh-hyena"
    about = "Hyena with several heads, which multiply keys with values"

    heads: int = 8
    groups: int = 4
    kernel: int = 3
    filter_width: int = 2

    def inner(self, d: int) -> int:
        """Width of each of the three parts."""
        return d

    def filters(self, d: int) -> int:
        """Number of filters: one for each head."""
        return self.heads

    def check(self, d: int) -> None:
        check_heads(self.heads, d)
        super().check(d)

    def state_shapes(self, d: int, length: int) -> Shapes:
        """Return the shapes of the convolution's last inputs, and of every key and value.

        Of a row that has read fewer positions than another, the first are 0.
        """
        cache = [(length, self.heads, d // self.heads)] * 2
        return {"conv": [(self.kernel - 1, 3 * d)], "cache": cache}

    def forward(
        self, cfg: Sizes, p: Params, x: Array, state: State | None, run: Pass[Array]
    ) -> tuple[Array, State]:
        ops, xp = run.ops, run.ops.xp
        B, S, d = x.shape
        u, last = self.projected(p, x, state, run)
        q, v, k = (y.reshape(B, S, self.heads, -1) for y in xp.split(u, 3, -1))
        if state is not None:
            k, v = xp.concatenate([state[1], k], 1), xp.concatenate([state[2], v], 1)
        L = k.shape[1]
        # Weight of key j for query t, whose own key is L - S + t.
        f = filter_taps(p, L, cfg.max_length, xp)
        f = xp.concatenate([f[:, :1] + p["skip"][:, None], f[:, 1:]], 1)
        ahead = xp.arange(L - S, L, like=x)[:, None] - xp.arange(0, L, like=x)[None, :]
        weights = xp.where(ahead >= 0, f[:, xp.maximum(ahead, 0).flatten()].reshape(-1, S, L), 0.0)
        finite = Finite(ops.form, k, v, heads=2)
        clean_k, clean_v = finite.inputs
        scores = xp.einsum("bthd,bjhd->bhtj", q, clean_k) * weights
        (y,) = finite.spoil(xp.einsum("bhtj,bjhd->bthd", scores, clean_v))
        y = run.linear(y.reshape(B, S, d), p, "out_proj")
        return y, (last, k[:, -cfg.max_length :], v[:, -cfg.max_length :])


@lru_cache(maxsize=16)
def features(S: int, T: int) -> Float:
    """Return z of the first S distances, (S, 3) float64."""
    t = np.arange(S) / T
    return np.stack([t, np.cos(2 * np.pi * t), np.sin(2 * np.pi * t)], -1)


@lru_cache(maxsize=16)
def decay(S: int, T: int, channels: int) -> Float:
    """Return exp(-(t / T) delta) of the first S distances, (channels, S) float64."""
    delta = np.linspace(SLOWEST, FASTEST, channels)
    return np.exp(-delta[:, None] * (np.arange(S) / T))


def filter_taps(p: Params, S: int, T: int, xp: Arrays[Array]) -> Array:
    """Return the taps of S distances, (channels, S) float32; those from T on are 0."""
    w = p[f"filter.{LAYERS - 1}.weight"]
    distances = min(S, T)
    z = xp.from_numpy(features(distances, T), like=w)
    for number in range(LAYERS - 1):
        z = xp.sin(xp.linear(z, p[f"filter.{number}.weight"], p[f"filter.{number}.bias"]))
    f = (w @ z.T) * xp.from_numpy(decay(distances, T, len(w)), like=w)
    return xp.pad(f, [(0, 0), (0, S - distances)])
