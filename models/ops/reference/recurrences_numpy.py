"""The cells beside mLSTM in float64 NumPy, position by position: the reference of every other form.

`operators.py` defines each of them. `slstm_cell` also has its gradient, written by hand. Per head,
with the gates' pre-activations i, f, z, o from the input, and h, c, n, m = 0 at the start, it is:

    i~ = i_t + R_i h + b_i                     likewise f~, z~, o~: memory mixes inside a head
    lf = m + logsig(f~)
    m' = max(i~, lf)                           m' = i~ where n is 0, so at a first step
    I = exp(i~ - m')    F = min(exp(lf - m'), 1)
    c' = F c + I tanh(z~)    n' = F n + I      h' = sigmoid(o~) c' / n'

The published code tests whether all of n is 0. A test per element gives the same for every state
that the cell reaches, since n >= 1 after one step, and rows of a batch stay independent.

Layouts: i, f, z, o and h (B, S, NH, DH); R (NH, 4 DH, DH) and b (4 NH DH,) as the xlstm package
stores them for the CPU, gates in the order i, f, z, o; a state is four arrays (B, NH, DH),
None is all zeros. `starts` (B, S) is not 0 at the first token of a document.

Source: Beck et al. 2024, xLSTM, arXiv:2405.04517.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.models.ops.reference.mlstm_numpy import Float, log_sigmoid, zero_state

State = tuple[Float, Float, Float, Float]
Backward = Callable[..., tuple[Float, ...]]


def slstm_cell(
    i: Float,
    f: Float,
    z: Float,
    o: Float,
    R: Float,
    b: Float,
    *,
    state: Sequence[Float] | None = None,
    starts: NDArray[Any] | None = None,
) -> tuple[State, Backward]:
    """Run the cell position by position, and differentiate it exactly.

    Returns:
        h, c, n and m after every position, each (B, S, NH, DH), and a function that maps dL/dh and,
        optionally, dL/d of the four last states to dL/d of i, f, z, o, R, b, h0, c0, n0, m0. At a
        tie of m' it takes the input gate.
    """
    B, S, NH, DH = i.shape
    R_gates, bias = R.reshape(NH, 4, DH, DH), b.reshape(4, NH, DH)
    gates = np.stack([i, f, z, o], 2)  # (B, S, 4, NH, DH)
    fresh = np.zeros((B, S), bool) if starts is None else np.asarray(starts, bool)
    start = np.zeros((4, B, NH, DH)) if state is None else np.stack(list(state))
    states = np.empty((4, B, S, NH, DH))
    trace = []  # per position: the state before it, the gates
    now = start
    for t in range(S):
        before = np.where(fresh[None, :, t, None, None], 0.0, now)
        h, c, n, m = before
        pre = gates[:, t] + np.einsum("ngej,bnj->bgne", R_gates, h) + bias
        i_t, f_t, z_t, o_t = pre.swapaxes(0, 1)
        lf = m + log_sigmoid(f_t)
        m = np.where(n == 0, i_t, np.maximum(i_t, lf))
        I, F = np.exp(i_t - m), np.exp(np.minimum(lf - m, 0.0))  # noqa: E741  the papers' letter
        tanh_z, sig_o = np.tanh(z_t), np.exp(log_sigmoid(o_t))
        c = F * c + I * tanh_z
        n = F * n + I
        now = np.stack([sig_o * c / n, c, n, m])
        states[:, :, t] = now
        trace.append((before, I, F, np.exp(log_sigmoid(-f_t)), tanh_z, sig_o))

    def backward(dh: Float, d_last: Sequence[Float] | None = None) -> tuple[Float, ...]:
        d_inputs, dR, db = np.empty_like(gates), np.zeros_like(R_gates), np.zeros_like(bias)
        dh_next, dc, dn, dm = np.zeros((4, B, NH, DH)) if d_last is None else np.stack(list(d_last))
        # h depends on c and n only through their ratio, so m may be treated as a constant, except
        # in the gradient of the last state: `free`, which goes back through max to a gate.
        free = dm - dc * states[1, :, -1] - dn * states[2, :, -1]
        for t in reversed(range(S)):
            (h_old, c_old, n_old, _), I, F, forget, tanh_z, sig_o = trace[t]  # noqa: E741
            c_new, n_new = states[1:3, :, t]
            ratio = c_new / n_new
            dh_t = dh[:, t] + dh_next
            dc = dc + dh_t * sig_o / n_new
            dn = dn - dh_t * sig_o * ratio / n_new
            by_input = I == 1.0  # m' = i~
            d_pre = np.stack(
                [
                    (dc * tanh_z + dn) * I + np.where(by_input, free, 0.0),
                    ((dc * c_old + dn * n_old) * F + np.where(by_input, 0.0, free)) * forget,
                    dc * I * (1.0 - tanh_z**2),
                    dh_t * ratio * sig_o * (1.0 - sig_o),
                ],
                1,
            )
            d_inputs[:, t] = d_pre
            dR += np.einsum("bgne,bnj->ngej", d_pre, h_old)
            db += d_pre.sum(0)
            dh_next = np.einsum("ngej,bgne->bnj", R_gates, d_pre)
            dc, dn, free = dc * F, dn * F, np.where(by_input, 0.0, free)
            in_document = ~fresh[:, t, None, None]
            dh_next, dc, dn, free = (d * in_document for d in (dh_next, dc, dn, free))
        _, c0, n0, _ = start
        d_gates = (d_inputs[:, :, gate] for gate in range(4))
        d_start = (dh_next, dc, dn, free + dc * c0 + dn * n0)
        return *d_gates, dR.reshape(R.shape), db.reshape(b.shape), *d_start

    return (states[0], states[1], states[2], states[3]), backward


# -- the linear recurrences ------------------------------------------------------------------------


def recurrence(
    q: Float,
    k: Float,
    v: Float,
    log_decay: Float,
    *,
    beta: Float | None = None,
    read: Float | None = None,
    removal: Float | None = None,
    scale: float = 1.0,
    by_value: bool = False,
    state: Float | None = None,
) -> tuple[Float, Float]:
    """Return h, as v or, `by_value`, as k, and the last S (B, NH, DK, DV); k (B, S, NH, DK)."""
    S = zero_state(k, v)[0] if state is None else state
    h = np.empty(k.shape if by_value else v.shape)
    for t in range(q.shape[1]):
        before, k_t, write = S, k[:, t, :, :, None], v[:, t]
        S = np.exp(log_decay[:, t])[..., None] * S
        if beta is not None:
            write = beta[:, t, :, None] * (write - np.einsum("bhkv,bhk->bhv", S, k[:, t]))
        S = S + k_t * write[:, :, None]
        if read is not None and removal is not None:
            held = np.einsum("bhkv,bhk->bhv", before, read[:, t])
            S = S - removal[:, t, :, :, None] * held[:, :, None]
        h[:, t] = scale * np.einsum("bhkv,bhv->bhk" if by_value else "bhkv,bhk->bhv", S, q[:, t])
    return h, S


def regression_cell(
    q: Float, k: Float, log_decay: Float, ridge: Float, *, state: Float | None = None
) -> tuple[Float, Float]:
    """Return x (B, S, NH, D), solved exactly, and the last S (B, NH, D, D); ridge (NH, D).

    S is read transposed, as in `recurrence`; it is symmetric, but its central differences are not.
    """
    S = zero_state(k, k)[0] if state is None else state
    x = np.empty(q.shape)
    for t in range(q.shape[1]):
        S = np.exp(log_decay[:, t])[..., None] * S + k[:, t, :, :, None] * k[:, t, :, None]
        system = S.swapaxes(-1, -2) + ridge[..., None] * np.eye(ridge.shape[-1])
        x[:, t] = np.linalg.solve(system, q[:, t, ..., None])[..., 0]
    return x, S


def selective_scan(
    u: Float, dt: Float, A: Float, Bt: Float, Ct: Float, *, state: Float | None = None
) -> tuple[Float, Float]:
    """Return y (B, S, C) and the last S (B, C, N); u, dt (B, S, C), A (C, N), Bt, Ct (B, S, N)."""
    S = np.zeros((len(u), *A.shape)) if state is None else state
    y = np.empty(u.shape)
    for t in range(u.shape[1]):
        written = (dt[:, t] * u[:, t])[..., None] * Bt[:, t, None]
        S = np.exp(dt[:, t, :, None] * A) * S + written
        y[:, t] = np.einsum("bcn,bn->bc", S, Ct[:, t])
    return y, S
