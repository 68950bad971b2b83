"""The delta rule: memories that replace the value of a key.

    q, k_i, v_i = SiLU(conv_k(W u))              depthwise, causal; heads of dh = d / heads
    q, k_i = q / |q| / sqrt(dh), k_i / |k_i|     of every head, i = 1 .. n
    beta_i = sigmoid(W_b u)                      (B, S, n, heads), or twice that if negative
    a = -exp(A_log) softplus(W_a u + bias)       (B, S, heads), or 0 without decay
    H_0 = exp(a_t) S_{t-1}
    H_i = (I - beta_i k_i k_i^T) H_{i-1} + beta_i k_i v_i^T
    S_t = H_n,  h_t = S_t^T q_t
    y = W_out( SiLU(W_g u) * RMSNorm_head(h) )

    delta-net             n = 1, no decay, no gate at the output (SiLU(W_g u) is 1)
    gated-delta-net       n = 1
    gated-delta-product   n = householders

The transition of S has the eigenvalue 1 - beta in the direction of k. A beta above 1 makes it
negative, which a linear recurrence needs to count modulo 2 at any length. A product of n
generalised Householder matrices reaches any orthogonal matrix that moves at most n directions, so
more of them track larger groups of permutations. A token is n positions of `recurrence`, of which
the first decays and the last one has a query.

Softplus of the bias begins log-uniform in 0.001 to 0.1, exp(A_log) uniform in 1 to 16.

Sources: Yang et al. 2024, DeltaNet, arXiv:2406.06484; Grazzi et al. 2024, Unlocking State-Tracking
in Linear RNNs Through Negative Eigenvalues, arXiv:2411.12537; Yang et al. 2024, Gated Delta
Networks, arXiv:2412.06464; Siems et al. 2025, DeltaProduct, arXiv:2502.10297.
"""

from __future__ import annotations

from mlxhog.models.mad.layer import *

CHUNK_SIZE = 16


@dataclass(frozen=True, kw_only=True)
class DeltaRule(Layer):
    """Numbers of every layer of the delta rule: heads, and taps of the convolution."""

    householders = 1  # n, keys and values of a token

    heads: int = 4
    conv: int = 4

    def check(self, d: int) -> None:
        check_heads(self.heads, d)
        check_positive(conv=self.conv, householders=self.householders)

    def channels(self, d: int) -> int:
        """Channels of the convolution: a query, n keys and n values."""
        return (1 + 2 * self.householders) * d

    def state_shapes(self, d: int, length: int) -> Shapes:
        dh = d // self.heads
        return {"cell": [(self.heads, dh, dh)], "conv": [(self.conv - 1, self.channels(d))]}

    def query_key_value(
        self, ops: Ops, taps: Array, u: Array, conv: Array | None, eps: float
    ) -> tuple[Array, Array, Array, Array]:
        """Return q (B, S, heads, dh), k and v (B, S n, heads, dh), and the convolution's state.

        Args:
            ops: the operators.
            taps: of the convolution.
            u: (B, S, channels), before the convolution.
            conv: the convolution's state before the first position; None is zeros.
            eps: added to the squared length of a query and of a key.
        """
        u, conv = ops.causal_conv(u, taps, None, state=conv, silu=True)
        B, _, channels = u.shape
        d = channels // (1 + 2 * self.householders)
        parts = ops.xp.split(u, [d, d + self.householders * d], -1)
        q, k, v = (y.reshape(B, -1, self.heads, d // self.heads) for y in parts)
        return unit(ops, q, eps, q.shape[-1] ** -0.5), unit(ops, k, eps), v, conv


@dataclass(frozen=True, kw_only=True)
class _Delta(DeltaRule):
    """All three layers; which numbers can be set depends on the layer."""

    decay = False
    negative = False
    gated = True

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        yield linear("qkv_proj.weight", self.channels(d), d)
        yield taps("conv.weight", self.channels(d), self.conv)
        yield linear("b_proj.weight", self.householders * self.heads, d, product=False)
        if self.decay:
            yield linear("a_proj.weight", self.heads, d, product=False)
            yield ParamSpec("dt_bias", (self.heads,), "inverse_softplus:0.001:0.1")
            yield ParamSpec("A_log", (self.heads,), "log_of_uniform:1:16")
        if self.gated:
            yield linear("g_proj.weight", d, d)
        yield ParamSpec("head_norm.weight", (d // self.heads,), "ones")
        yield linear("out_proj.weight", d, d)

    def forward(
        self, cfg: Sizes, p: Params, x: Array, state: State | None, run: Pass[Array]
    ) -> tuple[Array, State]:
        ops, xp = run.ops, run.ops.xp
        B, S, d = x.shape
        n, NH = self.householders, self.heads
        cell, conv = (None, None) if state is None else state
        names = ["qkv_proj", *["g_proj"] * self.gated, "b_proj", *["a_proj"] * self.decay]
        u, *rest = run.linears(x, p, *names)
        *g, b = rest[: self.gated + 1]
        q, k, v, conv = self.query_key_value(ops, p["conv.weight"], u, conv, cfg.norm_eps)
        beta = write_strength(ops, b.reshape(B, S * n, NH), self.negative)
        if self.decay:
            dt = ops.activate(xp.float32(rest[-1]) + p["dt_bias"], "softplus")
            decay = -xp.exp(p["A_log"]) * dt
        else:
            decay = xp.zeros((B, S, NH), like=beta)
        if n > 1:
            q = xp.pad(q[:, :, None], [(0, 0), (0, 0), (n - 1, 0), (0, 0), (0, 0)])
            decay = xp.pad(decay[:, :, None], [(0, 0), (0, 0), (0, n - 1), (0, 0)])
            q, decay = q.reshape(k.shape), decay.reshape(beta.shape)
        h, cell = ops.recurrence(
            q, k, v, decay[..., None], beta=beta, chunk_size=CHUNK_SIZE, state=cell
        )
        if n > 1:
            h = h.reshape(B, S, n, NH, d // NH)[:, :, -1]
        h = ops.rms_norm(h, p["head_norm.weight"], cfg.norm_eps).reshape(B, S, d)
        h = ops.swiglu(g[0], h) if g else h
        return run.linear(h, p, "out_proj"), (cell, conv)


@dataclass(frozen=True, kw_only=True)
class DeltaNet(_Delta):
    """Numbers of the layer: those of the delta rule, and whether beta reaches 2."""

    name = "delta-net"
    about = "a memory that replaces the value of a key"
    gated = False

    negative: bool = False


@dataclass(frozen=True, kw_only=True)
class GatedDeltaNet(_Delta):
    """Numbers of the layer: those of the delta rule, and whether the memory decays."""

    name = "gated-delta-net"
    about = "a memory that replaces the value of a key, and decays as a whole"

    decay: bool = True


@dataclass(frozen=True, kw_only=True)
class GatedDeltaProduct(_Delta):
    """Numbers of the layer: those of the two others, and n."""

    name = "gated-delta-product"
    about = "a memory that replaces the values of several keys per token"

    householders: int = 2
    decay: bool = True
    negative: bool = True


def unit(ops: Ops, x: Array, eps: float, length: float = 1.0) -> Array:
    """Return heads x (..., dh) scaled to a length, length * x / sqrt(|x|^2 + eps)."""
    dh = x.shape[-1]
    return ops.rms_norm(x, ops.xp.full((dh,), length * dh**-0.5, like=x), eps / dh)


def write_strength(ops: Ops, b: Array, negative: bool = False) -> Array:
    """Return beta of its pre-activation: 0 to 1, or 0 to 2 where eigenvalues may be negative."""
    beta = ops.activate(ops.xp.float32(b), "sigmoid")
    return 2.0 * beta if negative else beta
