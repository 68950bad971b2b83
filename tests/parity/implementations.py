"""Implementations of the equations of cells: our operators, right or with one line changed."""

import importlib
import inspect
import types
from dataclasses import dataclass
from functools import cache

import ml_dtypes
import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from mlxhog.conformance.vectors.case import STEPS
from mlxhog.conformance.vectors.export import EQUATIONS
from mlxhog.models.ops import kernels
from mlxhog.models.ops.eager.ops_float64 import Float64Ops

EVERY = ("forward", "states", "steps", "gradients")
BACKENDS = {
    "float64": ("torch", "mlxhog.models.ops.eager.ops_float64", "Float64Ops"),
    "torch": ("torch", "mlxhog.models.ops.eager.ops_torch", "TorchOps"),
    "mlx": ("mlx", "mlxhog.models.ops.eager.ops_mlx", "MLXOps"),
}
"""Backend -> its framework, and the module and class of its eager operators."""
SOURCES = {
    "mlstm": ("mlxhog.models.ops.mlstm", "MLSTMOps"),
    "recurrences": ("mlxhog.models.ops.recurrences", "Recurrences"),
    "operators": ("mlxhog.models.ops.operators", "Ops"),
    "float64": ("mlxhog.models.ops.eager.ops_float64", "Float64Ops"),
}
"""Name of a source of operators -> its module and class."""


def right_ops(backend, kernels_of="eager"):
    """The operators of a backend as they are; `kernels_of` is eager or native."""
    if backend == "float64":
        return Float64Ops()
    return kernels.choose(backend, kernels_of, "cpu")


def computed(case, ops, dtype="float32", checks=EVERY):
    """Results of some checks of a case, in a dtype, by operators of any framework."""
    equations, xp = EQUATIONS[case.equations], ops.xp
    is_wide, is_narrow = isinstance(ops, Float64Ops), dtype != "float32"
    rounds = {one.name for one in equations.tensors if one.rounds}
    if is_narrow:
        ops = ops.autocast({}, [])[0].keeping_bf16()

    def array(name, x):
        y = xp.from_numpy(x.astype(np.float64) if x.dtype == np.float32 and is_wide else x)
        if is_wide and x.dtype == np.float32:
            y = y.double()
        return ops.bfloat16(y) if is_narrow and name in rounds and x.dtype == np.float32 else y

    def results(arrays):
        ys = equations.compute(ops, arrays, equations.options)
        return {name: xp.float32(y) for name, y in ys.items()}

    arrays = {name: array(name, x) for name, x in case.inputs.items()}
    whole = results(arrays)
    found = dict(whole)
    if "gradients" in checks:
        leaves = {n: x for n, x in arrays.items() if case.inputs[n].dtype == np.float32}
        dy = {n: array("", x) for n, x in case.cotangents.items()}

        def loss(p):
            ys = results({**arrays, **p})
            return sum((dy[n] * ys[n]).sum() for n in dy)

        _, grads = xp.value_and_grad(loss, leaves)
        found |= {f"grad.{name}": xp.float32(x) for name, x in grads.items()}
    if "steps" in checks and case.checks["steps"]:
        found |= {STEPS + name: y for name, y in _stepped(equations, case, arrays, results).items()}
    names = [name for check in checks for name in case.checks[check]]
    return {name: _stored(name, _host(found[name]), dtype, rounds) for name in names}


def rounded_factors():
    """Let products of PyTorch's tensors have factors in bfloat16, as those of matrix units do."""

    class Mode(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function in (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__):
                args = [x.bfloat16().to(x.dtype) for x in args]
            return function(*args, **(kwargs or {}))

    return Mode()


def _stepped(equations, case, arrays, results):
    """The results of one token at a time."""
    along = {one.name for one in equations.tensors if one.axes.split()[1:2] == ["S"]}
    along.add("reset_mask")
    (first, *_), now, parts = case.checks["forward"], dict(arrays), []
    for t in range(case.expected[first].shape[1]):
        ys = results({n: x[:, t : t + 1] if n in along else x for n, x in now.items()})
        parts.append(_host(ys[first]))
        now |= {name: y for name, y in ys.items() if name.startswith("state.")}
    return {**ys, first: np.concatenate(parts, 1)}


def _host(x):
    return np.array(x.detach().numpy() if hasattr(x, "detach") else x)


def _stored(name, x, dtype, rounds):
    """A result as a file has it: states keep float32 unless a program may round them."""
    keeps = name.removeprefix(STEPS).startswith("state.") and name.removeprefix(STEPS) not in rounds
    narrow = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32
    return x.astype(np.float32 if keeps else narrow)


# -- faults --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """One line of a copy of our operators that is changed.

    Attributes:
        equations: by which it is seen.
        source: one of `SOURCES`.
        old: text that occurs once there, or first in the method `within`.
        new: in its place.
        kind: part of the right guess; "" for a fault of no known kind.
        backend: one of `BACKENDS`.
        within: name of a method, where others have the text, too.
    """

    equations: str
    source: str
    old: str
    new: str
    kind: str = ""
    backend: str = "float64"
    within: str = ""

    def ops(self):
        """The operators with the fault."""
        return _changed(self.source, self.old, self.new, self.within, self.backend)()


@cache
def _changed(source, old, new, within, backend):
    path, name = SOURCES[source]
    right = importlib.import_module(path)
    text = inspect.getsource(right)
    begin = text.index(f"def {within}(") if within else 0
    at = text.index(old, begin)
    assert within or text.count(old) == 1, old
    copy = types.ModuleType(f"{path}_with_fault")
    exec(compile(text[:at] + new + text[at + len(old) :], right.__file__, "exec"), vars(copy))
    methods = {n: x for n, x in vars(vars(copy)[name]).items() if isinstance(x, types.FunctionType)}
    _, module, cls = BACKENDS[backend]
    base = getattr(importlib.import_module(module), cls)
    own = {n: x for n, x in methods.items() if not getattr(x, "__isabstractmethod__", False)}
    if source != "float64":  # what the backend overrides stays
        mine = {n for one in base.__mro__ for n in vars(one) if one.__module__ == base.__module__}
        own = {n: x for n, x in own.items() if n not in mine}
    return type("Faulty", (base,), own)


FIRST, OWN = "q, k, v, i, f = self._heads_first(*x)\n        ", "mlstm_recurrent"
HEADS = "q, k, v, a = (x.swapaxes(1, 2) for x in (q, k, v, log_decay))"
TF32 = "({0} * 8193.0 - ({0} * 8193.0 - {0}))"  # 11 bits, by Veltkamp's splitting
BF16 = "xp.float32(xp.bfloat16({0}))"
PRODUCTS = "both = self._weights(q, k, u, r, documents) @ v +"
ROUNDED = "P = self._weights(q, k, u, r, documents)\n        both = {} @ v +"


def _mlstm(new, kind="", old=FIRST, **how):
    """A fault of the recurrent mLSTM in float64; a new line after the first by default."""
    new = f"{FIRST}{new}\n        " if old == FIRST else new
    return Fault("mlstm", "mlstm", old, new, kind, within=OWN, **how)


def _grad(new, kind, backend="float64"):
    return _mlstm(new, kind, backend=backend)


FAULTS = (
    # the mLSTM, position by position
    _mlstm("q = q * q.shape[-1] ** 0.5", "unscaled query"),
    _mlstm("k = k * k.shape[-1] ** 0.5", "unscaled key"),
    _mlstm("k = k * k.shape[-1] ** -0.5", "key that is scaled once too often"),
    _mlstm("f = xp.concatenate([f[:, :, :1], f[:, :, :-1]], 2)", "forget gate taken at t - 1"),
    _mlstm("i = xp.concatenate([0 * i[:, :, :1], i[:, :, :-1]], 2)", "input gate taken at t - 1"),
    _mlstm("f = xp.concatenate([f[:, :, 1:], f[:, :, -1:]], 2)", "forget gate taken at t + 1"),
    _mlstm("f = 0.0 * f + 1e4", "gate that is ignored, f"),
    _mlstm("reset_mask = None", "document boundary that is ignored"),
    _mlstm("C, n, m = self.zero_state(x[0], x[2])", "initial state that is ignored"),
    _mlstm("C = C.swapaxes(-1, -2).reshape(C.shape)", "transposed state"),
    _mlstm(
        "self._rescale(C.swapaxes(-1, -2).reshape(C.shape), n, m)", "transposed state",
        "self._rescale(C, n, m)",
    ),
    _mlstm("xp.exp(lf_t)", "missing stabilizer term, m - m'", "xp.exp(lf_t + m_before - m_after)"),
    _mlstm("xp.exp(i_t)", "missing stabilizer term, m' in", "xp.exp(i_t - m_after)"),
    _mlstm("m = xp.zeros_like(m)", "missing stabilizer", "m = xp.maximum(lf_t + m, i_t)"),
    _mlstm("C = xp.where(first[..., None, None], 0.0, C)", "document",
           "n, C = xp.where(first[..., None], 0.0, n), xp.where(first[..., None, None], 0.0, C)"),
    _mlstm("n = n + I[..., None] * k_t", "", "n = F[..., None] * n + I[..., None] * k_t"),
    _mlstm("m_before = m_before", "", "m_before = m_after"),
    Fault("mlstm", "mlstm", "floor = xp.exp(xp.minimum(-M, MAX_EXPONENT))",
          "floor = xp.exp(0.0 * M)", "missing stabilizer term, exp(-m)"),
    Fault("mlstm", "mlstm", "xp.maximum(xp.abs(den), floor)", "xp.maximum(den, floor)"),
    Fault("mlstm", "mlstm", "+ eps * (1.0 + carrier)", "+ 0.0", "missing eps"),
    Fault("mlstm", "mlstm", "scale = self.xp.exp(self.xp.stop_gradient(m) - m)",
          "scale = self.xp.exp(0.0 * m)", "held constant", "mlx"),
    # its gradients
    _grad("k = 2.0 * xp.stop_gradient(k) - k", "wrong sign"),
    _grad("f = xp.stop_gradient(f)", "zeros"),
    Fault("mlstm", "mlstm", FIRST, FIRST + "q = 0.5 * q + 0.5 * xp.stop_gradient(q)\n        ",
          "wrong factor, 0.5", "torch", "mlstm_chunkwise"),
    _grad("i, f = xp.stop_gradient(i) + f - xp.stop_gradient(f), "
          "xp.stop_gradient(f) + i - xp.stop_gradient(i)", "swapped, grad.i and grad.f"),
    _mlstm("self._rescale(*(xp.stop_gradient(y) for y in (C, n, m)))",
           "without that of the final state", "self._rescale(C, n, m)"),
    # chunk by chunk
    Fault("mlstm", "mlstm", "i, lf = to_chunks(i, L, xp, MASKED), to_chunks(lf, L, xp)",
          "i, lf = to_chunks(i, L, xp, MASKED), to_chunks(lf, L, xp, -1.0)", "last chunk",
          "torch"),
    Fault("mlstm", "mlstm", "documents = None if reset_mask is None else",
          "documents = None if L else", "document boundary that is ignored", "torch"),
    Fault("mlstm", "mlstm", "w = (q.shape[-1] ** -0.5 * xp.exp(from_state))",
          "w = xp.exp(from_state)", "", "mlx"),
    Fault("mlstm", "mlstm", "log_scale = self.xp, -0.5 * math.log(q.shape[-1])",
          "log_scale = self.xp, 0.0", "", "torch"),
    Fault("mlstm", "mlstm", PRODUCTS, ROUNDED.format(TF32.format("P")), "TF32", "mlx"),
    Fault("mlstm", "mlstm", PRODUCTS, ROUNDED.format(TF32.format("P")), "TF32", "torch"),
    Fault("mlstm", "mlstm", PRODUCTS, ROUNDED.format(BF16.format("P")), "bfloat16", "mlx"),
    # the sLSTM
    Fault("slstm", "recurrences", "pre = xp.stack([i, f, z, o], 3)",
          "pre = xp.stack([i, xp.concatenate([f[:, :1], f[:, :-1]], 1), z, o], 3)",
          "forget gate taken at t - 1", "torch"),
    Fault("slstm", "recurrences", "xp.unstack(pre_t + mixed, 2)", "xp.unstack(pre_t, 2)",
          "parameter that is ignored, R", "mlx"),
    Fault("slstm", "recurrences", "h = xp.sigmoid(o) * c / n", "h = c / n",
          "gate that is ignored, o", "torch"),
    Fault("slstm", "recurrences", "lf = m + xp.log_sigmoid(f)", "lf = m + f"),
    Fault("slstm", "recurrences", "b.reshape(4, NH, DH).swapaxes(0, 1)", "b.reshape(NH, 4, DH)"),
    Fault("slstm", "recurrences", "h, c, n, m = (xp.where(first, 0.0, x) for x in (h, c, n, m))",
          "c, n, m = (xp.where(first, 0.0, x) for x in (c, n, m))", "document", "mlx"),
    Fault("slstm", "recurrences", "if reset_mask is not None:", "if False:",
          "document boundary that is ignored", "mlx"),
    # linear recurrences
    Fault("gla", "recurrences", "q = q if scale == 1 else scale * q", "q = 1.0 * q",
          "unscaled query", "torch"),
    Fault("gla", "recurrences", HEADS, HEADS + "\n        a = xp.concatenate([a[:, :, :1], "
          "a[:, :, :-1]], 2)", "forget gate taken at t - 1", "mlx"),
    Fault("gla", "recurrences", "return from_chunks(h, S), states[-1]",
          "return from_chunks(h, S), states[-1].swapaxes(-1, -2).reshape(state.shape)",
          "transposed state", "mlx"),
    Fault("gla", "recurrences", "h = h + (q * xp.exp(b)) @ before", "h = h + q @ before", "",
          "torch"),
    Fault("gla", "recurrences", "a = (to_chunks(x, L, xp) for x in (q, k, v, *reads, a))",
          "a = (to_chunks(x, L, xp, -0.3) for x in (q, k, v, *reads, a))", "last chunk", "torch"),
    Fault("gla", "recurrences", "xp.exp(a).swapaxes(-1, -2) * state + k.swapaxes(-1, -2) * v",
          "state + k.swapaxes(-1, -2) * v", "gate that is ignored, log_decay", "mlx"),
    Fault("kda", "recurrences", "if state is None:", "if S:", "initial state that is ignored",
          "torch"),
    Fault("kda", "recurrences", "reads, k = [xp.exp(a) * k], beta.swapaxes(1, 2)[..., None] * k",
          "reads, k = [xp.exp(a) * k], k", "gate that is ignored, beta", "mlx"),
    Fault("gated-delta-rule", "recurrences", "reads, k = [xp.exp(a) * k],", "reads, k = [k],", "",
          "torch"),
    Fault("gated-delta-rule", "recurrences", HEADS, HEADS + "\n        k = k * k.shape[-1] ** -0.5",
          "key that is scaled once too often", "mlx"),
    Fault("rwkv7", "recurrences", "own = inverse @ (-P[1] @ v if removal else v)",
          "own = inverse @ (P[1] @ v if removal else v)", "", "torch"),
    Fault("dplr", "float64", "S = S - how", "S = S + how"),
    Fault("mamba2", "float64", "hs.append(how.get", "hs.append(-how.get"),
    Fault("mamba", "float64", "S = (dt[:, t, :, None] * A).exp() * S + written", "S = S + written",
          "parameter that is ignored, A"),
    Fault("mamba", "float64", "written = (dt[:, t] * u[:, t])[..., None]",
          "written = u[:, t][..., None]"),
    Fault("gsa", "recurrences", "h = h + (q @ before.swapaxes(-1, -2)) * xp.exp(b)",
          "h = h + q @ before.swapaxes(-1, -2)", "", "mlx"),
    Fault("mesa", "float64", "torch.linalg.solve(S.mT + torch.diag_embed(ridge)",
          "torch.linalg.solve(S.mT + 2 * torch.diag_embed(ridge)"),
    # the convolution
    Fault("causal-conv", "operators", "y = y + w[:, 0, j] * x_j",
          "y = y + w[:, 0, K - 1 - j] * x_j", "", "torch"),
    Fault("causal-conv", "operators", "y = self.zeros_if_none(b, w[:, 0, 0])",
          "y = self.zeros_if_none(None, w[:, 0, 0])", "parameter that is ignored, b", "mlx"),
    Fault("causal-conv-silu", "operators",
          "past = xp.zeros((B, K - 1, C), like=x) if state is None else state",
          "past = xp.zeros((B, K - 1, C), like=x)", "initial state that is ignored", "torch"),
    Fault("causal-conv", "operators", "if reset_mask is not None:\n            back",
          "if False:\n            back", "document boundary that is ignored", "mlx"),
)  # fmt: skip
