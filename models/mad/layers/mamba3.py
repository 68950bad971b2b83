"""Mamba-3: a state-space cell of the trapezoidal rule, whose states turn.

    z, x, (B, C), (dt, a, l, w) = W u            inner, inner = expand d;  N, N;  heads x 3, turns
    dt = softplus(dt + bias),  alpha = exp(-max(softplus(a), 1e-4) dt),  l = sigmoid(l)
    B, C = RMSNorm(B) + b_B, RMSNorm(C) + b_C    biases of every head
    theta_t = theta_{t-1} + pi tanh(w_t) dt_t    of every head; turns B and C, pair by pair
    S_t = alpha_t S_{t-1} + (1 - l_t) dt_t alpha_t B_{t-1} x_{t-1}^T + l_t dt_t B_t x_t^T
    h_t = S_t^T C_t + D x_t
    y = W_out( SiLU(z) * h )

A turned pair is a complex number of the state. The trapezoidal rule weighs the inputs at both ends
of a step and takes the place of Mamba-2's convolution. Without its last term S_t is

    R_t = alpha_t ( R_{t-1} + (l_{t-1} dt_{t-1} + (1 - l_t) dt_t) B_{t-1} x_{t-1}^T )

which is one `recurrence` on the inputs of the position before, so S_t takes no second cell and no
later position. Softplus of the bias begins log-uniform in 0.001 to 0.1. B and C are common to all
heads but for their biases, which begin at 1. The form with several inputs and outputs per step
(MIMO) is not included: it saves memory traffic on a GPU in decoding.

Source: Lahoti et al. 2026, Mamba-3, arXiv:2603.15569; state-spaces/mamba.
"""

from __future__ import annotations

from mlxhog.models.mad.layer import *

CHUNK_SIZE = 32
SLOWEST = 1e-4
"""Least rate of forgetting."""


@dataclass(frozen=True, kw_only=True)
class Mamba3(Layer):
    """Numbers of the layer.

    Attributes:
        heads: parts of the inner width that forget and turn together.
        expand: inner width in widths of the model.
        states: N, numbers kept by each inner channel.
        rope_fraction: share of the states that turn.
    """

    name = "mamba3"
    about = "Mamba-3: states that turn, discretised by the trapezoidal rule"

    heads: int = 4
    expand: int = 2
    states: int = 16
    rope_fraction: float = 0.5

    @property
    def turns(self) -> int:
        """Pairs of states that turn."""
        return int(self.states * self.rope_fraction) // 2

    def check(self, d: int) -> None:
        check_positive(expand=self.expand, states=self.states)
        check_heads(self.heads, self.expand * d, "inner width")
        if not (0 < self.rope_fraction <= 1 and self.turns):
            raise ConfigError(
                f"rope_fraction is {self.rope_fraction} of {self.states} states; choose up to 1, "
                "so that at least 2 states turn"
            )

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        inner, N, heads = self.expand * d, self.states, self.heads
        yield linear("z_proj.weight", inner, d)
        yield linear("x_proj.weight", inner, d)
        yield linear("bc_proj.weight", 2 * N, d)
        yield linear("gates_proj.weight", 3 * heads + self.turns, d, product=False)
        yield ParamSpec("dt_bias", (heads,), "inverse_softplus:0.001:0.1")
        for name in "BC":
            yield ParamSpec(f"{name}_norm.weight", (N,), "ones")
            yield ParamSpec(f"{name}_bias", (heads, N), "ones")
        yield ParamSpec("D", (heads,), "ones")
        yield linear("out_proj.weight", d, inner)

    def state_shapes(self, d: int, length: int) -> Shapes:
        heads, N, P = self.heads, self.states, self.expand * d // self.heads
        return {"cell": [(heads, N, P), (heads, self.turns), (heads, N), (heads, P)]}

    def forward(
        self, cfg: Sizes, p: Params, x: Array, state: State | None, run: Pass[Array]
    ) -> tuple[Array, State]:
        ops, xp = run.ops, run.ops.xp
        B, S, _ = x.shape
        heads, N = self.heads, self.states
        z, u, bc, gates = run.linears(x, p, "z_proj", "x_proj", "bc_proj", "gates_proj")
        u, gates = u.reshape(B, S, heads, -1), xp.float32(gates)
        Bt, Ct = (
            ops.rms_norm(part, p[f"{name}_norm.weight"], cfg.norm_eps)[:, :, None]
            + p[f"{name}_bias"]
            for name, part in (("B", bc[..., :N]), ("C", bc[..., N:]))
        )
        dt = ops.activate(gates[..., :heads] + p["dt_bias"], "softplus")
        rate = xp.maximum(ops.activate(gates[..., heads : 2 * heads], "softplus"), SLOWEST)
        own = xp.sigmoid(gates[..., 2 * heads : 3 * heads])
        angle = math.pi * xp.tanh(gates[..., None, 3 * heads :]) * dt[..., None]
        h, last = turning_cell(ops, Ct, Bt, u, -rate * dt, dt, own, angle, state)
        h = (h + p["D"][:, None] * u).reshape(B, S, -1)
        return run.linear(ops.swiglu(z, h), p, "out_proj"), last


def turning_cell(
    ops: Ops,
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    dt: Array,
    own: Array,
    angle: Array,
    state: State | None,
) -> tuple[Array, State]:
    """Return h (B, S, heads, P), and S, theta, B and x of the last position.

    Args:
        ops: the operators.
        q: C before it turns, (B, S, heads, N).
        k: as q, B.
        v: x, (B, S, heads, P).
        log_decay: log alpha, (B, S, heads), at most 0.
        dt: as log_decay, at least 0.
        own: as log_decay, the share l of a position's own input.
        angle: by which each pair turns on, (B, S, heads, turns).
        state: as the second result; None is zeros.
    """
    xp, turns = ops.xp, angle.shape[-1]
    cell, theta, k_before, v_before = state or (
        None,
        xp.zeros_like(angle[:, 0]),
        xp.zeros_like(k[:, 0]),
        xp.zeros_like(v[:, 0]),
    )
    theta = theta[:, None] + xp.cumsum(angle, 1)
    cos, sin = xp.cos(theta), xp.sin(theta)

    def turned(x: Array) -> Array:
        pairs = x[..., : 2 * turns].reshape(*x.shape[:-1], turns, 2)
        real, imaginary = xp.unstack(pairs, -1)
        real, imaginary = real * cos - imaginary * sin, real * sin + imaginary * cos
        pairs = xp.stack([real, imaginary], -1).flatten(-2)
        return xp.concatenate([pairs, x[..., 2 * turns :]], -1)

    q, k = turned(xp.float32(q)), turned(xp.float32(k))
    of_own, of_before = own * dt, (1 - own) * dt
    written = xp.concatenate([xp.zeros_like(of_own[:, :1]), of_own[:, :-1]], 1) + of_before
    shifted_k = xp.concatenate([k_before[:, None], k[:, :-1]], 1)
    shifted_v = xp.concatenate([v_before[:, None], v[:, :-1]], 1)
    h, cell = ops.recurrence(
        q,
        shifted_k * (written * xp.exp(log_decay))[..., None],
        shifted_v,
        log_decay[..., None],
        chunk_size=CHUNK_SIZE,
        state=cell,
    )
    last = of_own[:, -1, :, None] * k[:, -1]
    cell = cell + last[..., None] * v[:, -1, :, None]
    h = h + (of_own * (q * k).sum(-1))[..., None] * v
    return h, (cell, _within_a_turn(theta[:, -1], ops), k[:, -1], v[:, -1])


def _within_a_turn(theta: Array, ops: Ops) -> Array:
    """Return an angle from 0 to 2 pi, whose digits do not depend on the turns before."""
    xp, turn = ops.xp, 2 * math.pi
    whole = xp.stop_gradient(xp.astype(xp.int32(theta / turn), theta))  # towards 0
    return theta - turn * xp.where(theta < turn * whole, whole - 1, whole)
