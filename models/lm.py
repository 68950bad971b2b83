"""A language model of any family: tokens in, logits or a loss out.

`params` maps every name of `families.param_spec(cfg)` to an array of that shape. `ops` are the
operators, and `ops.xp` the array functions, of the arrays' framework (`models/ops/operators.py`).
All functions are pure.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.models import adapters, families, model, ngrams
from mlxhog.models.families import ModelConfig, Params, State
from mlxhog.models.layers.layer import ForwardContext
from mlxhog.models.ops.arrays import Array, Arrays
from mlxhog.models.ops.operators import Ops
from mlxhog.models.spec import generator

init_state = model.init_state


def stack_states(states: Sequence[State], xp: Arrays) -> State:
    """Concatenate the states of several batches along the batch axis.

    A cache grows along axis 1; shorter ones are padded with zeros in front. A layer with a cache
    either counts the positions of each row, or zeros do not change its result.
    """

    def stack(parts: Sequence[Array]) -> Array:
        if parts[0].ndim == 1:
            return xp.concatenate(parts)
        longest, others = max(x.shape[1] for x in parts), [(0, 0)] * (parts[0].ndim - 2)
        front = ((x, [(0, 0), (longest - x.shape[1], 0), *others]) for x in parts)
        return xp.concatenate([xp.pad(x, widths) for x, widths in front])

    return [tuple(map(stack, zip(*blocks, strict=True))) for blocks in zip(*states, strict=True)]


def select_state(state: State, rows: Sequence[int], xp: Arrays) -> State:
    """Return the state of some rows of a batch, in the order of `rows`."""
    return [tuple(xp.take(part, rows) for part in block) for block in state]


def embed(cfg: ModelConfig, params: Params, tokens: Array, xp: Arrays) -> Array:
    """Embed tokens (B, S), integers in [0, vocab_size), as x (B, S, d) float32."""
    return xp.float32(xp.embedding(params[families.embedding(cfg)], tokens))


def dropout_sites(cfg: ModelConfig) -> dict[str, tuple[int, float]]:
    """Return the width and the rate of every dropout site; an adapter's is the name of its A."""
    layout = cfg.layout
    rates = {layout.embedding.name: layout.dropout}
    rates |= {part.name: part.dropout for part in layout.parts()}
    widths = dict.fromkeys(rates, cfg.hidden_size)
    if cfg.adapter is not None:
        firsts = {n: one for n, one in layout.spec.items() if n.endswith(adapters.A)}
        widths |= {name: one.shape[1] for name, one in firsts.items()}
        rates |= dict.fromkeys(firsts, cfg.adapter.dropout)
    return {site: (widths[site], rate) for site, rate in rates.items() if rate}


def dropout_masks(
    cfg: ModelConfig, shape: tuple[int, ...], seed: int
) -> dict[str, NDArray[np.float32]] | None:
    """Draw the dropout masks of a batch (B, S) in NumPy, the same for all frameworks.

    Returns:
        Masks (B, S, width) float32 of 0 and 1 / (1 - rate) by site; None for a model without
        dropout.
    """
    masks = dict[str, NDArray[np.float32]]()
    for site, (width, rate) in dropout_sites(cfg).items():
        drawn = generator(f"{seed}:{site}").random((*shape, width), np.float32)
        masks[site] = (drawn >= rate).astype(np.float32) / np.float32(1.0 - rate)
    return masks or None


def logits(
    cfg: ModelConfig, params: Params, tokens: Array, state: State | None = None, *, ops: Ops,
    rows: Array | None = None, masks: Mapping[str, Array] | None = None, last: bool = False,
    hidden: list[Array] | None = None,
) -> tuple[Array, State]:  # fmt: skip
    """Return the capped logits (B, S, V) of a sequence, and the state after the last position.

    The tokens (B, S) are integers in [0, V); a state of None is the initial one. Rows (B, S, width)
    are those of the tokens' n-grams; None reads the tables among `params`. `masks` are those of
    dropout, as of `dropout_masks`. With `last` only the last position has logits, (B, 1, V).
    `hidden` receives x after the embedding, every block and the final norm.
    """
    how: dict[str, Any] = {"rows": rows, "masks": masks, "hidden": hidden}
    x, after = _after_blocks(cfg, params, tokens, state, ops, **how)
    y, cap = _raw_logits(cfg, params, x[:, -1:] if last else x, ops), cfg.output_logit_soft_cap
    if (tables := ngrams.of(cfg)) is not None:
        ids = tables.ids(tokens, state and state[0][0], ops.xp)
        after = [(ids[:, tokens.shape[1] :],), *after]
    return y if cap is None else ops.soft_cap(y, cap), after


def loss(
    cfg: ModelConfig, params: Params, tokens: Array, labels: Array, *, ops: Ops,
    x: Array | None = None, rows: Array | None = None, masks: Mapping[str, Array] | None = None,
    log_inclusion: Array | None = None, state: State | None = None, recompute: bool = False,
) -> tuple[Array, Array]:  # fmt: skip
    """Return the summed cross entropy in nats over the labels other than -100, and their number.

    Tokens, rows and state are those of `logits`; labels (B, S) are the targets of each position. x
    (B, S, d), the embedded tokens, replaces the embedding of `params`, whose gradient is then one
    row per token. With log_inclusion (C,) of sampled softmax (`models/sampled_softmax.py`) the head
    and its bias in `params` are the rows of the C candidates, and labels are indices among them.
    With `recompute` the backward pass computes each block again: its activations are not kept.
    """
    how: dict[str, Any] = {"rows": rows, "masks": masks, "embedded": x, "recompute": recompute}
    x, _ = _after_blocks(cfg, params, tokens, state, ops, **how)
    cap, labels = cfg.output_logit_soft_cap, labels.reshape(-1)
    x = x.reshape(-1, x.shape[-1])
    head, name = params[families.head(cfg)], families.head_bias(cfg)
    bias = None if name is None else params[name]
    return ops.linear_cross_entropy(x, head, labels, cap, log_inclusion, bias)


def mean_loss(*inputs: Any, ops: Ops, **how: Any) -> Array:
    """Return the mean loss per label, 0 if there are none; arguments as of `loss`."""
    nats, count = loss(*inputs, ops=ops, **how)
    return nats / ops.xp.maximum(count, 1)


def _after_blocks(
    cfg: ModelConfig, params: Params, tokens: Array, state: State | None, ops: Ops, *,
    rows: Array | None, embedded: Array | None = None, **how: Any,
) -> tuple[Array, State]:  # fmt: skip
    x = embed(cfg, params, tokens, ops.xp) if embedded is None else embedded
    if (tables := ngrams.of(cfg)) is not None:
        if rows is None:
            rows = tables.look_up(params, tokens, state and state[0][0], ops.xp)
        x, state = x + ops.linears(rows, [params[ngrams.WEIGHT]])[0], state and state[1:]
    token = families.reset_token(cfg)
    reset_mask = None if token is None else tokens == token
    ctx = ForwardContext(ops, cfg.norm_eps, cfg.max_length, reset_mask=reset_mask, **how)
    return model.blocks(cfg, params, x, state, ctx)


def _raw_logits(cfg: ModelConfig, params: Params, x: Array, ops: Ops) -> Array:
    """Return the logits before the cap."""
    bias = families.head_bias(cfg)
    return ops.logits(x, params[families.head(cfg)], None if bias is None else params[bias])
