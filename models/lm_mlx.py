"""A language model of any family in MLX: tokens in, logits or a loss out.

`params` maps every name of `families.param_spec(cfg)` to an array of that shape, `kernels` is one
of `CHOICES` in `models/ops/kernels.py`. All functions are pure: they write no input.
"""

from collections.abc import Mapping, Sequence

import mlx.core as mx
from mlx.core import array

from mlxhog.models import families
from mlxhog.models.families import ModelConfig
from mlxhog.models.forward_pass import Pass
from mlxhog.models.ops.kernels import choose

Params = Mapping[str, array]
State = Sequence[tuple[array, ...]]
"""A tuple per block, of which the family says what it holds; sequences of the batch first."""


def init_state(cfg: ModelConfig, B: int) -> State:
    """Return the state before the first token of B sequences."""
    state: State = families.twin(cfg.model_type, "mlx").init_state(cfg, B)
    return state


def stack_states(states: Sequence[State]) -> State:
    """Return the states of several batches as one of all their rows, in their order.

    A cache grows along axis 1. Where caches differ in length, the shorter get zeros in front: a
    layer that keeps one counts what its rows have read, or has no use for what zeros add.
    """
    return [
        tuple(_rows_of(parts) for parts in zip(*blocks, strict=True))
        for blocks in zip(*states, strict=True)
    ]


def _rows_of(parts: Sequence[array]) -> array:
    longest = max((part.shape[1] for part in parts if part.ndim > 1), default=0)
    return mx.concatenate([part if part.ndim == 1 else _in_front(part, longest) for part in parts])


def _in_front(cache: array, length: int) -> array:
    """Fill up a cache (B, L, ...) with zeros in front."""
    return mx.pad(cache, [(0, 0), (length - cache.shape[1], 0)] + [(0, 0)] * (cache.ndim - 2))


def take_state(state: State, rows: Sequence[int]) -> State:
    """Return the state of some rows of a batch, in the order of `rows`."""
    return [tuple(part[mx.array(list(rows))] for part in block) for block in state]


def in_bfloat16(cfg: ModelConfig, params: Params) -> Params:
    """Return the parameters with the matrices of `families.products` in bfloat16, differentiable.

    For `loss_from_embedding`: products are then computed in bfloat16, and everything between them
    in float32, as the parameters' gradients are. Only the reference and Metal ops take them.
    """
    products = families.products(cfg)
    return {
        name: value.astype(mx.bfloat16) if name in products else value
        for name, value in params.items()
    }


def embed(cfg: ModelConfig, params: Params, tokens: array) -> array:
    """Return the embedded tokens, (B, S) integer in [0, vocab_size) -> x (B, S, d) float32."""
    return params[families.embedding(cfg)][tokens].astype(mx.float32)


def starts(cfg: ModelConfig, tokens: array) -> array | None:
    """Return where documents begin, (B, S) bool; None for a model that does not care."""
    token = families.reset_token(cfg)
    return None if token is None else tokens == token


def forward(
    cfg: ModelConfig,
    params: Params,
    x: array,
    state: State | None = None,
    *,
    kernels: str,
    starts: array | None = None,
    last: bool = False,
    hidden: list[array] | None = None,
) -> tuple[array, State]:
    """Return logits; of a whole sequence, or of what follows `state`.

    Args:
        cfg: the model.
        params: its parameters.
        x: embedded tokens, (B, S, d).
        state: from `init_state` or an earlier call; None is the start.
        kernels: which ops.
        starts: from the function of that name.
        last: only the logits of the last position.
        hidden: receives x after the embedding, every block and the final norm.

    Returns:
        Capped logits (B, S, V), or (B, 1, V) where `last`, and the state after the last position.
    """
    run = Pass(choose("mlx", kernels, device()), starts=starts, hidden=hidden)
    x, state = _blocks(cfg, params, x, state, run)
    logits = _raw_logits(cfg, params, x[:, -1:] if last else x, run)
    cap = cfg.output_logit_soft_cap
    return logits if cap is None else run.ops.soft_cap(logits, cap), state


def loss_from_embedding(
    cfg: ModelConfig,
    params: Params,
    x: array,
    labels: array,
    *,
    kernels: str,
    starts: array | None = None,
    masks: Mapping[str, array] | None = None,
    log_inclusion: array | None = None,
) -> array:
    """Return the mean cross entropy in nats over the labels other than -100; 0 if there are none.

    The embedded tokens are the argument, so that the gradient of the embedding stays one row per
    token: it is the gradient of x, which has to be added to the rows `tokens`.

    Args:
        cfg: the model.
        params: its parameters; the embedding is read only where it is also the head.
        x: embedded tokens, (B, S, d).
        labels: (B, S) integer; labels[b, t] is the target of position t, already shifted.
        kernels: which ops.
        starts: from the function of that name.
        masks: of dropout, from `models/dropout.py`.
        log_inclusion: (C,) of a sampled loss (`models/sampled_head.py`), for which the head and its
            bias in `params` are the rows of the C candidates, and labels are places among them.

    Returns:
        A scalar, float32.
    """
    nats, count = _cross_entropy(cfg, params, x, labels, kernels, starts, masks, log_inclusion)
    return nats / mx.maximum(count, 1)


def sum_loss(
    cfg: ModelConfig,
    params: Params,
    x: array,
    labels: array,
    *,
    kernels: str,
    starts: array | None = None,
) -> array:
    """Return the summed cross entropy in nats over the labels other than -100, a scalar."""
    return _cross_entropy(cfg, params, x, labels, kernels, starts, None, None)[0]


def _cross_entropy(
    cfg: ModelConfig,
    params: Params,
    x: array,
    labels: array,
    kernels: str,
    starts: array | None,
    masks: Mapping[str, array] | None,
    log_inclusion: array | None,
) -> tuple[array, array]:
    run = Pass(choose("mlx", kernels, device()), starts=starts, masks=masks)
    x, _ = _blocks(cfg, params, x, None, run)
    logits, cap = _raw_logits(cfg, params, x, run), cfg.output_logit_soft_cap
    if log_inclusion is not None:  # it is taken off behind the cap
        logits = logits if cap is None else run.ops.soft_cap(logits, cap)
        logits, cap = logits - log_inclusion, None
    flat = logits.reshape(-1, logits.shape[-1])
    return run.ops.capped_cross_entropy(flat, labels.reshape(-1), cap)


def _blocks(
    cfg: ModelConfig, params: Params, x: array, state: State | None, run: Pass[array]
) -> tuple[array, State]:
    """From the embedded tokens to the final norm."""
    run.note(x)
    found: tuple[array, State] = families.twin(cfg.model_type, "mlx").blocks(
        cfg, params, x, state, run
    )
    return found


def _raw_logits(cfg: ModelConfig, params: Params, x: array, run: Pass[array]) -> array:
    """Return the logits before the cap."""
    bias = families.head_bias(cfg)
    (logits,) = run.ops.linears(
        x, [params[families.head(cfg)]], [None if bias is None else params[bias]]
    )
    return logits


def device() -> str:
    """Return "cpu" or "gpu", where MLX computes by default."""
    return "gpu" if mx.default_device() == mx.gpu else "cpu"
