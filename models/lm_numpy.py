"""A language model of any family in float64 NumPy: the reference of `lm`.

It is slow (cells run position by position) and only for comparison. A family's blocks return their
result and a function from dL/dresult to dL/dinput, which adds the gradients of the parameters to
`grads`. A family without `reference_gradient` has `hidden` instead of blocks: no gradient and no
state.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.models import families, ngrams
from mlxhog.models.families import ModelConfig
from mlxhog.models.forward_pass import Pass

Float = NDArray[np.float64]
Int = NDArray[np.integer]
Params = Mapping[str, NDArray[Any]]
Grads = dict[str, Float]
State = Sequence[tuple[Float, ...]]


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
    for W, (name, rows) in zip(
        np.split(params[ngrams.WEIGHT].astype(np.float64), len(tables.orders), axis=1),
        tables.rows_of(tokens.astype(np.int32), before).items(),
        strict=True,
    ):
        x = x + params[name][rows].astype(np.float64) @ W.T
    return x


def starts(cfg: ModelConfig, tokens: Int) -> NDArray[np.bool_] | None:
    """Return where documents begin, (B, S) bool; None for a model that does not care."""
    token = families.reset_token(cfg)
    return None if token is None else tokens == token


def forward(
    cfg: ModelConfig,
    params: Params,
    x: Float,
    state: State | None = None,
    *,
    starts: NDArray[np.bool_] | None = None,
    hidden: list[Float] | None = None,
) -> tuple[Float, State]:
    """Return the logits (B, S, V) of x (B, S, d), and the state after the last position.

    If the family's reference has no state, the state is empty, and x begins at the first token.
    """
    run: Pass[Any] = Pass(_NO_OPS, starts=starts, hidden=hidden)
    params = _float64(params)
    run.note(x)
    x = x.astype(np.float64)
    family = families.of(cfg)
    if family.reference_gradient:
        x, state, _ = family.reference.blocks(cfg, params, x, state, {}, run)
    else:
        assert state is None, "this reference reads whole sequences"
        x, state = family.reference.hidden(cfg, params, x, run), ()
    return _logits(cfg, params, x), state


def loss(cfg: ModelConfig, params: Params, tokens: Int, labels: Int) -> float:
    """Return the mean cross entropy in nats over the labels other than -100; 0 without any."""
    logits, _ = forward(cfg, params, embed(cfg, params, tokens), starts=starts(cfg, tokens))
    scored = labels != -100
    nats, _ = _cross_entropy(logits, labels, scored)
    return float(nats.sum() / max(int(scored.sum()), 1))


def loss_and_grads(
    cfg: ModelConfig,
    params: Params,
    x: Float,
    labels: Int,
    *,
    starts: NDArray[np.bool_] | None = None,
    masks: Mapping[str, NDArray[Any]] | None = None,
) -> tuple[float, Grads, Float]:
    """Differentiate the mean cross entropy over the labels other than -100.

    Args:
        cfg: the model.
        params: its parameters, of any float type; computed in float64.
        x: embedded tokens, (B, S, d).
        labels: (B, S) integer, the target of each position.
        starts: from the function of that name.
        masks: from `lm.dropout_masks`.

    Returns:
        The loss in nats; the gradient of every parameter; and the gradient of x. The embedding has
        only the gradient as a tied head.
    """
    grads: Grads = {}
    run: Pass[Any] = Pass(_NO_OPS, starts=starts, masks=masks)
    params = _float64(params)
    blocks = families.of(cfg).reference.blocks
    x, _, back = blocks(cfg, params, x.astype(np.float64), None, grads, run)
    w = params[families.head(cfg)]
    logits = _logits(cfg, params, x)
    scored = labels != -100
    count = max(int(scored.sum()), 1)
    nats, d_logits = _cross_entropy(logits, labels, scored)
    d_logits /= count
    if (cap := cfg.output_logit_soft_cap) is not None:
        d_logits *= 1.0 - (logits / cap) ** 2
    flat = d_logits.reshape(-1, d_logits.shape[-1]), x.reshape(-1, x.shape[-1])
    grads[families.head(cfg)] = flat[0].T @ flat[1]
    return float(nats.sum() / count), grads, back(d_logits @ w)


def differentiate(
    cfg: ModelConfig,
    params: Params,
    tokens: Int,
    labels: Int,
    *,
    masks: Mapping[str, NDArray[Any]] | None = None,
) -> tuple[float, Grads]:
    """Return the loss of tokens (B, S), and the gradient of every parameter in its own shape.

    That of tables is the gradient of the rows that were read, under `ngrams.ROWS`.
    """
    x = embed(cfg, params, tokens)
    loss, grads, dx = loss_and_grads(
        cfg, params, x, labels, starts=starts(cfg, tokens), masks=masks
    )
    name = families.embedding(cfg)
    table = grads.setdefault(name, np.zeros(params[name].shape))
    np.add.at(table, tokens, dx)
    if (tables := ngrams.of(cfg)) is not None:
        rows = tables.gather(params, tables.rows_of(tokens.astype(np.int32))).astype(np.float64)
        grads[ngrams.WEIGHT] = np.einsum("bsd,bsk->dk", dx, rows)
        grads[ngrams.ROWS] = dx @ params[ngrams.WEIGHT].astype(np.float64)
    return loss, grads


_NO_OPS: Any = None  # the references do not use operators


def _float64(params: Params) -> dict[str, Float]:
    """The parameters in float64, without tables, which only `embed` reads."""
    return {
        name: value.astype(np.float64, copy=False)
        for name, value in params.items()
        if not ngrams.is_table(name)
    }


def _logits(cfg: ModelConfig, params: Params, x: Float) -> Float:
    cap, bias = cfg.output_logit_soft_cap, families.head_bias(cfg)
    raw: Float = x @ params[families.head(cfg)].T
    if bias is not None:
        raw = raw + params[bias]
    return raw if cap is None else cap * np.tanh(raw / cap)


def _cross_entropy(logits: Float, labels: Int, scored: NDArray[np.bool_]) -> tuple[Float, Float]:
    """The nats of every label (B, S), and the gradient of their sum (B, S, V); 0 where no label."""
    target = np.where(scored, labels, 0)[..., None]
    shifted = logits - logits.max(-1, keepdims=True)
    total = np.exp(shifted).sum(-1, keepdims=True)
    nats = np.log(total) - np.take_along_axis(shifted, target, -1)
    d_logits = np.exp(shifted) / total
    np.put_along_axis(d_logits, target, np.take_along_axis(d_logits, target, -1) - 1.0, -1)
    return nats[..., 0] * scored, d_logits * scored[..., None]
