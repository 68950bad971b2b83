"""The models of xlstm and transformers, as sides: `function(case, setting)`.

They get the parameters of the case by name, and its state. Given a state, both packages write the
next one in its place, so there are no gradients then.
"""

import sys
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from mlxhog.conformance.sides.own import differentiated
from mlxhog.conformance.sides.peers_torch import Named, Tensors, chunk_of
from mlxhog.conformance.subject import Results
from mlxhog.conformance.vectors.case import STEPS, Case
from mlxhog.models.checkpoint_names import to_xlstm
from mlxhog.models.families import read

State = dict[int, list[Tensor]]
"""C, n (B, H, K) and m (B, H, 1) of each block."""
Run = Callable[[Named, Tensor, State | None], tuple[Tensor, State]]
"""Computes logits and the next state of parameters, tokens and a state."""


_PADDING = "train_with_padding"
_NATIVE = {"sequence_kernel": "native_sequence__native", "step_kernel": "native"}


def xlstm_model(case: Case, setting: str) -> Results:
    """Compute by xLSTMLarge of the xlstm package, "MODE+KERNEL"."""
    from xlstm.xlstm_large.model import xLSTMLarge, xLSTMLargeConfig

    mode, _, kernel = setting.partition("+")
    known = xLSTMLargeConfig.__dataclass_fields__.keys()
    fields = {name: value for name, value in case.options.items() if name in known}
    fields |= {"mode": mode, "return_last_states": mode != _PADDING}
    fields |= {"chunkwise_kernel": kernel, "chunk_size": _chunk(case, mode), **_NATIVE}
    model = xLSTMLarge(xLSTMLargeConfig(**fields))
    family, renamed = read(dict(case.options)), cast(Any, to_xlstm)  # it takes any arrays

    def run(params: Named, tokens: Tensor, state: State | None) -> tuple[Tensor, State]:
        result: tuple[Tensor, State] = functional_call(
            model, renamed(params, family), (tokens, state)
        )
        return result

    return _computed(case, run)


def xlstm_v1(case: Case, setting: str) -> Results:
    """Compute by xLSTMLMModel of the xlstm package, whose sequences have no initial state."""
    import xlstm

    if any(role == "state" for role in case.roles.values()):
        raise NotImplementedError("a sequence has no initial state")
    fields: Any = read(dict(case.options)).to_package()
    mlstm, slstm = fields["mlstm_block"], fields["slstm_block"]
    fields["mlstm_block"] = xlstm.mLSTMBlockConfig(mlstm=xlstm.mLSTMLayerConfig(**mlstm["mlstm"]))
    fields["slstm_block"] = xlstm.sLSTMBlockConfig(
        slstm=xlstm.sLSTMLayerConfig(**slstm["slstm"]),
        feedforward=xlstm.FeedForwardConfig(**slstm["feedforward"]),
    )
    model = xlstm.xLSTMLMModel(xlstm.xLSTMLMModelConfig(**fields))

    def call(x: Tensors) -> Named:
        params, tokens = _parameters(case, x), x["tokens"]
        if setting == "sequence":
            return _with_loss(functional_call(model, params, (tokens,)), x)
        model.load_state_dict(params)
        state, parts = None, []
        for t in range(tokens.shape[1]):
            logits, state = model.step(tokens[:, t : t + 1], state)
            parts.append(logits)
        return {f"{STEPS}logits": torch.cat(parts, 1).detach()}

    return differentiated("torch", case, call)


def transformers_model(case: Case, setting: str) -> Results:
    """Compute by xLSTMForCausalLM of transformers, "MODE+KERNEL", or "alone+MODE".

    Alone as in `peers_torch.transformers`. The cache is made here: that of transformers has keys of
    a multiple of 64.
    """
    first, _, second = setting.partition("+")
    alone = first == "alone"
    mode = second if alone else first
    if alone:
        sys.modules["xlstm"] = None  # type: ignore[assignment]
    from transformers.models.xlstm import modeling_xlstm as theirs

    assert theirs.external_xlstm is not alone
    fields = {
        **case.options,
        "mode": mode,
        "return_last_states": mode != _PADDING,
        "chunk_size": _chunk(case, mode),
    }
    fields |= {} if alone else {"chunkwise_kernel": second}
    config = theirs.xLSTMConfig(**fields, eos_token_id=0)
    model = theirs.xLSTMForCausalLM(config).train(mode == "train")

    def run(params: Named, tokens: Tensor, state: State | None) -> tuple[Tensor, State]:
        cache = None
        if state is not None:
            cache = theirs.xLSTMCache(config, len(tokens), dtype=torch.float32)
            cache.rnn_state = state
        how = {"cache": cache, "use_cache": cache is not None}
        logits = functional_call(model, params, (tokens,), how).logits
        return logits, {} if cache is None else cache.rnn_state

    return _computed(case, run)


def _chunk(case: Case, mode: str) -> int:
    """Return the chunk size of the case; when training one that divides the sequence."""
    S: int = case.inputs["tokens"].shape[1]
    return chunk_of(S) if mode == "train" else int(case.options["chunk_size"])


def _computed(case: Case, run: Run) -> Results:
    """Compute a case of xLSTM Large by a model."""
    given = "state.0.C" in case.inputs
    layers, heads = case.options["num_hidden_layers"], case.options["num_heads"]
    width = int(case.options["hidden_size"])

    def call(x: Tensors) -> Named:
        params, tokens, state = _parameters(case, x), x["tokens"], State()
        K, V = (int(width * case.options[f"{one}_dim_factor"]) // heads for one in ("qk", "v"))
        for n in range(layers):
            shapes = (len(tokens), heads, K, V), (len(tokens), heads, K), (len(tokens), heads)
            parts = zip("Cnm", shapes, strict=True)
            C, n_, m = (x.get(f"state.{n}.{one}", torch.zeros(shape)) for one, shape in parts)
            state[n] = [C.clone(), n_.clone(), m[..., None].clone()]
        with torch.no_grad():
            logits, state = run(params, tokens, state)
        if not given:
            logits, _ = run(params, tokens, None)
        results = _with_loss(logits, x)
        for n, (C, n_, m) in state.items():
            results |= {f"state.{n}.C": C, f"state.{n}.n": n_, f"state.{n}.m": m[..., 0]}
        return results

    return differentiated("torch", case, call, has_gradients=not given)


def _parameters(case: Case, x: Tensors) -> Named:
    return {name: x[name] for name, role in case.roles.items() if role == "parameter"}


def _with_loss(logits: Tensor, x: Tensors) -> Named:
    targets = x["targets"].flatten().long()
    return {"logits": logits, "loss": F.cross_entropy(logits.flatten(0, 1), targets)}
