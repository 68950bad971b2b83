"""The linear recurrence with decay in PyTorch, chunk by chunk; `kernels.py` says what it promises.

With b the sum of log_decay from the start of a chunk, S_0 the state before it and g = b_L:

    h_t = scale ( S_0^T (q_t exp(b_t)) + sum_{j<=t} A_tj v_j )
    A_tj = q_t^T diag(exp(b_t - b_j)) k_j
    S_L = diag(exp(g)) S_0 + sum_j (k_j exp(g - b_j)) v_j^T

Every exponent is a sum of log_decay over positions that follow one another, so at most 0: nothing
overflows, however fast a head forgets. Each is summed up, none is the difference of two longer
sums, which would round at their size. Where every element of a key has its own decay, A is found in
halves: the scores from the later half of a block to its earlier half decay from the end of the
earlier to both sides, (q_t exp(sum up to t)) . (k_j exp(sum after j)); and so on inside the halves.

Sources: Yang et al. 2024, Gated Linear Attention, arXiv:2312.06635; Dao and Gu 2024, Transformers
are SSMs, arXiv:2405.21060.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

MASKED = -1e30
"""Stands for -inf in masked exponents: its gradient is 0, where -inf would give NaN."""


def decay_cell(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    *,
    scale: float,
    chunk_size: int,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence over (B, S, NH, ...) from `state` (B, NH, DK, DV) or from zeros."""
    q, k, v, a = (x.float().transpose(1, 2) for x in (scale * q, k, v, log_decay))
    if state is None:
        state = q.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1])
    S = q.shape[2]
    if S == 1:
        state = torch.exp(a).mT * state + k.mT * v
        return (q @ state).transpose(1, 2), state
    L = chunk_length(chunk_size, S)
    q, k, v, a = (to_chunks(x, L) for x in (q, k, v, a))
    b = torch.cumsum(a, -2)
    add = (k * torch.exp(sum_after(a))).mT @ v
    decay = torch.exp(b[..., -1:, :]).mT
    states = [state]
    for decay_c, add_c in zip(decay.unbind(), add.unbind(), strict=True):
        states.append(decay_c * states[-1] + add_c)
    A = (q @ k.mT) * between(a[..., 0]) if a.shape[-1] == 1 else _scores(q, k, a)
    h = A @ v + (q * torch.exp(b)) @ torch.stack(states[:-1])
    return h.permute(1, 0, 3, 2, 4).flatten(1, 2)[:, :S], states[-1]


def between(a: Tensor, *, own: bool = True) -> Tensor:
    """Return exp(sum of a after j, up to t) (..., L, L) where j < t, or j <= t if `own`; else 0."""
    L = a.shape[-1]
    sums = torch.cumsum(a[..., None].expand(*a.shape, L).tril(-1), -2)
    return torch.exp(sums + torch.full((L, L), MASKED, device=a.device).triu(1 if own else 0))


def sum_after(a: Tensor) -> Tensor:
    """Return the sum of a (..., L, D) over the positions after each."""
    return F.pad(a[..., 1:, :], (0, 0, 0, 1)).flip(-2).cumsum(-2).flip(-2)


def _scores(q: Tensor, k: Tensor, a: Tensor) -> Tensor:
    """Return A (..., L, L), 0 above the diagonal; q, k and a (..., L, DK)."""
    A = (q * k).sum(-1)[..., None, None]  # (..., blocks, m, m)
    m = 1
    while m < q.shape[-2]:
        a_early, a_late = _halves(a, m)
        k_early, q_late = _halves(k, m)[0], _halves(q, m)[1]
        from_late = q_late * torch.exp(torch.cumsum(a_late, -2))
        across = from_late @ (k_early * torch.exp(sum_after(a_early))).mT
        early, late = paired(A)
        above = torch.cat([early, torch.zeros_like(across)], -1)
        A = torch.cat([above, torch.cat([across, late], -1)], -2)
        m *= 2
    return A.squeeze(-3)


def _halves(x: Tensor, m: int) -> tuple[Tensor, ...]:
    """Cut x (..., L, D) into blocks of 2 m: their earlier and later halves (..., blocks, m, D)."""
    return x.reshape(*x.shape[:-2], -1, 2, m, x.shape[-1]).unbind(-3)


def paired(A: Tensor) -> tuple[Tensor, ...]:
    """Return the first and the second of every two matrices (..., blocks, m, m)."""
    *batch, _, m, _ = A.shape
    return A.reshape(*batch, -1, 2, m, m).unbind(-3)


def chunk_length(chunk_size: int, S: int) -> int:
    """Return the chunk's length for S positions: no longer than the next power of 2."""
    return int(min(chunk_size, 1 << (S - 1).bit_length()))


def to_chunks(x: Tensor, L: int) -> Tensor:
    """(B, NH, S, D) -> (NC, B, NH, L, D), zeros on the right to whole chunks.

    A position of zeros keeps the state and adds nothing.
    """
    x = F.pad(x, (0, 0, 0, -x.shape[2] % L))
    B, NH, S, D = x.shape
    return x.reshape(B, NH, S // L, L, D).permute(2, 0, 1, 3, 4)
