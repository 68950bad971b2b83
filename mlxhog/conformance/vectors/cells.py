"""The equations of cells, as `models/ops` computes them in float64.

Axes: B sequences, S positions (t), H heads, keys of width K, values of width V; E channels, N
states of each. Upper letters in a text are axes in brackets, and tensors outside of them.
"""

import numpy as np

from mlxhog.conformance.vectors.equations import (
    KINDS,
    Array,
    Equations,
    Named,
    Options,
    Results,
    Tensor,
)
from mlxhog.models.layers.delta import MIN_LOG_DECAY
from mlxhog.models.layers.linear import MIN_LAMBDA, slot_attention
from mlxhog.models.ops.operators import Ops

Shape = tuple[int, ...]
Random = np.random.Generator

CHUNK = 16  # positions that chunkwise implementations of ours compute in parallel

ZERO_START = "A state is 0 before the first position, unless it is given."
RESETS = "Where reset_mask [B,S] is 1, the state is set to 0 before the position."


# -- values --------------------------------------------------------------------------------------


def normal(rng: Random, shape: Shape, large: bool) -> Array:
    """Return standard normal values."""
    return rng.standard_normal(shape)


def _input_gate(rng: Random, shape: Shape, large: bool) -> Array:
    return rng.standard_normal(shape) * (20.0 if large else 1.0)


def _forget_gate(rng: Random, shape: Shape, large: bool) -> Array:
    """Return pre-activations of which most keep the state; large ones are of both signs."""
    x = rng.standard_normal(shape)
    return 20.0 * x if large else 2.0 + 1.5 * x


def _log_decay(rng: Random, shape: Shape, large: bool) -> Array:
    """Return logarithms of decays, below 0; large ones lose a state at once, or none of it."""
    x = rng.standard_normal(shape)
    return -np.minimum(np.exp(2.0 * x), 40.0) if large else -np.exp(x - 1.5)


def _share(rng: Random, shape: Shape, large: bool) -> Array:
    """Return numbers in (0, 1), or beside 0 and 1."""
    return np.asarray(1.0 / (1.0 + np.exp(-rng.standard_normal(shape) * (8.0 if large else 1.0))))


def _strength(rng: Random, shape: Shape, large: bool) -> Array:
    return np.multiply(_share(rng, shape, large), 2.0 if large else 1.0)


def _short(rng: Random, shape: Shape, large: bool) -> Array:
    """Return vectors along the last axis that are not longer than 1, also when rounded."""
    x = rng.standard_normal(shape)
    return np.asarray(0.99 * x / np.linalg.norm(x, axis=-1, keepdims=True))


def _removed(rng: Random, shape: Shape, large: bool) -> Array:
    return np.multiply(_short(rng, shape, large), 0.5)


def _rwkv_decay(rng: Random, shape: Shape, large: bool) -> Array:
    return np.multiply(_share(rng, shape, large), MIN_LOG_DECAY)


def _positive(rng: Random, shape: Shape, large: bool) -> Array:
    return np.asarray(np.exp(rng.standard_normal(shape) * (2.0 if large else 0.5) - 0.5))


def _ridge(rng: Random, shape: Shape, large: bool) -> Array:
    """Return numbers above the layer's least one: with less, a solution is no longer exact."""
    return MIN_LAMBDA + _positive(rng, shape, False)


def _negative(rng: Random, shape: Shape, large: bool) -> Array:
    return -_positive(rng, shape, large)


def gram(rng: Random, shape: Shape, large: bool) -> Array:
    """Return symmetric positive matrices that are exact in narrow types."""
    x = rng.integers(-2, 3, shape)
    return np.asarray(x @ x.swapaxes(-1, -2) / 4.0)


def _queries(rng: Random, shape: Shape, large: bool) -> Array:
    """Return queries; beside large gates small ones, so that eps counts in the denominator."""
    x = rng.standard_normal(shape)
    return x * np.where(rng.random((*shape[:-1], 1)) < 0.5, 2.0**-7, 1.0) if large else x


def _weights(rng: Random, shape: Shape, large: bool) -> Array:
    return np.asarray(rng.standard_normal(shape) / np.sqrt(shape[-1]))


# -- results -------------------------------------------------------------------------------------


def _mlstm(ops: Ops, x: Named, options: Options) -> Results:
    state = [x.get(f"state.{name}") for name in "Cnm"]
    h, (C, n, m) = ops.mlstm_cell(
        *(x[name] for name in "qkvif"), chunk_size=CHUNK, eps=options["eps"], state=state,
        reset_mask=x.get("reset_mask"),
    )  # fmt: skip
    return {"h": h, "state.C": C, "state.n": n, "state.m": m}


def _slstm(ops: Ops, x: Named, options: Options) -> Results:
    state = [x.get(f"state.{name}") for name in "hcnm"]
    h, last = ops.slstm_cell(
        *(x[name] for name in "ifzoRb"),
        state=None if state[0] is None else state,
        reset_mask=x.get("reset_mask"),
    )
    return {"h": h} | {f"state.{name}": y for name, y in zip("hcnm", last, strict=True)}


def _delta(ops: Ops, x: Named, options: Options) -> Results:
    """Return the results of the delta rule, or without beta of gated linear attention."""
    decay = x["log_decay"]
    h, S = ops.recurrence(
        x["q"], x["k"], x["v"], decay if decay.ndim == 4 else decay[..., None],
        beta=x.get("beta"), read=x.get("read"), removal=x.get("removal"),
        scale=x["q"].shape[-1] ** -0.5, chunk_size=CHUNK, state=x.get("state.S"),
    )  # fmt: skip
    return {"h": h, "state.S": S}


def _rwkv7(ops: Ops, x: Named, options: Options) -> Results:
    h, S = ops.recurrence(
        x["r"], x["k"], x["v"], x["w"], read=x["kappa"], removal=x["a"] * x["kappa"],
        chunk_size=CHUNK, state=x.get("state.S"),
    )  # fmt: skip
    return {"h": h, "state.S": S}


def _mamba2(ops: Ops, x: Named, options: Options) -> Results:
    u, dt = x["x"], x["dt"][..., None]
    shape = (*u.shape[:3], x["B"].shape[-1])
    B, C = (ops.xp.broadcast_to(x[name][:, :, None], shape) for name in "BC")
    state = x.get("state.S")
    h, S = ops.recurrence(C, B, dt * u, x["A"][:, None] * dt, chunk_size=CHUNK, state=state)
    return {"h": h + x["D"][:, None] * u, "state.S": S}


def _mamba(ops: Ops, x: Named, options: Options) -> Results:
    u, *others = (x[name] for name in ("x", "dt", "A", "B", "C"))
    h, S = ops.selective_scan(u, *others, state=x.get("state.S"))
    return {"h": h + x["D"] * u, "state.S": S}


def _gsa(ops: Ops, x: Named, options: Options) -> Results:
    state = (x.get("state.K"), x.get("state.V"))
    h, (K, V) = slot_attention(ops, x["q"], x["k"], x["v"], -x["log_decay"], state)
    return {"h": h, "state.K": K, "state.V": V}


def _mesa(ops: Ops, x: Named, options: Options) -> Results:
    q, k, v, decay = x["q"], x["k"], x["v"], x["log_decay"][..., None]
    p, H = ops.regression_cell(
        q, k, decay, x["ridge"], steps=30, chunk_size=CHUNK, state=x.get("state.H")
    )
    h, G = ops.recurrence(p, k, v, decay, chunk_size=CHUNK, state=x.get("state.G"))
    return {"h": h, "state.H": H, "state.G": G}


def _causal_conv(ops: Ops, x: Named, options: Options) -> Results:
    resets = x.get("reset_mask")
    y, last = ops.causal_conv(
        x["x"], x["w"], x["b"], state=x.get("state.conv"), silu=options["silu"],
        reset_mask=None if resets is None else resets != 0,
    )  # fmt: skip
    return {"y": y, "state.conv": last}


# -- equations -----------------------------------------------------------------------------------

_QKV = (Tensor("q", "B S H K", normal), Tensor("k", "B S H K", _short))
_V = Tensor("v", "B S H V", normal)
_S = Tensor("state.S", "B H K V", normal, "state", rounds=False)


def _decay(axes: str) -> Tensor:
    return Tensor("log_decay", axes, _log_decay, rounds=False)


def _convolution(name: str, *, silu: bool) -> Equations:
    end = "y = x sigmoid(x) of that sum" if silu else "y is that sum"
    return Equations(
        name=name,
        text=f"""\
Depthwise causal convolution of kernel 4{", through SiLU" * silu}, as in Mamba and the delta rules.
x [B,S,E]; w [E,1,4]; b [E]; y [B,S,E]; state conv [B,3,E]: the last 3 inputs, the latest last.
    b[e] + sum_j w[e,0,j] x[t - 3 + j, e]        j = 0 .. 3; {end}
Before the first position x is the state conv, 0 unless it is given. Where reset_mask [B,S] is 1 a
document begins, whose positions see no input of earlier ones; in the last state those are 0.""",
        tensors=(
            Tensor("x", "B S E", normal),
            Tensor("w", "E 1 4", _weights, "parameter"),
            Tensor("b", "E", normal, "parameter"),
            Tensor("state.conv", "B 3 E", normal, "state"),
        ),
        compute=_causal_conv,
        options={"silu": silu},
        resets=True,
        kinds=tuple(kind for kind in KINDS if kind != "gates"),
    )


_ALL = (
    Equations(
        name="mlstm",
        text=f"""\
mLSTM cell (Beck et al. 2024, xLSTM, arXiv:2405.04517), each head by itself.
q, k [B,S,H,K]; v [B,S,H,V]; i, f [B,S,H]; h [B,S,H,V]; state C [B,H,K,V], n [B,H,K], m [B,H].
logsig(x) = -log(1 + exp(-x)). At position t, with C, n, m the state before it:
    m' = max(logsig(f) + m, i)     F = exp(logsig(f) + m - m')     I = exp(i - m')
    C[a,b] = F C[a,b] + I k[a] v[b]        n[a] = F n[a] + I k[a]        m = m'
    num[b] = sum_a C[a,b] q[a] / sqrt(K)   den = sum_a n[a] q[a] / sqrt(K)
    h[b] = num[b] / (max(|den|, exp(-m)) + eps)
{ZERO_START} {RESETS}
Gradients are exact: m is a function of i, f and the first m, not a constant.""",
        tensors=(
            Tensor("q", "B S H K", _queries),
            Tensor("k", "B S H K", normal),
            _V,
            Tensor("i", "B S H", _input_gate, rounds=False),
            Tensor("f", "B S H", _forget_gate, rounds=False),
            Tensor("state.C", "B H K V", normal, "state", rounds=False),
            Tensor("state.n", "B H K", normal, "state", rounds=False),
            Tensor("state.m", "B H", normal, "state", rounds=False),
        ),
        compute=_mlstm,
        options={"eps": 1e-6},
        resets=True,
    ),
    Equations(
        name="slstm",
        text=f"""\
sLSTM cell (Beck et al. 2024, xLSTM, arXiv:2405.04517), each head by itself.
i, f, z, o [B,S,H,V]: pre-activations from the input; R [H,4V,V], b [4HV]: gate by gate, i f z o, so
b is [4,H,V] flattened, and row g V + a of R[head] is for element a of gate g.
h [B,S,H,V]; state h, c, n, m [B,H,V] each. logsig(x) = -log(1 + exp(-x)). At position t, with h, c,
n, m the state before it, all by element a of a head, g one of i f z o (0 .. 3):
    g~ = g + b[g] + sum_e R[g V + a, e] h[e]
    m' = max(logsig(f~) + m, i~), or i~ where n is 0
    I = exp(i~ - m')   F = exp(logsig(f~) + m - m'), at most 1
    c = F c + I tanh(z~)   n = F n + I   m = m'   h = sigmoid(o~) c / n
{ZERO_START} {RESETS}""",
        tensors=(
            *(Tensor(name, "B S H V", normal, rounds=False) for name in "zo"),
            Tensor("i", "B S H V", _input_gate, rounds=False),
            Tensor("f", "B S H V", _forget_gate, rounds=False),
            Tensor("R", "H 4V V", _weights, "parameter"),
            Tensor("b", "4HV", normal, "parameter", rounds=False),
            Tensor("state.h", "B H V", _share, "state", rounds=False),
            Tensor("state.c", "B H V", normal, "state", rounds=False),
            Tensor("state.n", "B H V", _positive, "state", rounds=False),
            Tensor("state.m", "B H V", normal, "state", rounds=False),
        ),
        compute=_slstm,
        resets=True,
    ),
    Equations(
        name="gated-delta-rule",
        text=f"""\
Gated delta rule (Yang et al. 2024, Gated Delta Networks, arXiv:2412.06464), each head by itself.
q, k [B,S,H,K]; v [B,S,H,V]; log_decay, beta [B,S,H]; h [B,S,H,V]; state S [B,H,K,V].
No |k| is above 1, beta is in [0, 2], log_decay at most 0. At position t:
    D[a,b] = exp(log_decay) S[a,b]        u[b] = v[b] - sum_a D[a,b] k[a]
    S[a,b] = D[a,b] + beta k[a] u[b]      h[b] = sum_a S[a,b] q[a] / sqrt(K)
{ZERO_START}""",
        tensors=(
            *_QKV, _V,
            _decay("B S H"),
            Tensor("beta", "B S H", _strength, rounds=False),
            _S,
        ),
        compute=_delta,
    ),
    Equations(
        name="kda",
        text=f"""\
Kimi delta attention (Kimi Team 2025, Kimi Linear, arXiv:2510.26692), each head by itself.
q, k, log_decay [B,S,H,K]; v [B,S,H,V]; beta [B,S,H]; h [B,S,H,V]; state S [B,H,K,V].
No |k| is above 1, beta is in [0, 2], log_decay at most 0. At position t:
    D[a,b] = exp(log_decay[a]) S[a,b]     u[b] = v[b] - sum_a D[a,b] k[a]
    S[a,b] = D[a,b] + beta k[a] u[b]      h[b] = sum_a S[a,b] q[a] / sqrt(K)
{ZERO_START}""",
        tensors=(
            *_QKV, _V,
            _decay("B S H K"),
            Tensor("beta", "B S H", _strength, rounds=False),
            _S,
        ),
        compute=_delta,
    ),
    Equations(
        name="gla",
        text=f"""\
Gated linear attention (Yang et al. 2024, arXiv:2312.06635), each head by itself.
q, k, log_decay [B,S,H,K]; v [B,S,H,V]; h [B,S,H,V]; state S [B,H,K,V]. At position t:
    S[a,b] = exp(log_decay[a]) S[a,b] + k[a] v[b]        h[b] = sum_a S[a,b] q[a] / sqrt(K)
{ZERO_START}""",
        tensors=(*_QKV, _V, _decay("B S H K"), _S),
        compute=_delta,
    ),
    Equations(
        name="dplr",
        text=f"""\
Delta rule with a diagonal plus low-rank transition, each head by itself.
q, k, log_decay, read, removal [B,S,H,K]; v [B,S,H,V]; h [B,S,H,V]; state S [B,H,K,V].
At position t, with S the state before it:
    value[b] = sum_a S[a,b] read[a]
    S[a,b] = exp(log_decay[a]) S[a,b] - removal[a] value[b] + k[a] v[b]
    h[b] = sum_a S[a,b] q[a] / sqrt(K)
{ZERO_START}""",
        tensors=(
            *_QKV, _V,
            _decay("B S H K"),
            Tensor("read", "B S H K", _short),
            Tensor("removal", "B S H K", _removed),
            _S,
        ),
        compute=_delta,
    ),
    Equations(
        name="rwkv7",
        text=f"""\
RWKV-7 (Peng et al. 2025, arXiv:2503.14456), each head by itself, without the bonus of a position.
r, w, k, a, kappa [B,S,H,K]; v [B,S,H,V]; h [B,S,H,V]; state S [B,H,K,V]; w is the logarithm of the
decay, in [-exp(-1/2), 0]. At position t, with S the state before it:
    value[b] = sum_e S[e,b] kappa[e]
    S[e,b] = exp(w[e]) S[e,b] - a[e] kappa[e] value[b] + k[e] v[b]
    h[b] = sum_e S[e,b] r[e]
{ZERO_START}""",
        tensors=(
            Tensor("r", "B S H K", normal),
            Tensor("w", "B S H K", _rwkv_decay, rounds=False),
            Tensor("k", "B S H K", _short),
            _V,
            Tensor("a", "B S H K", _share),
            Tensor("kappa", "B S H K", _short),
            _S,
        ),
        compute=_rwkv7,
    ),
    Equations(
        name="mamba2",
        text=f"""\
Mamba-2, state-space duality (Dao and Gu 2024, arXiv:2405.21060), with B and C common to all heads.
x [B,S,H,V]; dt [B,S,H], at least 0; A [H], below 0; B, C [B,S,N]; D [H]; h [B,S,H,V];
state S [B,H,N,V]. At position t, in each head:
    S[n,b] = exp(A dt) S[n,b] + dt B[n] x[b]        h[b] = sum_n S[n,b] C[n] + D x[b]
{ZERO_START}""",
        tensors=(
            Tensor("x", "B S H V", normal),
            Tensor("dt", "B S H", _positive, rounds=False),
            Tensor("A", "H", _negative, "parameter", rounds=False),
            Tensor("B", "B S N", normal),
            Tensor("C", "B S N", normal),
            Tensor("D", "H", normal, "parameter"),
            Tensor("state.S", "B H N V", normal, "state", rounds=False),
        ),
        compute=_mamba2,
    ),
    Equations(
        name="mamba",
        text=f"""\
Selective scan of Mamba (Gu and Dao 2023, arXiv:2312.00752).
x, dt [B,S,E], dt at least 0; A [E,N], below 0; B, C [B,S,N]; D [E]; h [B,S,E]; state S [B,E,N].
At position t, in each channel e:
    S[n] = exp(dt A[n]) S[n] + dt x B[n]        h = sum_n S[n] C[n] + D x
{ZERO_START}""",
        tensors=(
            Tensor("x", "B S E", normal),
            Tensor("dt", "B S E", _positive, rounds=False),
            Tensor("A", "E N", _negative, "parameter", rounds=False),
            Tensor("B", "B S N", normal),
            Tensor("C", "B S N", normal),
            Tensor("D", "E", normal, "parameter"),
            Tensor("state.S", "B E N", normal, "state", rounds=False),
        ),
        compute=_mamba,
    ),
    Equations(
        name="gsa",
        text=f"""\
Gated slot attention (Zhang et al. 2024, arXiv:2409.07146), each head by itself, with N slots.
q, k, v [B,S,H,V]; log_decay [B,S,H,N], at most 0; h [B,S,H,V]; state K, V [B,H,N,V]: a key and a
value of every slot. At position t:
    K[n,b] = exp(log_decay[n]) K[n,b] + (1 - exp(log_decay[n])) k[b]        and so V of v
    p = softmax over n of sum_b K[n,b] q[b]        h[b] = sum_n p[n] V[n,b]
{ZERO_START}""",
        tensors=(
            *(Tensor(name, "B S H V", normal) for name in "qkv"),
            _decay("B S H N"),
            Tensor("state.K", "B H N V", normal, "state", rounds=False),
            Tensor("state.V", "B H N V", normal, "state", rounds=False),
        ),
        compute=_gsa,
    ),
    Equations(
        name="mesa",
        text=f"""\
MesaNet (von Oswald et al. 2025, arXiv:2506.05233): ridge regression of values on keys, each head by
itself. q, k [B,S,H,K]; v [B,S,H,V]; log_decay [B,S,H], at most 0; ridge [H,K], at least 1/4; h
[B,S,H,V]; state H [B,H,K,K], symmetric, and G [B,H,K,V]. At position t:
    H[a,e] = exp(log_decay) H[a,e] + k[a] k[e]        G[a,b] = exp(log_decay) G[a,b] + k[a] v[b]
    p solves (H^T + diag(ridge)) p = q                h[b] = sum_a G[a,b] p[a]
{ZERO_START} The gradient of the first H is that of a matrix of free entries.""",
        tensors=(
            *_QKV, _V,
            _decay("B S H"),
            Tensor("ridge", "H K", _ridge, "parameter"),
            Tensor("state.H", "B H K K", gram, "state", rounds=False),
            Tensor("state.G", "B H K V", normal, "state", rounds=False),
        ),
        compute=_mesa,
    ),
    _convolution("causal-conv", silu=False),
    _convolution("causal-conv-silu", silu=True),
)  # fmt: skip

CELLS = {one.name: one for one in _ALL}
"""All equations of cells by their names."""
