"""The peers' results: their own modules with our parameters, trained by PyTorch.

Loss and steps are PyTorch's, `cross_entropy` and `torch.optim`. Of our code only the numbers of the
optimizers enter.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mlxhog.config.optimizers import AdamW, Momentum
from mlxhog.models.families import ModelConfig, param_spec, rate_groups
from mlxhog.models.translation import to_ours, to_xlstm
from mlxhog.models.xlstm_large import XLSTMLargeConfig
from mlxhog.models.xlstm_v1 import XLSTMV1Config
from mlxhog.optim.groups import factors
from mlxhog.parity.optimizers import (
    BETA1,
    BETA2,
    CHOICES,
    EPS,
    LR,
    MOMENTUM,
    WEIGHT_DECAY,
    Formula,
)
from mlxhog.parity.results import NamedArrays
from mlxhog.parity.subject import RULES, TRANSFORMERS, Array, ModelPlan

KERNELS = {
    "chunkwise_kernel": "chunkwise--native_autograd",
    "sequence_kernel": "native_sequence__native",
    "step_kernel": "native",
    "mode": "inference",  # the only mode that takes every length
    "return_last_states": True,
    "autocast_kernel_dtype": "float32",
    "inference_state_dtype": "float32",
}


@dataclass(frozen=True)
class Peer:
    """A module of a peer and access to its parts.

    Attributes:
        module: the model.
        trace: the modules whose results are `hidden`: embedding, blocks, final norm.
        logits: tokens (B, S) -> logits (B, S, V).
        step: one token (B, 1) and a state, None at first -> logits and the next state; None if the
            peer has no such call.
        parts: a state of `step` -> C, n, m of every block.
        package: whether names are those of the xlstm package; else they are ours.
    """

    module: nn.Module
    trace: list[nn.Module]
    logits: Callable[[Tensor], Tensor]
    step: Callable[[Tensor, Any], tuple[Tensor, Any]] | None = None
    parts: Callable[[Any], list[tuple[Tensor, ...]]] = lambda state: []
    package: bool = True


def results(
    name: str, plan: ModelPlan, params: Mapping[str, Array], fixed: Mapping[str, Array]
) -> NamedArrays:
    """Compute a peer's results; arguments as of `results.model`."""
    torch.set_num_threads(1)
    peer = create(name, plan.cfg)
    _load(peer, plan.cfg, params)
    tokens = torch.tensor(fixed["tokens"]).long()
    yield from _forward(peer, plan, tokens)
    if peer.step is not None:
        with torch.no_grad():
            yield from _stepwise(peer, tokens)
    if "targets" not in fixed:
        return
    targets = torch.tensor(fixed["targets"]).long()
    loss, grads = _differentiate(peer, plan.cfg, tokens, targets)
    yield "loss", np.array(loss, np.float32)
    for parameter in param_spec(plan.cfg):
        yield f"grad/{parameter}", grads[parameter]
    if plan.steps:
        for rule in RULES:
            _load(peer, plan.cfg, params)
            yield from _steps(peer, plan, rule, params, tokens, targets)


def create(name: str, cfg: ModelConfig) -> Peer:
    """Build a peer's model in evaluation mode, without dropout."""
    if name == TRANSFORMERS:
        assert isinstance(cfg, XLSTMLargeConfig)
        return _transformers(cfg)
    return _large(cfg) if isinstance(cfg, XLSTMLargeConfig) else _v1(cfg)


def _transformers(cfg: XLSTMLargeConfig) -> Peer:
    from transformers import xLSTMConfig, xLSTMForCausalLM

    model = xLSTMForCausalLM(xLSTMConfig(**(cfg.to_dict() | KERNELS)))
    model.train(False)
    backbone = model.backbone
    return Peer(
        module=model,
        trace=[backbone.embeddings, *backbone.blocks, backbone.out_norm],
        # It writes its cache in place, so that no gradient could be computed.
        logits=lambda ids: model(ids, use_cache=False).logits,
        package=False,
    )


def _large(cfg: XLSTMLargeConfig) -> Peer:
    from xlstm.xlstm_large.model import xLSTMLarge
    from xlstm.xlstm_large.model import xLSTMLargeConfig as PackageConfig

    both = {"embedding_dim": cfg.hidden_size, "num_blocks": cfg.num_hidden_layers}
    fields = _known(PackageConfig, cfg.to_dict() | both | KERNELS)
    model = xLSTMLarge(PackageConfig(**fields)).eval()
    norm = [model.backbone.out_norm] if cfg.add_out_norm else []

    def parts(state: Any) -> list[tuple[Tensor, ...]]:
        return [(C, n, m[..., 0]) for C, n, m in (state[block] for block in sorted(state))]

    return Peer(
        module=model,
        trace=[model.embedding, *model.backbone.blocks, *norm],
        logits=lambda ids: model(ids)[0],
        step=model,
        parts=parts,
    )


def _v1(cfg: Any) -> Peer:
    import xlstm

    assert isinstance(cfg, XLSTMV1Config)
    fields = cfg.to_package()
    for block, layer, classes in (
        ("mlstm_block", "mlstm", (xlstm.mLSTMBlockConfig, xlstm.mLSTMLayerConfig)),
        ("slstm_block", "slstm", (xlstm.sLSTMBlockConfig, xlstm.sLSTMLayerConfig)),
    ):
        if fields[block] is None:
            continue
        of_block, of_layer = classes
        inner = dict(fields[block])
        inner[layer] = of_layer(**_known(of_layer, inner[layer]))
        if inner.get("feedforward") is not None:
            known = _known(xlstm.FeedForwardConfig, inner["feedforward"])
            inner["feedforward"] = xlstm.FeedForwardConfig(**known)
        fields[block] = of_block(**_known(of_block, inner))
    model = xlstm.xLSTMLMModel(
        xlstm.xLSTMLMModelConfig(**_known(xlstm.xLSTMLMModelConfig, fields))
    ).eval()
    stack = model.xlstm_block_stack
    norm = [stack.post_blocks_norm] if cfg.add_post_blocks_norm else []
    return Peer(
        module=model,
        trace=[model.token_embedding, *stack.blocks, *norm],
        logits=model,
        step=lambda ids, state: model.step(ids, state=state),
    )


def _known(cls: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(cls) if field.init}
    return {name: value for name, value in fields.items() if name in names}


def _load(peer: Peer, cfg: ModelConfig, params: Mapping[str, Array]) -> None:
    """Set the module's parameters to ours; one that we do not have stays 0 and is not trained."""
    theirs = to_xlstm(params, cfg) if peer.package else params
    own = dict(peer.module.named_parameters())
    with torch.no_grad():
        for name, parameter in own.items():
            if name in theirs:
                parameter.copy_(torch.tensor(theirs[name]))
            else:
                parameter.zero_().requires_grad_(False)
    lacking = sorted(set(theirs) - set(own))
    if lacking:
        raise ValueError(f"the module has no parameter {lacking[0]}")


def _forward(peer: Peer, plan: ModelPlan, tokens: Tensor) -> NamedArrays:
    hidden: list[Tensor] = []

    def record(module: nn.Module, arguments: Any, result: Any) -> None:
        hidden.append(result[0] if isinstance(result, tuple) else result)

    hooks = [module.register_forward_hook(record) for module in peer.trace]
    with torch.no_grad():
        logits = peer.logits(tokens)
    for hook in hooks:
        hook.remove()
    for number, x in enumerate(hidden):
        last = number > plan.cfg.num_hidden_layers
        yield f"hidden/{'out_norm' if last else number}", _host(x)
    yield "logits", _host(logits)


def _stepwise(peer: Peer, tokens: Tensor) -> NamedArrays:
    assert peer.step is not None
    state, outputs = None, []
    for t in range(tokens.shape[1]):
        logits, state = peer.step(tokens[:, t : t + 1], state)
        outputs.append(_host(logits))
    yield "stepwise/logits", np.concatenate(outputs, 1)
    for layer, parts in enumerate(peer.parts(state)):
        for letter, part in zip("Cnm", parts, strict=True):
            yield f"stepwise/state/{layer}/{letter}", _host(part)


def _differentiate(
    peer: Peer, cfg: ModelConfig, tokens: Tensor, targets: Tensor
) -> tuple[float, Mapping[str, Array]]:
    peer.module.zero_grad()
    loss = _loss(peer, tokens, targets)
    loss.backward()  # type: ignore[no-untyped-call]  # torch has no type for it
    grads = {
        name: _host(parameter.grad)
        for name, parameter in peer.module.named_parameters()
        if parameter.grad is not None
    }
    return loss.item(), to_ours(grads, cfg)


def _loss(peer: Peer, tokens: Tensor, targets: Tensor) -> Tensor:
    logits = peer.logits(tokens)
    scored = max(int((targets != -100).sum()), 1)
    total = nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), reduction="sum"
    )
    return total / scored


def _steps(
    peer: Peer,
    plan: ModelPlan,
    rule: str,
    params: Mapping[str, Array],
    tokens: Tensor,
    targets: Tensor,
) -> NamedArrays:
    decays = {name: spec.decay for name, spec in param_spec(plan.cfg).items()}
    every = {n: p for n, p in peer.module.named_parameters() if p.requires_grad}
    ours = {name: next(iter(to_ours({name: np.empty(0)}, plan.cfg))) for name in every}
    own = {name: p for name, p in every.items() if ours[name] in params}
    by_name = factors(CHOICES[rule], rate_groups(plan.cfg))
    kinds = {name: (decays[ours[name]], by_name.get(ours[name], 1.0)) for name in own}
    groups = [
        {
            "params": [p for name, p in own.items() if kinds[name] == (decay, factor)],
            "weight_decay": WEIGHT_DECAY if decay else 0.0,
            "lr": LR[rule] * factor,
        }
        for decay, factor in sorted(set(kinds.values()))
    ]
    optimizer: torch.optim.Optimizer
    if rule == AdamW.name:
        optimizer = torch.optim.AdamW(groups, lr=LR[rule], betas=(BETA1, BETA2), eps=EPS)
    else:
        optimizer = torch.optim.SGD(
            groups, lr=LR[rule], momentum=MOMENTUM * (rule == Momentum.name)
        )
    formula = Formula(plan.cfg, CHOICES[rule], params)
    for _ in range(plan.steps):
        peer.module.zero_grad()  # of all: earlier results are views of gradients
        _loss(peer, tokens, targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        formula.step(to_ours({name: _host(p.grad) for name, p in own.items()}, plan.cfg))
    values = to_ours({name: _host(p).copy() for name, p in own.items()}, plan.cfg)
    for name, value in values.items():
        yield f"after/{rule}/{name}", value
    for name, value in values.items():
        yield f"step/{rule}/{name}", formula.apart(name, value)


def _host(x: Tensor | None) -> Array:
    assert x is not None
    values: Array = x.detach().contiguous().numpy()
    return values
