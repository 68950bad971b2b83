"""State-space duality, as in Mamba-2: one speed of forgetting for a whole head.

    z, (x, B, C), dt = W_in u                    inner = expand d;  N, N;  heads
    x, B, C = SiLU(conv_k(x, B, C))              depthwise, causal; x cut into its heads
    dt = softplus(dt + bias),  a = -exp(A_log) dt
    S_t = exp(a_t) S_{t-1} + dt_t B_t x_t^T      (N, inner / heads), B and C common to all heads
    h_t = S_t^T C_t + D x_t
    y = W_out RMSNorm( h * SiLU(z) )

The state of all heads has inner N numbers. Softplus of the bias begins log-uniform in 0.001 to 0.1,
exp(A_log) uniform in 1 to 16.

Source: Dao and Gu 2024, Transformers are SSMs, arXiv:2405.21060.
"""

from __future__ import annotations

from mlxhog.models.mad.layer import *

CHUNK_SIZE = 32


@dataclass(frozen=True, kw_only=True)
class SSD(Layer):
    """Numbers of the layer.

    Attributes:
        heads: parts of the inner width that forget together.
        expand: inner width in widths of the model.
        states: N, numbers kept by each inner channel.
        conv: taps of the convolution.
    """

    name = "ssd"
    about = "state-space duality (Mamba-2): one speed of forgetting for a head"

    heads: int = 4
    expand: int = 2
    states: int = 16
    conv: int = 4

    def check(self, d: int) -> None:
        check_positive(expand=self.expand, states=self.states, conv=self.conv)
        check_heads(self.heads, self.expand * d, "inner width")

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        inner = self.expand * d
        xbc = inner + 2 * self.states
        yield linear("z_proj.weight", inner, d)
        yield linear("xbc_proj.weight", xbc, d)
        yield linear("dt_proj.weight", self.heads, d, product=False)
        yield ParamSpec("dt_bias", (self.heads,), "inverse_softplus:0.001:0.1")
        yield taps("conv.weight", xbc, self.conv)
        yield bias("conv.bias", xbc, self.conv)
        yield ParamSpec("A_log", (self.heads,), "log_of_uniform:1:16")
        yield ParamSpec("D", (self.heads,), "ones")
        yield ParamSpec("out_norm.weight", (inner,), "ones")
        yield linear("out_proj.weight", d, inner)

    def state_shapes(self, d: int, length: int) -> Shapes:
        inner, N = self.expand * d, self.states
        cell = (self.heads, N, inner // self.heads)
        return {"cell": [cell], "conv": [(self.conv - 1, inner + 2 * N)]}

    def forward(
        self, cfg: Sizes, p: Params, x: Array, state: State | None, run: Pass[Array]
    ) -> tuple[Array, State]:
        ops, xp = run.ops, run.ops.xp
        B, S, d = x.shape
        inner, N, heads = self.expand * d, self.states, self.heads
        cell, conv = (None, None) if state is None else state
        names = ("z_proj", "xbc_proj", "dt_proj")
        z, xbc, dt = ops.linears(
            x, [p[f"{name}.weight"] for name in names], [None, None, p["dt_bias"]]
        )
        xbc, conv = ops.causal_conv(xbc, p["conv.weight"], p["conv.bias"], state=conv, silu=True)
        u = xbc[..., :inner].reshape(B, S, heads, inner // heads)
        Bt, Ct = (
            xp.broadcast_to(y[:, :, None], (B, S, heads, N))
            for y in (xbc[..., inner : inner + N], xbc[..., inner + N :])
        )
        dt = ops.activate(xp.float32(dt), "softplus")[..., None]
        h, cell = ops.recurrence(
            Ct, Bt, dt * u, -xp.exp(p["A_log"])[:, None] * dt, chunk_size=CHUNK_SIZE, state=cell
        )
        h = (h + p["D"][:, None] * u).reshape(B, S, inner)
        h = ops.rms_norm(ops.swiglu(z, h), p["out_norm.weight"], cfg.norm_eps)
        return run.linear(h, p, "out_proj"), (cell, conv)
