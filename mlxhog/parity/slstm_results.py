"""Every result of the sLSTM cell alone: over the sequence, and one position at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mlxhog.models.ops import slstm_numpy
from mlxhog.parity.engines import Engine
from mlxhog.parity.subject import Array

Found = Iterator[tuple[str, Array]]
SEQUENCE = "ifzo"
WEIGHTS = ("R", "b")
START = ("h0", "c0", "n0", "m0")
STATE = "hcnm"


def results(engine: Engine, inputs: Mapping[str, Array], weight: Array) -> Found:
    """Compute the cell with the operators of an engine."""

    def call(ops: Any, xs: Mapping[str, Any]) -> tuple[Any, Any]:
        given = [xs[name] for name in (*SEQUENCE, *WEIGHTS)]
        found: tuple[Any, Any] = ops.slstm_cell(*given, state=tuple(xs[name] for name in START))
        return found

    h, last, grads = engine.apply(call, inputs, weight)
    yield "sequence/h", h
    for letter, part in zip(STATE, last, strict=True):
        yield f"sequence/state/{letter}", part
    for name, grad in grads.items():
        yield f"sequence/grad/{name}", grad
    trace: list[list[Array]] = []
    now = dict(inputs)
    for t in range(h.shape[1]):
        now |= {letter: inputs[letter][:, t : t + 1] for letter in SEQUENCE}
        _, state, _ = engine.apply(call, now)
        now |= dict(zip(START, state, strict=True))
        trace.append(state)
    yield from _trace([np.stack(parts, 1) for parts in zip(*trace, strict=True)])


def reference(inputs: Mapping[str, Array], weight: Array) -> Found:
    """Compute the cell in float64; step by step is what it does anyway."""
    exact = {name: value.astype(np.float64) for name, value in inputs.items()}
    names = (*SEQUENCE, *WEIGHTS)
    states, back = slstm_numpy.slstm_cell(
        *(exact[name] for name in names), state=[exact[name] for name in START]
    )
    yield "sequence/h", states[0]
    for letter, part in zip(STATE, states, strict=True):
        yield f"sequence/state/{letter}", part[:, -1]
    grads = back(weight.astype(np.float64))
    for name, grad in zip((*names, *START), grads, strict=True):
        yield f"sequence/grad/{name}", grad
    yield from _trace(list(states))


def _trace(states: list[Array]) -> Found:
    """h, c, n and m after every position, each (B, S, NH, DH)."""
    yield "stepwise/h", states[0]
    for letter, part in zip(STATE[1:], states[1:], strict=True):
        yield f"stepwise/states/{letter}", part
