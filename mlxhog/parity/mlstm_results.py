"""Every result of the mLSTM cell alone, in each of its forms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mlxhog.models.ops.reference import mlstm_numpy
from mlxhog.parity.engines import Engine
from mlxhog.parity.subject import Array, MlstmPlan

Found = Iterator[tuple[str, Array]]
SEQUENCE = "qkvif"
START = ("C0", "n0", "m0")


def results(engine: Engine, plan: MlstmPlan, inputs: Mapping[str, Array], weight: Array) -> Found:
    """Compute the forms that the operators have: `mlstm_cell` on the sequence, and step by step.

    Chunks of the recorded size, chunks that hold the whole sequence (the parallel form), and
    chunks of one (the recurrent form) are one operator.
    """
    S = inputs["q"].shape[1]
    sizes = {"parallel": S, "chunkwise": plan.chunk_size, "recurrent": 1}
    for form, chunk_size in sizes.items():

        def call(ops: Any, xs: Mapping[str, Any], chunk_size: int = chunk_size) -> tuple[Any, Any]:
            state = tuple(xs[name] for name in START) if "C0" in xs else None
            sequence = [xs[letter] for letter in SEQUENCE]
            found: tuple[Any, Any] = ops.mlstm_cell(
                *sequence, chunk_size=chunk_size, eps=plan.eps, state=state
            )
            return found

        h, state, grads = engine.apply(call, inputs, weight)
        yield f"{form}/h", h
        for letter, part in zip("Cnm", state, strict=True):
            yield f"{form}/state/{letter}", part
        for name, grad in grads.items():
            yield f"{form}/grad/{name}", grad
    yield from _stepwise(engine, plan, inputs)


def _stepwise(engine: Engine, plan: MlstmPlan, inputs: Mapping[str, Array]) -> Found:
    now, outputs = dict(inputs), []
    state: list[Array] = []

    def call(ops: Any, xs: Mapping[str, Any]) -> tuple[Any, Any]:
        given = tuple(xs[name] for name in START) if "C0" in xs else None
        found: tuple[Any, Any] = ops.mlstm_cell(
            *(xs[letter] for letter in SEQUENCE), chunk_size=1, eps=plan.eps, state=given
        )
        return found

    for t in range(inputs["q"].shape[1]):
        now |= {letter: inputs[letter][:, t : t + 1] for letter in SEQUENCE}
        h, state, _ = engine.apply(call, now)
        now |= dict(zip(START, state, strict=True))
        outputs.append(h)
    yield "stepwise/h", np.concatenate(outputs, 1)
    yield from _last("stepwise", state)


def reference(plan: MlstmPlan, inputs: Mapping[str, Array], weight: Array) -> Found:
    """Compute the forms in float64; the chunkwise one, equal to the recurrent, without gradient."""
    exact = {name: value.astype(np.float64) for name, value in inputs.items()}
    sequence = [exact[letter] for letter in SEQUENCE]
    state = tuple(exact[name] for name in START) if "C0" in exact else None
    h, last, back = mlstm_numpy.recurrent(*sequence, eps=plan.eps, state=state)
    yield "recurrent/h", h
    yield from _last("recurrent", last)
    grads = back(weight.astype(np.float64))
    names = [*SEQUENCE, *(START if state is not None else ())]
    for name, grad in zip(names, grads[: len(names)], strict=True):
        yield f"recurrent/grad/{name}", grad
    h, last = mlstm_numpy.chunkwise(
        *sequence, chunk_size=plan.chunk_size, eps=plan.eps, state=state
    )
    yield "chunkwise/h", h
    yield from _last("chunkwise", last)
    if state is None:
        h, back = mlstm_numpy.parallel(*sequence, eps=plan.eps)
        yield "parallel/h", h
        for name, grad in zip(SEQUENCE, back(weight.astype(np.float64)), strict=True):
            yield f"parallel/grad/{name}", grad


def _last(form: str, state: Any) -> Found:
    for letter, part in zip("Cnm", state, strict=True):
        yield f"{form}/state/{letter}", part
