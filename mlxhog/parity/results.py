"""All results of a model, in the order of the computation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from mlxhog.models import families, ngrams
from mlxhog.models.mad.config import MADConfig
from mlxhog.parity.engines import Forward, ModelEngine
from mlxhog.parity.optimizers import After
from mlxhog.parity.subject import Array, ModelPlan

NamedArrays = Iterator[tuple[str, Array]]
Steps = Callable[..., Iterator[After]]


def model(
    engine: ModelEngine,
    plan: ModelPlan,
    params: Mapping[str, Array],
    fixed: Mapping[str, Array],
    steps: Steps,
    *,
    tokenwise: bool = True,
) -> NamedArrays:
    """Compute the results of a plan; NumPy has only the forward pass of some families.

    Args:
        engine: that computes.
        plan: of the computation.
        params: parameters of the model.
        fixed: tokens, targets; see `ParitySubject`.
        steps: `optimizers.ours` or `optimizers.reference`.
        tokenwise: whether to compute one token at a time, too.
    """
    grads: dict[str, Array] = {}
    for name, value in once(engine, plan, params, fixed):
        if name.startswith("grad/"):
            grads[name.removeprefix("grad/")] = value
        yield name, value
    if tokenwise and families.is_language_model(plan.cfg):
        yield from _stepwise(plan, engine, fixed["tokens"])
    if "targets" in fixed and plan.steps:
        yield from _after(engine, plan, params, fixed, grads, steps)


def _after(
    engine: ModelEngine,
    plan: ModelPlan,
    params: Mapping[str, Array],
    fixed: Mapping[str, Array],
    grads: Mapping[str, Array],
    steps: Steps,
) -> NamedArrays:
    """Take the steps of every optimizer; arguments as of `model`, and the gradient at `params`.

    Tables of n-grams stay as they are.
    """

    def gradient(now: Mapping[str, Array], step: int) -> Mapping[str, Array]:
        every = grads
        if step > 1:
            engine.load(plan.cfg, {**params, **now})
            every = engine.differentiate(fixed["tokens"], fixed["targets"])[1]
        return {
            name: grad
            for name, grad in every.items()
            if name in params and not ngrams.is_table(name)
        }

    for rule, values, apart in steps(plan.cfg, params, gradient, plan.steps):
        for name, value in values.items():
            yield f"after/{rule}/{name}", value
        for name, value in apart.items():
            yield f"step/{rule}/{name}", value


def once(
    engine: ModelEngine, plan: ModelPlan, params: Mapping[str, Array], fixed: Mapping[str, Array]
) -> NamedArrays:
    """Compute the results of one forward and one backward pass; arguments as of `model`."""
    engine.load(plan.cfg, params)
    whole = engine.forward(fixed["tokens"])
    yield from _hidden(plan, whole)
    yield "logits", whole.logits
    yield from _state(plan, "state", engine.parts(whole.state))
    if "targets" in fixed:
        loss, grads = engine.differentiate(fixed["tokens"], fixed["targets"])
        yield "loss", np.array(loss, whole.logits.dtype)
        for name in (*families.param_spec(plan.cfg), *families.table_spec(plan.cfg)):
            if name in grads:
                yield f"grad/{name}", grads.pop(name)  # no second copy of a large model


def _hidden(plan: ModelPlan, whole: Forward) -> NamedArrays:
    blocks, last = plan.cfg.num_hidden_layers, len(whole.hidden) - 1
    for number, x in enumerate(whole.hidden):
        beyond = "out_norm" if number == last else f"decoder.{number - blocks - 1}"
        yield f"hidden/{beyond if number > blocks else number}", x


def _state(plan: ModelPlan, prefix: str, blocks: list[list[Array]]) -> NamedArrays:
    """Name the parts of every block's state: C n m or h c n m of the cell, after those of a conv.

    Parts of MAD layers have numbers, and so do the positions read, which follow the last layer.
    """
    for layer, parts in enumerate(blocks):
        if isinstance(plan.cfg, MADConfig):
            yield from ((f"{prefix}/{layer}/{number}", part) for number, part in enumerate(parts))
            continue
        cell = "Cnm" if any(part.ndim == 4 for part in parts) else "hcnm"
        names = ["conv"] * (len(parts) - len(cell)) + list(cell)
        for name, part in zip(names, parts, strict=True):
            yield f"{prefix}/{layer}/{name}", part


def _stepwise(plan: ModelPlan, engine: ModelEngine, tokens: Array) -> NamedArrays:
    state, logits = None, []
    for t in range(tokens.shape[1]):
        one = engine.forward(tokens[:, t : t + 1], state)
        state = one.state
        logits.append(one.logits)
    yield "stepwise/logits", np.concatenate(logits, 1)
    yield from _state(plan, "stepwise/state", engine.parts(state))
