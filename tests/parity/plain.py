"""The texts of the equations of cells, in loops over NumPy: as a porter would write them.

A cell is a function of the inputs at one position, of one sequence and head, and of the state
before it, which it returns with the result. `run` goes over positions, sequences and heads.
"""

import numpy as np

OUTPUT = {"causal-conv": "y", "causal-conv-silu": "y"}
COMMON = {"mamba2": "BC"}
"""Inputs that all heads have in common."""
NO_HEADS = ("mamba", "causal-conv", "causal-conv-silu")
STATES = {
    "mlstm": "C n m", "slstm": "h c n m", "gsa": "K V", "mesa": "H G", "causal-conv": "conv",
    "causal-conv-silu": "conv",
}  # fmt: skip
"""Names of the state's parts, where it is not S alone."""


def mlstm(x, C, n, m):
    K, before = len(x["q"]), -np.log1p(np.exp(-x["f"])) + m
    m = max(before, x["i"])
    C = np.exp(before - m) * C + np.exp(x["i"] - m) * np.outer(x["k"], x["v"])
    n = np.exp(before - m) * n + np.exp(x["i"] - m) * x["k"]
    den = max(abs(n @ x["q"]) / np.sqrt(K), np.exp(-m)) + x["eps"]
    return x["q"] @ C / np.sqrt(K) / den, (C, n, m)


def slstm(x, h, c, n, m):
    V = len(h)
    gates = [x[g] + x["b"][k] + x["R"][k * V : (k + 1) * V] @ h for k, g in enumerate("ifzo")]
    i, f, z, o = gates
    before = -np.log1p(np.exp(-f)) + m
    m = np.where(n == 0, i, np.maximum(before, i))
    F, I = np.minimum(np.exp(before - m), 1.0), np.exp(i - m)  # noqa: E741
    c, n = F * c + I * np.tanh(z), F * n + I
    h = c / n / (1 + np.exp(-o))
    return h, (h, c, n, m)


def delta(x, S):
    S = np.exp(np.atleast_1d(x["log_decay"]))[:, None] * S
    S = S + x["beta"] * np.outer(x["k"], x["v"] - x["k"] @ S)
    return x["q"] @ S / np.sqrt(len(x["q"])), (S,)


def gla(x, S):
    S = np.exp(x["log_decay"])[:, None] * S + np.outer(x["k"], x["v"])
    return x["q"] @ S / np.sqrt(len(x["q"])), (S,)


def dplr(x, S):
    value = x["read"] @ S
    S = np.exp(x["log_decay"])[:, None] * S - np.outer(x["removal"], value)
    S = S + np.outer(x["k"], x["v"])
    return x["q"] @ S / np.sqrt(len(x["q"])), (S,)


def rwkv7(x, S):
    value = x["kappa"] @ S
    S = np.exp(x["w"])[:, None] * S - np.outer(x["a"] * x["kappa"], value)
    S = S + np.outer(x["k"], x["v"])
    return x["r"] @ S, (S,)


def mamba2(x, S):
    S = np.exp(x["A"] * x["dt"]) * S + x["dt"] * np.outer(x["B"], x["x"])
    return x["C"] @ S + x["D"] * x["x"], (S,)


def mamba(x, S):
    S = np.exp(x["dt"][:, None] * x["A"]) * S + np.outer(x["dt"] * x["x"], x["B"])
    return S @ x["C"] + x["D"] * x["x"], (S,)


def gsa(x, K, V):
    alpha = np.exp(x["log_decay"])[:, None]
    K, V = alpha * K + (1 - alpha) * x["k"], alpha * V + (1 - alpha) * x["v"]
    p = np.exp(K @ x["q"])
    return p / p.sum() @ V, (K, V)


def mesa(x, H, G):
    decay = np.exp(x["log_decay"])
    H, G = decay * H + np.outer(x["k"], x["k"]), decay * G + np.outer(x["k"], x["v"])
    return np.linalg.solve(H + np.diag(x["ridge"]), x["q"]) @ G, (H, G)


def causal_conv(x, conv):
    window = np.concatenate([conv, x["x"][None]])
    y = x["b"] + (x["w"][:, 0].T * window).sum(0)
    return y / (1 + np.exp(-y)) if x["silu"] else y, (window[1:],)


CELLS = {
    "mlstm": mlstm, "slstm": slstm, "gated-delta-rule": delta, "kda": delta, "gla": gla,
    "dplr": dplr, "rwkv7": rwkv7, "mamba2": mamba2, "mamba": mamba, "gsa": gsa, "mesa": mesa,
    "causal-conv": causal_conv, "causal-conv-silu": causal_conv,
}  # fmt: skip


def run(case):
    """The results of a case, forward and states, by these loops."""
    name, x = case.equations, {key: value.astype(float) for key, value in case.inputs.items()}
    parts = STATES.get(name, "S").split()
    output, heads = OUTPUT.get(name, "h"), name not in NO_HEADS
    if name == "slstm":
        x["b"] = x["b"].reshape(4, *x["z"].shape[2:]).swapaxes(0, 1)  # by head
    resets, results = x.pop("reset_mask", None), {}
    shapes = {part: case.expected[f"state.{part}"].shape for part in parts}
    results = {output: np.zeros(case.expected[output].shape)}
    results |= {f"state.{part}": np.zeros(shape) for part, shape in shapes.items()}
    B, S = results[output].shape[:2]
    for b, head in np.ndindex(B, results[output].shape[2] if heads else 1):
        at = (b, head) if heads else (b,)
        state = [x.get(f"state.{part}", np.zeros(shapes[part]))[at] for part in parts]
        for t in range(S):
            if resets is not None and resets[b, t]:
                state = [0.0 * part for part in state]
            now = dict(case.options)
            for key, value in x.items():
                if case.roles[key] == "parameter":
                    now[key] = value[head] if heads else value
                elif case.roles[key] == "input":
                    own = heads and key not in COMMON.get(name, "")
                    now[key] = value[b, t, head] if own else value[b, t]
            results[output][(b, t, head) if heads else (b, t)], state = CELLS[name](now, *state)
        for part, value in zip(parts, state, strict=True):
            results[f"state.{part}"][at] = value
    return results
