"""Every result of a language model, in the order in which it comes about."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from mlxhog.models import families
from mlxhog.models.mad import MADConfig
from mlxhog.models.spec import initial_value
from mlxhog.parity.engines import Forward, ModelEngine, NumPyEngine
from mlxhog.parity.optimizers import After
from mlxhog.parity.subject import Array, ModelPlan

Found = Iterator[tuple[str, Array]]
Steps = Callable[..., Iterator[After]]


def results(
    engine: ModelEngine,
    plan: ModelPlan,
    params: Mapping[str, Array],
    fixed: Mapping[str, Array],
    steps: Steps,
    *,
    tokenwise: bool = True,
) -> Found:
    """Compute what the plan asks for.

    Args:
        engine: who computes.
        plan: what.
        params: parameters of the model.
        fixed: tokens, targets, greedy_prompt; see `Subject`.
        steps: `optimizers.ours`, or another form of it.
        tokenwise: False leaves out what is computed one token at a time.
    """
    grads: dict[str, Array] = {}
    for name, value in once(engine, plan, params, fixed):
        if name.startswith("grad/"):
            grads[name.removeprefix("grad/")] = value
        yield name, value
    if tokenwise and families.is_language_model(plan.cfg):
        yield from _stepwise(plan, engine, fixed["tokens"])
    if tokenwise and "greedy_prompt" in fixed:
        yield "greedy_ids", greedy(engine, fixed["greedy_prompt"], plan.greedy)
    if "targets" in fixed and plan.steps:
        yield from _after(engine, plan, params, fixed, grads, steps)


def _after(
    engine: ModelEngine,
    plan: ModelPlan,
    params: Mapping[str, Array],
    fixed: Mapping[str, Array],
    grads: Mapping[str, Array],
    steps: Steps,
) -> Found:
    """Take the steps of every optimizer; arguments as `results`, and the gradient at `params`."""

    def gradient(now: Mapping[str, Array], step: int) -> Mapping[str, Array]:
        if step == 1:
            return grads
        engine.load(plan.cfg, now)
        return engine.differentiate(fixed["tokens"], fixed["targets"])[1]

    for rule, values, apart in steps(plan.cfg, params, gradient, plan.steps):
        for name, value in values.items():
            yield f"after/{rule}/{name}", value
        for name, value in apart.items():
            yield f"step/{rule}/{name}", value


def once(
    engine: ModelEngine, plan: ModelPlan, params: Mapping[str, Array], fixed: Mapping[str, Array]
) -> Found:
    """Compute what one forward and one backward pass give; arguments as `results`."""
    engine.load(plan.cfg, params)
    whole = engine.forward(fixed["tokens"])
    yield from _hidden(plan, whole)
    yield "logits", whole.logits
    yield from _state(plan, "state", engine.parts(whole.state))
    if "targets" in fixed:
        loss, grads = engine.differentiate(fixed["tokens"], fixed["targets"])
        yield "loss", np.array(loss, whole.logits.dtype)
        for name in families.param_spec(plan.cfg):
            yield f"grad/{name}", grads[name]


def forward_alone(plan: ModelPlan) -> bool:
    """Whether the float64 reference of the family has no gradient and no state."""
    return not families.of(plan.cfg).reference_gradient


def forward(
    engine: NumPyEngine, plan: ModelPlan, params: Mapping[str, Array], fixed: Mapping[str, Array]
) -> Found:
    """Compute what a forward pass over the whole sequence gives; arguments as `results`."""
    engine.load(plan.cfg, params)
    whole = engine.forward(fixed["tokens"])
    yield from _hidden(plan, whole)
    yield "logits", whole.logits
    if "targets" in fixed:
        yield "loss", np.array(engine.loss(fixed["tokens"], fixed["targets"]))


def _hidden(plan: ModelPlan, whole: Forward) -> Found:
    blocks, last = plan.cfg.num_hidden_layers, len(whole.hidden) - 1
    for number, x in enumerate(whole.hidden):
        beyond = "out_norm" if number == last else f"decoder.{number - blocks - 1}"
        yield f"hidden/{beyond if number > blocks else number}", x


def _state(plan: ModelPlan, prefix: str, blocks: list[list[Array]]) -> Found:
    """Name the parts of every block's state: C n m or h c n m of the cell, after a conv's.

    Those of MAD layers have numbers, and so has what follows the last layer, the positions read.
    """
    for layer, parts in enumerate(blocks):
        if isinstance(plan.cfg, MADConfig):
            yield from ((f"{prefix}/{layer}/{number}", part) for number, part in enumerate(parts))
            continue
        cell = "Cnm" if any(part.ndim == 4 for part in parts) else "hcnm"
        names = ["conv"] * (len(parts) - len(cell)) + list(cell)
        for name, part in zip(names, parts, strict=True):
            yield f"{prefix}/{layer}/{name}", part


def _stepwise(plan: ModelPlan, engine: ModelEngine, tokens: Array) -> Found:
    state, logits = None, []
    for t in range(tokens.shape[1]):
        one = engine.forward(tokens[:, t : t + 1], state)
        state = one.state
        logits.append(one.logits)
    yield "stepwise/logits", np.concatenate(logits, 1)
    yield from _state(plan, "stepwise/state", engine.parts(state))


def greedy(engine: ModelEngine, prompt: Array, count: int) -> Array:
    """Return the `count` likeliest tokens that follow, (B, count) int32."""
    ids: list[Array] = []
    token, state = prompt, None
    while len(ids) < count:
        one = engine.forward(token, state)
        state = one.state
        token = one.logits[:, -1:].argmax(-1).astype(np.int32)
        ids.append(token)
    return np.concatenate(ids, 1)


def fixed_init(plan: ModelPlan) -> Found:
    """Initial values that a formula gives, of the parameters that are asked for."""
    spec = families.param_spec(plan.cfg)
    for name in plan.fixed_init:
        if spec[name].init.partition(":")[0] not in RANDOM:
            yield f"init/{name}", initial_value(spec[name], seed=0)


RANDOM = ("normal", "uniform")
