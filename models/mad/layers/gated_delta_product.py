"""Gated DeltaProduct: several steps of the delta rule per token, with a decay before the first.

    q, k_i, v_i = SiLU(conv_k(W u))              i = 1 .. n, n = householders; heads of dh
    q, k_i = q / |q| / sqrt(dh), k_i / |k_i|     of every head
    beta_i = 2 sigmoid(W_b u)                    (B, S, n, heads), or half of it, negative = false
    a = -exp(A_log) softplus(W_a u + bias)       (B, S, heads), or 0 with decay = false
    H_0 = exp(a_t) S_{t-1}
    H_i = (I - beta_i k_i k_i^T) H_{i-1} + beta_i k_i v_i^T
    S_t = H_n,  h_t = S_t^T q_t
    y = W_out( SiLU(W_g u) * RMSNorm_head(h) )

The product of n generalised Householder matrices reaches any orthogonal matrix that moves at most
n directions, so more of them track larger groups of permutations. With n = 1 this is
gated DeltaNet. A token is n positions of `delta_cell`, and only the last one has a query.

Source: Siems et al. 2025, DeltaProduct, arXiv:2502.10297.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from mlxhog.models.mad.layer import (
    Array,
    Float,
    Params,
    ParamSpec,
    Pass,
    Sizes,
    State,
    check_positive,
    linear,
    taps,
)
from mlxhog.models.mad.layers.delta_rule import (
    CHUNK_SIZE,
    DeltaRule,
    decay_spec,
    log_decay,
    log_decay_float64,
    write_strength,
)
from mlxhog.models.ops.reference.layers_numpy import rms_norm, sigmoid, silu


@dataclass(frozen=True, kw_only=True)
class GatedDeltaProduct(DeltaRule):
    """Numbers of the layer.

    Attributes:
        heads: of the memory.
        conv: taps of the convolution.
        householders: n, steps of the delta rule per token.
        decay: whether the memory decays.
        negative: whether eigenvalues of a step may be negative.
    """

    name: ClassVar[str] = "gated-delta-product"
    about: ClassVar[str] = "a memory that replaces the values of several keys per token"
    kind: ClassVar[Literal["mixer", "channel"]] = "mixer"

    householders: int = 2
    decay: bool = True
    negative: bool = True

    def check(self, d: int) -> None:
        """Refuse numbers that cannot be built at width d."""
        super().check(d)
        check_positive(householders=self.householders)

    @property
    def keys(self) -> int:
        """n, keys and values of a token."""
        return self.householders

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        """Declare the parameters; linear maps begin as torch.nn.Linear's do."""
        yield linear("qkv_proj.weight", self.channels(d), d)
        yield taps("conv.weight", self.channels(d), self.conv)
        yield linear("b_proj.weight", self.householders * self.heads, d, product=False)
        if self.decay:
            yield from decay_spec(self.heads, d)
        yield linear("g_proj.weight", d, d)
        yield ParamSpec("head_norm.weight", (d // self.heads,), "ones")
        yield linear("out_proj.weight", d, d)

    def forward(
        self, cfg: Sizes, p: Params, x: Array, state: State | None, run: Pass[Array]
    ) -> tuple[Array, State]:
        """Map x (B, S, d) to y (B, S, d) and the state after the last position."""
        ops, xp = run.ops, run.ops.xp
        B, S, d = x.shape
        n, NH = self.householders, self.heads
        dh = d // NH
        cell, conv = (None, None) if state is None else state
        names = ("qkv_proj", "g_proj", "b_proj", *(("a_proj",) if self.decay else ()))
        u, g, b, *a = ops.linears(x, [p[f"{name}.weight"] for name in names])
        q, k, v, conv = self.query_key_value(ops, p["conv.weight"], u, conv, cfg.norm_eps)
        # The last of a token's steps reads.
        q = xp.pad(q[:, :, None], [(0, 0), (0, 0), (n - 1, 0), (0, 0), (0, 0)]).reshape(k.shape)
        beta = write_strength(ops, b.reshape(B, S * n, NH), self.negative)
        if self.decay:  # before the first of a token's steps
            first = log_decay(ops, p, a[0])[:, :, None]
            decay = xp.pad(first, [(0, 0), (0, 0), (0, n - 1), (0, 0)]).reshape(beta.shape)
        else:
            decay = xp.zeros_like(beta)
        h, cell = ops.delta_cell(q, k, v, decay, beta, chunk_size=CHUNK_SIZE, state=cell)
        h = h.reshape(B, S, n, NH, dh)[:, :, -1]
        h = ops.rms_norm(h, p["head_norm.weight"], cfg.norm_eps)
        (y,) = ops.linears(ops.swiglu(g, h.reshape(B, S, d)), [p["out_proj.weight"]])
        return y, (cell, conv)

    def reference(self, cfg: Sizes, p: Mapping[str, Float], x: Float) -> Float:
        """Map x (B, S, d) to y (B, S, d) in float64, step by step of every position."""
        B, S, d = x.shape
        n, NH = self.householders, self.heads
        q, k, v = self.query_key_value_float64(p, x, cfg.norm_eps)
        dh = q.shape[-1]
        k, v = (y.reshape(B, S, n, NH, dh) for y in (k, v))
        beta = (1 + self.negative) * sigmoid(x @ p["b_proj.weight"].T).reshape(B, S, n, NH)
        keep = np.exp(log_decay_float64(p, x)) if self.decay else np.ones((B, S, NH))
        H, h = np.zeros((B, NH, dh, dh)), np.empty((B, S, NH, dh))
        for t in range(S):
            H = keep[:, t, :, None, None] * H
            for i in range(n):
                k_i, v_i, beta_i = k[:, t, i], v[:, t, i], beta[:, t, i, :, None]
                write = beta_i * (v_i - np.einsum("bhkv,bhk->bhv", H, k_i))
                H = H + k_i[..., None] * write[:, :, None]
            h[:, t] = np.einsum("bhkv,bhk->bhv", H, q[:, t])
        normed = rms_norm(h, p["head_norm.weight"], cfg.norm_eps).reshape(B, S, d)
        return (silu(x @ p["g_proj.weight"].T) * normed) @ p["out_proj.weight"].T
