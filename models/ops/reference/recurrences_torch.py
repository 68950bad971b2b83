"""The cells beside mLSTM in PyTorch, plain; `kernels.py` says what each promises, in float32.

`slstm_cell` goes position by position; its equations are in `slstm_numpy.py`. The others are linear
recurrences, and no exponent of theirs is above 0: nothing overflows, however fast a head forgets.

`decay_cell` goes chunk by chunk. With b the sum of log_decay from the start of a chunk, S_0 the
state before it and g = b_L:

    h_t = scale ( S_0^T (q_t exp(b_t)) + sum_{j<=t} A_tj v_j )
    A_tj = q_t^T diag(exp(b_t - b_j)) k_j
    S_L = diag(exp(g)) S_0 + sum_j (k_j exp(g - b_j)) v_j^T

Every exponent is a sum of log_decay over positions that follow one another. Each is summed up, none
is the difference of two longer sums, which would round at their size. Where every element of a key
has its own decay, A is found in halves: the scores from the later half of a block to its earlier
half decay from the end of the earlier to both sides, (q_t exp(sum up to t)) . (k_j exp(sum after
j)); and so on inside the halves.

`delta_cell` goes chunk by chunk, too. What a position writes is k_t u_t^T with
u_t = beta_t (v_t - a_t S_{t-1}^T k_t), so that

    (I + M) U = diag(beta) (V - diag(exp(b)) K S_0),   M_tj = beta_t exp(b_t - b_j) k_t . k_j, j < t
    h_t = S_0^T q_t exp(b_t) + sum_{j<=t} exp(b_t - b_j) (q_t . k_j) u_j
    S_L = exp(g) S_0 + sum_j exp(g - b_j) k_j u_j^T

I + M is inverted in halves, from blocks of one on: no power of M is formed, which could grow
beyond all digits where keys are alike.

`selective_scan` takes log2(S) rounds. Two positions of S_t = a_t S_{t-1} + x_t are one of half as
many: (a' a, a' x + x'). The states after every second position come from the halved sequence, the
others from those before them. No decay is divided by.

Sources: Beck et al. 2024, xLSTM, arXiv:2405.04517; Yang et al. 2024, Gated Linear Attention,
arXiv:2312.06635; Dao and Gu 2024, Transformers are SSMs, arXiv:2405.21060; Yang et al. 2024,
Parallelizing Linear Transformers with the Delta Rule, arXiv:2406.06484; Yang et al. 2024, Gated
Delta Networks, arXiv:2412.06464; Gu and Dao 2023, Mamba, arXiv:2312.00752; Blelloch 1990, Prefix
Sums and Their Applications.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mlxhog.models.ops.reference.mlstm_torch import MASKED


def slstm_cell(
    i: Tensor,
    f: Tensor,
    z: Tensor,
    o: Tensor,
    R: Tensor,
    b: Tensor,
    *,
    state: Sequence[Tensor] | None = None,
    starts: Tensor | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Run the cell over (B, S, NH, DH), any S, from `state` (h, c, n, m) or from zeros."""
    B, S, NH, DH = i.shape
    pre = torch.stack([x.float() for x in (i, f, z, o)], 3) + b.float().view(4, NH, DH).transpose(
        0, 1
    )
    R_t = R.float().transpose(1, 2)
    if state is None:
        h = pre.new_zeros(B, NH, DH)
        state = (h, h, h, h)
    h, c, n, m = state
    outputs = []
    for t in range(S):
        if starts is not None:
            first = starts[:, t, None, None] != 0
            h, c, n, m = (torch.where(first, 0.0, x) for x in (h, c, n, m))
        mixed = (h.transpose(0, 1) @ R_t).transpose(0, 1).view(B, NH, 4, DH)
        h, c, n, m = _step(pre[:, t] + mixed, c, n, m)
        outputs.append(h)
    return torch.stack(outputs, 1), (h, c, n, m)


def _step(pre: Tensor, c: Tensor, n: Tensor, m: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The state after one step; pre (B, NH, 4, DH)."""
    i, f, z, o = pre.unbind(2)
    lf = m + F.logsigmoid(f)
    m = torch.where(n == 0, i, torch.maximum(i, lf))
    write = torch.exp(i - m)
    keep = torch.exp(torch.clamp(lf - m, max=0.0))
    c = keep * c + write * torch.tanh(z)
    n = keep * n + write
    return torch.sigmoid(o) * c / n, c, n, m


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


def selective_scan(
    u: Tensor, dt: Tensor, A: Tensor, Bt: Tensor, Ct: Tensor, *, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Run the recurrence over u (B, S, C) from `state` (B, C, N) or from zeros."""
    u, dt, A, Bt, Ct = (x.float() for x in (u, dt, A, Bt, Ct))
    S = u.shape[1]
    a = torch.exp(dt[..., None] * A)
    x = (dt * u)[..., None] * Bt[:, :, None]
    if state is not None:
        x = torch.cat([x[:, :1] + a[:, :1] * state[:, None], x[:, 1:]], 1)
    rest = (0, 0, 0, 0, 0, (1 << (S - 1).bit_length()) - S)
    states = _scan(F.pad(a, rest), F.pad(x, rest))[:, :S]
    return (states @ Ct[..., None])[..., 0], states[:, -1]


def _scan(a: Tensor, x: Tensor) -> Tensor:
    """States after every position of a, x (B, S, C, N) from zeros; S a power of 2."""
    if x.shape[1] == 1:
        return x
    B, S, C, N = x.shape
    a_first, a_second = a.view(B, S // 2, 2, C, N).unbind(2)
    x_first, x_second = x.view(B, S // 2, 2, C, N).unbind(2)
    second = _scan(a_second * a_first, a_second * x_first + x_second)
    before = F.pad(second[:, :-1], (0, 0, 0, 0, 1, 0))
    return torch.stack([x_first + a_first * before, second], 2).flatten(1, 2)
