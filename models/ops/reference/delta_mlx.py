"""The gated delta rule in MLX, chunk by chunk; `kernels.py` says what it promises.

With b the sum of log_decay from the start of a chunk, S_0 the state before it and g = b_L, what a
position writes is k_t u_t^T with u_t = beta_t (v_t - a_t S_{t-1}^T k_t), so that

    (I + M) U = diag(beta) (V - diag(exp(b)) K S_0),   M_tj = beta_t exp(b_t - b_j) k_t . k_j, j < t
    h_t = S_0^T q_t exp(b_t) + sum_{j<=t} exp(b_t - b_j) (q_t . k_j) u_j
    S_L = exp(g) S_0 + sum_j exp(g - b_j) k_j u_j^T

I + M is inverted in halves, from blocks of one on: no power of M is formed, which could grow
beyond all digits where keys are alike.

Sources: Yang et al. 2024, Parallelizing Linear Transformers with the Delta Rule, arXiv:2406.06484;
Yang et al. 2024, Gated Delta Networks, arXiv:2412.06464.
"""

import mlx.core as mx
from mlx.core import array

from mlxhog.models.ops.reference.decay_mlx import (
    between,
    chunk_length,
    paired,
    sum_after,
    to_chunks,
)


def delta_cell(
    q: array,
    k: array,
    v: array,
    log_decay: array,
    beta: array,
    *,
    chunk_size: int,
    state: array | None = None,
) -> tuple[array, array]:
    """Run the rule over (B, S, NH, ...) from `state` (B, NH, DK, DV) or from zeros."""
    gates = (log_decay[..., None], beta[..., None])
    q, k, v, a, beta = (x.astype(mx.float32).swapaxes(1, 2) for x in (q, k, v, *gates))
    if state is None:
        state = mx.zeros((*q.shape[:2], q.shape[-1], v.shape[-1]))
    S = q.shape[2]
    L = chunk_length(chunk_size, S)
    q, k, v, a, beta = (to_chunks(x, L) for x in (q, k, v, a, beta))
    b = mx.cumsum(a, -2)
    inverse = unit_inverse(beta * (k @ k.swapaxes(-1, -2)) * between(a[..., 0], own=False))
    own = inverse @ (beta * v)
    seen = inverse @ (beta * mx.exp(b) * k)
    written = (k * mx.exp(sum_after(a))).swapaxes(-1, -2)
    decay = mx.exp(b[..., -1:, :])
    states, us = [state], []
    parts = (mx.unstack(x) for x in (own, seen, written, decay))
    for own_c, seen_c, written_c, decay_c in zip(*parts, strict=True):
        us.append(own_c - seen_c @ states[-1])
        states.append(decay_c * states[-1] + written_c @ us[-1])
    A = (q @ k.swapaxes(-1, -2)) * between(a[..., 0])
    h = A @ mx.stack(us) + (q * mx.exp(b)) @ mx.stack(states[:-1])
    return h.transpose(1, 0, 3, 2, 4).flatten(1, 2)[:, :S], states[-1]


def unit_inverse(M: array) -> array:
    """Return (I + M)^-1 of strictly lower triangular matrices (..., L, L), L a power of 2."""
    L = M.shape[-1]
    X = mx.ones((*M.shape[:-1], 1, 1))  # (..., blocks, m, m) on the diagonal
    m = 1
    while m < L:
        blocks = M.reshape(*M.shape[:-2], -1, 2, m, L // (2 * m), 2, m)
        pairs = blocks[..., :, 1, :, :, 0, :]  # (..., pairs, m, pairs, m)
        across = mx.moveaxis(mx.diagonal(pairs, 0, -4, -2), -1, -3)
        early, late = paired(X)
        below = -(late @ across @ early)
        above = mx.concatenate([early, mx.zeros_like(below)], -1)
        X = mx.concatenate([above, mx.concatenate([below, late], -1)], -2)
        m *= 2
    return X.squeeze(-3)
