"""The gated delta rule in PyTorch, chunk by chunk; `kernels.py` says what it promises.

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

import torch
from torch import Tensor

from mlxhog.models.ops.reference.decay_torch import (
    between,
    chunk_length,
    paired,
    sum_after,
    to_chunks,
)


def delta_cell(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    *,
    chunk_size: int,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the rule over (B, S, NH, ...) from `state` (B, NH, DK, DV) or from zeros."""
    gates = (log_decay[..., None], beta[..., None])
    q, k, v, a, beta = (x.float().transpose(1, 2) for x in (q, k, v, *gates))
    if state is None:
        state = q.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1])
    S = q.shape[2]
    L = chunk_length(chunk_size, S)
    q, k, v, a, beta = (to_chunks(x, L) for x in (q, k, v, a, beta))
    b = torch.cumsum(a, -2)
    inverse = unit_inverse(beta * (k @ k.mT) * between(a[..., 0], own=False))
    own = inverse @ (beta * v)
    seen = inverse @ (beta * torch.exp(b) * k)
    written = (k * torch.exp(sum_after(a))).mT
    decay = torch.exp(b[..., -1:, :])
    states, us = [state], []
    for own_c, seen_c, written_c, decay_c in zip(own, seen, written, decay, strict=True):
        us.append(own_c - seen_c @ states[-1])
        states.append(decay_c * states[-1] + written_c @ us[-1])
    A = (q @ k.mT) * between(a[..., 0])
    h = A @ torch.stack(us) + (q * torch.exp(b)) @ torch.stack(states[:-1])
    return h.permute(1, 0, 3, 2, 4).flatten(1, 2)[:, :S], states[-1]


def unit_inverse(M: Tensor) -> Tensor:
    """Return (I + M)^-1 of strictly lower triangular matrices (..., L, L), L a power of 2."""
    L = M.shape[-1]
    X = torch.ones(*M.shape[:-1], 1, 1, device=M.device)  # (..., blocks, m, m) on the diagonal
    m = 1
    while m < L:
        blocks = M.reshape(*M.shape[:-2], -1, 2, m, L // (2 * m), 2, m)
        pairs = blocks[..., :, 1, :, :, 0, :]  # (..., pairs, m, pairs, m)
        across = pairs.diagonal(dim1=-4, dim2=-2).movedim(-1, -3)
        early, late = paired(X)
        below = -(late @ across @ early)
        above = torch.cat([early, torch.zeros_like(below)], -1)
        X = torch.cat([above, torch.cat([below, late], -1)], -2)
        m *= 2
    return X.squeeze(-3)
