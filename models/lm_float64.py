"""A language model of any family in float64: the reference of `lm`, by its own text.

It is slow, since cells run position by position (`ops/reference/ops_float64.py`), and only for
comparison: arrays come and go as NumPy's. Gradients are those that PyTorch has of the text. That
the text means what was published is shown by recorded outputs of other packages, not here.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlxhog.models import families, lm, ngrams
from mlxhog.models.families import ModelConfig
from mlxhog.models.ops.reference.ops_float64 import OPS, tensor

Float = NDArray[np.float64]
Int = NDArray[np.integer]
Params = Mapping[str, NDArray[Any]]
Grads = dict[str, Float]
State = Sequence[tuple[NDArray[Any], ...]]


def embed(
    cfg: ModelConfig, params: Params, tokens: Int, before: NDArray[np.int32] | None = None
) -> Float:
    """Return the embedded tokens with the rows of their n-grams, if the model has tables.

    Args:
        cfg: the model.
        params: its parameters and tables.
        tokens: (B, S) integer.
        before: the ids before them, as in `ngrams.Carried`; None where sequences begin.

    Returns:
        x, (B, S, d) float64.
    """
    x: Float = params[families.embedding(cfg)][tokens].astype(np.float64)
    if (tables := ngrams.of(cfg)) is None:
        return x
    rows = tables.gather(params, tables.rows_of(tokens.astype(np.int32), before))
    return x + rows.astype(np.float64) @ params[ngrams.WEIGHT].astype(np.float64).T


def starts(cfg: ModelConfig, tokens: Int) -> NDArray[np.bool_] | None:
    """Return where documents begin, (B, S) bool; None for a model that does not care."""
    result: NDArray[np.bool_] | None = lm.starts(cfg, tokens)
    return result


def forward(
    cfg: ModelConfig,
    params: Params,
    x: Float,
    state: State | None = None,
    *,
    starts: NDArray[np.bool_] | None = None,
    hidden: list[Float] | None = None,
) -> tuple[Float, State]:
    """Return the logits (B, S, V) of x (B, S, d), and the state after the last position."""
    trace: list[Tensor] = []
    with torch.inference_mode():
        logits, after = lm.forward(
            cfg,
            _tensors(params),
            tensor(x),
            _state(state),
            ops=OPS,
            starts=_maybe(starts),
            hidden=trace,
        )
    if hidden is not None:
        hidden += [one.numpy() for one in trace]
    return logits.numpy(), [tuple(part.numpy() for part in block) for block in after]


def loss(cfg: ModelConfig, params: Params, tokens: Int, labels: Int) -> float:
    """Return the mean cross entropy in nats over the labels other than -100; 0 without any."""
    x = tensor(embed(cfg, params, tokens))
    with torch.inference_mode():
        return float(_loss(cfg, _tensors(params), x, tokens, labels))


def differentiate(
    cfg: ModelConfig,
    params: Params,
    tokens: Int,
    labels: Int,
    *,
    state: State | None = None,
    masks: Mapping[str, NDArray[Any]] | None = None,
    rounded: bool = False,
) -> tuple[float, Grads]:
    """Return the loss of tokens (B, S), and the gradient of every parameter in its own shape.

    That of tables is the gradient of the rows that were read, under `ngrams.ROWS`.

    Args:
        cfg: the model.
        params: its parameters, of any float type.
        tokens: (B, S) integer.
        labels: (B, S) integer, the target of each position.
        state: state before the tokens, a constant; None is the start state.
        masks: from `lm.dropout_masks`.
        rounded: every result is rounded to float32, which shows how much that changes.
    """
    dtype = torch.float32 if rounded else torch.float64
    leaves = _tensors(params) | {"": tensor(embed(cfg, params, tokens))}
    leaves = {name: x.to(dtype).requires_grad_() for name, x in leaves.items()}
    loss = _loss(cfg, leaves, leaves[""], tokens, labels, masks, state)
    every = torch.autograd.grad(
        loss, list(leaves.values()), allow_unused=True, materialize_grads=True
    )
    grads = {name: x.double().numpy() for name, x in zip(leaves, every, strict=True)}
    of_x = grads.pop("")
    np.add.at(grads[families.embedding(cfg)], tokens, of_x)
    if (tables := ngrams.of(cfg)) is not None:
        rows = tables.gather(params, tables.rows_of(tokens.astype(np.int32))).astype(np.float64)
        grads[ngrams.WEIGHT] = np.einsum("bsd,bsk->dk", of_x, rows)
        grads[ngrams.ROWS] = of_x @ params[ngrams.WEIGHT].astype(np.float64)
    return loss.item(), grads


def _loss(
    cfg: ModelConfig,
    params: Mapping[str, Tensor],
    x: Tensor,
    tokens: Int,
    labels: Int,
    masks: Mapping[str, NDArray[Any]] | None = None,
    state: State | None = None,
) -> Tensor:
    dropped = {name: mask.to(x.dtype) for name, mask in _tensors(masks or {}).items()}
    at = _maybe(starts(cfg, tokens))
    targets = torch.from_numpy(labels.astype(np.int64))
    result: Tensor = lm.loss_from_embedding(
        cfg, params, x, targets, ops=OPS, starts=at, masks=dropped or None, state=_state(state)
    )
    return result


def _tensors(params: Params) -> dict[str, Tensor]:
    """The parameters in float64, without tables, which only `embed` reads."""
    return {name: tensor(x) for name, x in params.items() if not ngrams.is_table(name)}


def _state(state: State | None) -> list[tuple[Tensor, ...]] | None:
    return None if state is None else [tuple(map(tensor, block)) for block in state]


def _maybe(x: NDArray[Any] | None) -> Tensor | None:
    return None if x is None else torch.from_numpy(np.asarray(x))
