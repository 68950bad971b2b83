"""The cells of packages in PyTorch, as sides: `function(case, setting)`.

Each is called as its package calls it, in float32 on the CPU, with the options of the case; only
the order of axes and the names of states are translated. What a package does not have, such as
resets inside a sequence, is left out.
"""

import runpy
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from importlib.metadata import distribution
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from mlxhog.conformance.sides.own import differentiated
from mlxhog.conformance.subject import Results
from mlxhog.conformance.vectors.case import STEPS, Case

Tensors = Mapping[str, Tensor]
Named = dict[str, Tensor]
MAX_CHUNK = 16  # so that most sequences of the vectors have several chunks


def chunk_of(S: int) -> int:
    """Return the longest chunk of at most `MAX_CHUNK` positions that divides a sequence."""
    return max(L for L in range(1, MAX_CHUNK + 1) if S % L == 0)


def without_resets(case: Case) -> None:
    """Leave out a case with documents inside a sequence."""
    if "reset_mask" in case.inputs:
        raise NotImplementedError("it has no resets inside a sequence")


def heads_first(x: Tensors, names: Iterable[str]) -> list[Tensor]:
    """(B, S, H, ...) -> (B, H, S, ...)."""
    return [x[name].transpose(1, 2) for name in names]


# -- mLSTM: mlstm_kernels, xlstm, transformers -----------------------------------------------------


def mlstm_results(h: Tensor, state: Any = None, prefix: str = "") -> Named:
    """Return the results of an mLSTM cell with heads before positions, by name."""
    results = {f"{prefix}h": h.transpose(1, 2)}
    if state is not None:
        C, n, m = state
        results |= {f"{prefix}state.C": C, f"{prefix}state.n": n.reshape(C.shape[:3])}
        results[f"{prefix}state.m"] = m.reshape(C.shape[:2])
    return results


def mlstm_state(x: Tensors) -> tuple[Tensor, Tensor, Tensor]:
    """Return the first C, n (B, H, K) and m (B, H, 1), zeros if there is none."""
    if "state.C" in x:
        return x["state.C"], x["state.n"], x["state.m"][..., None]
    q, v = x["q"], x["v"]
    B, _, H, K = q.shape
    return q.new_zeros(B, H, K, v.shape[-1]), q.new_zeros(B, H, K), q.new_zeros(B, H, 1)


def mlstm_kernels(case: Case, setting: str) -> Results:
    """Compute by a kernel of mlstm_kernels, named as there, or by its backend for inference."""
    import mlstm_kernels.torch as kernels
    from mlstm_kernels.torch.backend_module import mLSTMBackend, mLSTMBackendConfig

    without_resets(case)
    eps, S, has_state = case.options["eps"], case.inputs["q"].shape[1], "state.C" in case.inputs

    def call(x: Tensors) -> Named:
        q, k, v, i, f = heads_first(x, "qkvif")
        state = dict(zip(("c_initial", "n_initial", "m_initial"), mlstm_state(x), strict=True))
        if setting == "step":
            step, last, hs = kernels.get_mlstm_step_kernel("native"), mlstm_state(x), []
            for t in range(S):
                now = (*(y[:, :, t] for y in (q, k, v)), *(y[:, :, t, None] for y in (i, f)))
                h, last = step(*now, *last, eps=eps)
                hs.append(h)
            return mlstm_results(torch.stack(hs, 2), last, STEPS)
        if setting == "sequence":
            kernel = kernels.get_mlstm_sequence_kernel("native_sequence__native")
            return mlstm_results(*kernel(q, k, v, i, f, **state, return_last_states=True, eps=eps))
        if setting == "inference":
            config = mLSTMBackendConfig(mode=setting, chunk_size=MAX_CHUNK, eps=eps)
            return mlstm_results(*mLSTMBackend(config)(q, k, v, i, f, **state))
        kernel = kernels.get_mlstm_kernel(setting)
        if setting.startswith("chunkwise"):
            how = {"return_last_states": True, "chunk_size": chunk_of(S), "eps": eps}
            return mlstm_results(*kernel(q, k, v, i, f, **(state if has_state else {}), **how))
        if has_state:
            raise NotImplementedError("parallel kernels have no initial state")
        return mlstm_results(kernel(q, k, v, i, f, eps=eps))

    return differentiated("torch", case, call)


def xlstm(case: Case, setting: str) -> Results:
    """Compute by a function of the xlstm package, whose states have keys scaled by 1 / sqrt(K)."""
    from xlstm.blocks.mlstm import backends
    from xlstm.blocks.slstm.src.vanilla import slstm_forward, slstm_pointwise_function_registry

    without_resets(case)

    def mlstm(x: Tensors) -> Named:
        q, k, v, i, f = heads_first(x, "qkvif")
        eps, S, K = case.options["eps"], q.shape[2], q.shape[-1]
        if v.shape[-1] != K:
            raise NotImplementedError("values are as wide as keys")
        if setting == "parallel":
            if "state.C" in x:
                raise NotImplementedError("the parallel form has no initial state")
            h = backends.parallel_stabilized_simple(q, k, v, i[..., None], f[..., None], eps=eps)
            return mlstm_results(h)
        C, n, m = mlstm_state(x)
        if setting == "chunkwise":
            how: dict[str, Any] = {"chunk_size": chunk_of(S), "return_last_state": True, "eps": eps}
            first = {"initial_C": C, "initial_n": n, "initial_m": m[..., 0]}
            return mlstm_results(*backends.chunkwise_simple(q, k, v, i, f, **first, **how))
        last, hs = (C / K**0.5, n[..., None] / K**0.5, m[..., None]), []
        for t in range(S):
            now = (y[:, :, t : t + 1].clone() for y in (q, k, v))  # it changes their shape in place
            gates = (y[:, :, t, None, None] for y in (i, f))
            h, last = backends.recurrent_step_stabilized_simple(*last, *now, *gates, eps=eps)
            hs.append(h)
        C, n, m = last
        return mlstm_results(torch.cat(hs, 2), (C * K**0.5, n * K**0.5, m), STEPS)

    def slstm(x: Tensors) -> Named:
        B, S, H, V = x["z"].shape
        raw = torch.stack([x[name].reshape(B, S, H * V) for name in "ifzo"], 2)
        zeros = x["z"].new_zeros(B, H, V)
        first = torch.stack([x.get(f"state.{one}", zeros).reshape(B, H * V) for one in "hcnm"])
        point = slstm_pointwise_function_registry["slstm"]
        every, last, _ = slstm_forward(raw.swapaxes(0, 1).flatten(2), first, x["R"], x["b"], point)
        h = every[0, 1:].swapaxes(0, 1).reshape(B, S, H, V)
        states = zip("hcnm", last.reshape(4, B, H, V), strict=True)
        return {"h": h} | {f"state.{name}": y for name, y in states}

    return differentiated("torch", case, slstm if case.equations == "slstm" else mlstm)


_OWN_KERNEL = "chunkwise--native_autograd"


def _returns_state(mode: str, kernel: str) -> bool:
    return mode != "train_with_padding" and kernel.startswith("chunkwise")


def transformers(case: Case, setting: str) -> Results:
    """Compute by the mLSTM of transformers' xLSTM: "MODE+KERNEL", or "alone+MODE".

    Alone it does not find the xlstm package, whose code would replace its own; that has to be the
    first use of transformers in a process.
    """
    first, _, second = setting.partition("+")
    alone = first == "alone"
    mode, kernel = (second, _OWN_KERNEL) if alone else (first, second)
    if alone:
        sys.modules["xlstm"] = None  # type: ignore[assignment]
    from transformers.models.xlstm import modeling_xlstm

    assert modeling_xlstm.external_xlstm is not alone
    without_resets(case)
    q, v = case.inputs["q"], case.inputs["v"]
    (_, S, H, K), V = q.shape, v.shape[-1]
    config = modeling_xlstm.xLSTMConfig(
        hidden_size=H * V, num_heads=H, num_hidden_layers=1, vocab_size=2, qk_dim_factor=K / V,
        mode=mode, chunkwise_kernel=kernel, return_last_states=_returns_state(mode, kernel),
        chunk_size=chunk_of(S) if mode == "train" else MAX_CHUNK, eps=case.options["eps"],
    )  # fmt: skip
    backend = modeling_xlstm.xLSTMBlock(config).mlstm_layer.mlstm_backend

    def call(x: Tensors) -> Named:
        state = mlstm_state(x) if "state.C" in x else ()
        if state and kernel.startswith("parallel"):
            raise NotImplementedError("parallel kernels have no initial state")
        results = backend(*heads_first(x, "qkvif"), *state)
        return mlstm_results(*results) if isinstance(results, tuple) else mlstm_results(results)

    return differentiated("torch", case, call)


# -- flash-linear-attention ------------------------------------------------------------------------


@cache
def naive(path: str) -> Any:
    """Return the names of a file of fla.ops; its package would import Triton."""
    file = distribution("fla-core").locate_file(f"fla/ops/{path}/naive.py")
    return SimpleNamespace(**runpy.run_path(str(file)))


def fla(case: Case, setting: str) -> Results:
    """Compute by a reference function of fla.ops, "FOLDER:FUNCTION"."""
    folder, _, name = setting.partition(":")
    S = next(iter(case.inputs.values())).shape[1]
    how = {"chunk_size": chunk_of(S)} if "chunk" in name or name.endswith("CG") else {}
    function = partial(getattr(naive(folder), name), **how)
    has_state = "parallel" not in name
    if not has_state and "state.S" in case.inputs:
        raise NotImplementedError("the parallel form has no initial state")
    return differentiated("torch", case, lambda x: _FLA[folder](function, x, has_state))


Function = Callable[..., Any]
_KEPT: dict[str, Any] = {"output_final_state": True}


def _gated(function: Function, x: Tensors, _: bool) -> Named:
    gates = {"g": x["log_decay"], "beta": x["beta"]} if "beta" in x else {"gk": x["log_decay"]}
    q, k, v = (x[name] for name in "qkv")
    h, S = function(q, k, v, **gates, initial_state=x.get("state.S"), **_KEPT)
    return {"h": h, "state.S": S}


def _dplr(function: Function, x: Tensors, _: bool) -> Named:
    if "kappa" in x:  # RWKV-7, whose queries have no scale
        q = x["r"] * x["k"].shape[-1] ** 0.5
        x = {**x, "q": q, "log_decay": x["w"], "read": x["kappa"], "removal": x["a"] * x["kappa"]}
    q, k, v, read, removal, gk = heads_first(x, (*"qkv", "read", "removal", "log_decay"))
    h, S = function(q, k, v, read, -removal, gk, initial_state=x.get("state.S"), **_KEPT)
    return {"h": h.transpose(1, 2), "state.S": S}


def _mamba2(function: Function, x: Tensors, has_state: bool) -> Named:
    u, dt = x["x"], x["dt"]
    B, C = (x[name][:, :, None].expand(*dt.shape, -1) for name in "BC")
    state = {"initial_state": x.get("state.S"), **_KEPT} if has_state else {}
    h, S = function(C, B, dt[..., None] * u, x["A"] * dt, scale=1.0, **state)
    return {"h": h + x["D"][:, None] * u} | ({"state.S": S} if has_state else {})


def _gsa(function: Function, x: Tensors, _: bool) -> Named:
    q, k, v, g = (x[name] for name in (*"qkv", "log_decay"))
    state = (x["state.K"].mT, x["state.V"]) if "state.K" in x else None
    h, (K, V) = function(q, k, v, 1 - g.exp(), g=g, scale=1.0, initial_state=state, **_KEPT)
    return {"h": h, "state.K": K.mT, "state.V": V}


def _mesa(function: Function, x: Tensors, _: bool) -> Named:
    beta = torch.ones_like(x["log_decay"])
    H = x["state.H"].mT if "state.H" in x else None  # symmetric, but its gradient is not
    inputs = (x[name] for name in (*"qkv", "log_decay", "ridge"))
    h, H, G = function(*inputs, beta, h_kk_init=H, h_kv_init=x.get("state.G"))
    return {"h": h, "state.H": H.mT, "state.G": G}


_FLA: dict[str, Callable[[Function, Tensors, bool], Named]] = {
    "gla": _gated, "gated_delta_rule": _gated, "kda": _gated, "gsa": _gsa, "mesa_net": _mesa,
    "simple_gla": _mamba2, "generalized_delta_rule/dplr": _dplr,
}  # fmt: skip
"""How the functions of a folder are called."""
