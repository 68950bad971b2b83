"""Hyena of several heads: outer products of keys and values, convolved, and read by a query.

    [q; v; k] = conv_k( repeat(W_in u + b) )     each (B, S, d), heads of dh = d / heads
    Z_t = sum over j <= t of f_{t-j} k_j v_j^T + D k_t v_t^T          f and D one per head
    y = W_out( q^T Z ) + b

`forward` adds up (q_t . k_j) f_{t-j} v_j, which is the same sum without the matrices. `repeat` and
the filter are those of `hyena.py`.

Sources: Massaroli et al. 2023, Laughing Hyena Distillery, arXiv:2310.18780; the numbers of mad-lab,
whose 16 are the width of a head.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

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
    check_heads,
    linear,
)
from mlxhog.models.mad.layers.hyena import short_spec
from mlxhog.models.mad.layers.long_filter import (
    check_kernel,
    filter_spec,
    filter_taps,
    reference_taps,
)
from mlxhog.models.ops.reference.layers_numpy import causal_conv


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
        """Refuse numbers that cannot be built at width d."""
        check_heads(self.heads, d)
        check_kernel(self.kernel, self.groups, self.filter_width, 3 * d)

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        """Declare the parameters; maps and taps begin as torch's do."""
        yield from short_spec(d, d, self.groups, self.kernel)
        yield from filter_spec(self.heads, self.filter_width)
        yield ParamSpec("skip", (self.heads,), "normal:1.0")
        yield linear("out_proj.weight", d, d)
        yield bias("out_proj.bias", d, d)

    def state(self, d: int, length: int) -> Mapping[str, int]:
        """Return the sizes of every key and value, and the last inputs of the convolution."""
        return {"cache": 2 * d * length, "conv": 3 * d * (self.kernel - 1)}

    def init_state(self, d: int, B: int, xp: Arrays[Array]) -> State:
        """Return the convolution's last inputs (B, k - 1, 3 d), and keys and values (B, L, NH, dh).

        The inputs are zeros, and L is 0. Of a row that has read fewer than L positions, the first
        are 0.
        """
        empty = xp.zeros((B, 0, self.heads, d // self.heads))
        return xp.zeros((B, self.kernel - 1, 3 * d)), empty, empty

    def forward(
        self, cfg: Sizes, p: Params, x: Array, state: State | None, run: Pass[Array]
    ) -> tuple[Array, State]:
        """Map x (B, S, d) to y (B, S, d) and the state after the last position."""
        ops, xp = run.ops, run.ops.xp
        B, S, d = x.shape
        (u,) = ops.linears(x, [p["in_proj.weight"]], [p["in_proj.bias"]])
        u, last = ops.causal_conv(
            xp.tile(u, (1, 1, self.groups)),
            p["conv.weight"],
            p["conv.bias"],
            state=None if state is None else state[0],
            silu=False,
        )
        q, v, k = (y.reshape(B, S, self.heads, -1) for y in xp.split(u, 3, -1))
        if state is not None:
            k, v = xp.concatenate([state[1], k], 1), xp.concatenate([state[2], v], 1)
        L = k.shape[1]
        # Weight of key j for query t, whose own key is L - S + t.
        f = filter_taps(p, L, cfg.max_length, xp)
        f = xp.concatenate([f[:, :1] + p["skip"][:, None], f[:, 1:]], 1)
        ahead = xp.arange(L - S, L, like=x)[:, None] - xp.arange(0, L, like=x)[None, :]
        weights = xp.where(ahead >= 0, f[:, xp.maximum(ahead, 0).flatten()].reshape(-1, S, L), 0.0)
        scores = xp.einsum("bthd,bjhd->bhtj", q, k) * weights
        y = xp.einsum("bhtj,bjhd->bthd", scores, v).reshape(B, S, d)
        (y,) = ops.linears(y, [p["out_proj.weight"]], [p["out_proj.bias"]])
        return y, (last, k[:, -cfg.max_length :], v[:, -cfg.max_length :])

    def reference(self, cfg: Sizes, p: Mapping[str, Float], x: Float) -> Float:
        """Map x (B, S, d) to y (B, S, d) in float64, position by position."""
        B, S, d = x.shape
        u = np.tile(x @ p["in_proj.weight"].T + p["in_proj.bias"], (1, 1, self.groups))
        u, _, _ = causal_conv(u, p["conv.weight"], p["conv.bias"], silu=False)
        q, v, k = (y.reshape(B, S, self.heads, -1) for y in np.split(u, 3, -1))
        outer = np.einsum("bjhd,bjhe->bjhde", k, v)
        f = reference_taps(p, S, cfg.max_length)
        y = np.empty_like(q)
        for t in range(S):
            Z = np.einsum("hj,bjhde->bhde", f[:, t::-1], outer[:, : t + 1])
            Z += p["skip"][:, None, None] * outer[:, t]
            y[:, t] = np.einsum("bhd,bhde->bhe", q[:, t], Z)
        return y.reshape(B, S, d) @ p["out_proj.weight"].T + p["out_proj.bias"]
