"""Gated linear attention: every element of a key forgets at a speed of its own.

    q, k, v, g = W u                             each (B, S, d), cut into heads of dh = d / heads
    alpha = sigmoid(W_up W_down u + b)^(1 / 16)  (B, S, d), through a bottleneck of `rank`
    S_t = diag(alpha_t) S_{t-1} + k_t v_t^T
    h_t = S_t^T q_t / sqrt(dh)
    y = W_out( SiLU(g) * RMSNorm_head(h) )

Matrices begin small, uniform with Glorot's bound times 2^-2.5, as the reference's do.

Source: Yang et al. 2024, Gated Linear Attention, arXiv:2312.06635; mad-lab.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from mlxhog.models.mad.layer import (
    Array,
    FixedState,
    Float,
    Params,
    ParamSpec,
    Pass,
    Sizes,
    State,
    bias,
    check_heads,
    check_positive,
)
from mlxhog.models.ops.reference.layers_numpy import rms_norm, sigmoid, silu
from mlxhog.models.ops.reference.recurrences_numpy import decay_cell

CHUNK_SIZE = 32
SLOWNESS = 16.0
"""Root that is taken of the gate, so that a head forgets slowly to begin with."""


@dataclass(frozen=True, kw_only=True)
class GLA(FixedState):
    """Numbers of the layer: its heads, and the rank of the map to the gate."""

    name: ClassVar[str] = "gla"
    about: ClassVar[str] = "gated linear attention: every element of a key forgets at its own speed"
    kind: ClassVar[Literal["mixer", "channel"]] = "mixer"

    heads: int = 8
    rank: int = 16

    def check(self, d: int) -> None:
        """Refuse numbers that cannot be built at width d."""
        check_heads(self.heads, d)
        check_positive(rank=self.rank)

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        """Declare the parameters."""
        for name in ("q_proj", "k_proj", "v_proj", "g_proj"):
            yield _glorot(f"{name}.weight", d, d, product=True)
        yield _glorot("decay_down.weight", self.rank, d)
        yield _glorot("decay_up.weight", d, self.rank)
        yield bias("decay_up.bias", d, self.rank)
        yield ParamSpec("head_norm.weight", (d // self.heads,), "ones")
        yield _glorot("out_proj.weight", d, d, product=True)

    def state_shapes(self, d: int) -> Mapping[str, Sequence[tuple[int, ...]]]:
        """Return the shapes of S of every head."""
        dh = d // self.heads
        return {"cell": [(self.heads, dh, dh)]}

    def forward(
        self, cfg: Sizes, p: Params, x: Array, state: State | None, run: Pass[Array]
    ) -> tuple[Array, State]:
        """Map x (B, S, d) to y (B, S, d) and the state after the last position."""
        ops, xp = run.ops, run.ops.xp
        B, S, d = x.shape
        names = ("q_proj", "k_proj", "v_proj", "g_proj", "decay_down")
        q, k, v, g, low = ops.linears(x, [p[f"{name}.weight"] for name in names])
        (gate,) = ops.linears(low, [p["decay_up.weight"]], [p["decay_up.bias"]])
        log_alpha = ops.activate(-xp.float32(gate), "softplus") / -SLOWNESS
        q, k, v, log_alpha = (
            y.reshape(B, S, self.heads, d // self.heads) for y in (q, k, v, log_alpha)
        )
        h, last = ops.decay_cell(
            q,
            k,
            v,
            log_alpha,
            scale=q.shape[-1] ** -0.5,
            chunk_size=CHUNK_SIZE,
            state=state and state[0],
        )
        h = ops.rms_norm(h, p["head_norm.weight"], cfg.norm_eps)
        (y,) = ops.linears(ops.swiglu(g, h.reshape(B, S, d)), [p["out_proj.weight"]])
        return y, (last,)

    def reference(self, cfg: Sizes, p: Mapping[str, Float], x: Float) -> Float:
        """Map x (B, S, d) to y (B, S, d) in float64, position by position."""
        B, S, d = x.shape
        heads = (B, S, self.heads, d // self.heads)
        q, k, v, g = (
            x @ p[f"{name}.weight"].T for name in ("q_proj", "k_proj", "v_proj", "g_proj")
        )
        gate = x @ p["decay_down.weight"].T @ p["decay_up.weight"].T + p["decay_up.bias"]
        q, k, v = q.reshape(heads), k.reshape(heads), v.reshape(heads)
        log_alpha = np.log(sigmoid(gate).reshape(heads)) / SLOWNESS
        h, _ = decay_cell(q, k, v, log_alpha, scale=heads[-1] ** -0.5)
        h = rms_norm(h, p["head_norm.weight"], cfg.norm_eps).reshape(B, S, d)
        return (silu(g) * h) @ p["out_proj.weight"].T


def _glorot(name: str, out: int, inputs: int, *, product: bool = False) -> ParamSpec:
    bound = 2**-2.5 * math.sqrt(6 / (out + inputs))
    return ParamSpec(name, (out, inputs), f"uniform:{bound!r}", decay=True, product=product)
