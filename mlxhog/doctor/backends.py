"""Every backend started for real: one gradient, and how many tokens it manages in a second."""

from __future__ import annotations

import time
from typing import Any, Final

import numpy as np

from mlxhog import arena, backends
from mlxhog.data.batch import Batch
from mlxhog.doctor.checks import Check, Result, absent
from mlxhog.doctor.child import START_S, Child, Failed, Lane
from mlxhog.gradients import Rows
from mlxhog.machine import Machine
from mlxhog.mix import BACKENDS, missing
from mlxhog.models.registry import load_architecture
from mlxhog.models.xlstm_large import init_params, param_spec

MODEL: Final = "tiny"
BATCH, LENGTH = 2, 256  # what `mlxhog train` begins with
_EXPECTED = "starts, and computes a finite gradient of the model tiny"


def examine(machine: Machine, seconds: float) -> tuple[list[Check], dict[str, float]]:
    """Start each backend in a process of its own.

    Args:
        machine: says what cannot be here.
        seconds: how long each computes gradients, with one thread.

    Returns:
        A check per backend, and tokens per second of those that work.
    """
    checks: list[Check] = []
    tokens_per_s: dict[str, float] = {}
    for name in BACKENDS:
        lack = missing(name, machine)
        if lack is not None:
            checks.append(absent(f"backend {name}", lack, _EXPECTED))
            continue
        try:
            with Child() as child:
                speed, loss = child.call(START_S + 10 * seconds, gradients, name, seconds)
        except Failed as failure:
            consequence = f"--workers {name} cannot train here"
            checks.append(
                Check(f"backend {name}", Result.FAIL, str(failure), _EXPECTED, consequence)
            )
            continue
        tokens_per_s[name] = speed
        found = f"loss {loss:.3f}, {speed:,.0f} tokens/s with one thread"
        checks.append(Check(f"backend {name}", Result.PASS, found, _EXPECTED))
    return checks, tokens_per_s


def gradients(lane: Lane, name: str, seconds: float) -> tuple[float, float]:
    """In a child: return tokens per second and the first loss.

    Raises:
        ValueError: the gradient is not finite, or zero.
    """
    backend = backends.create(name, threads=1, kernels="auto", cpu_blas="auto")
    model = load_architecture(MODEL)
    layout = arena.plan(param_spec(model), max_workers=1, n_tickets=1)
    backend.bind(model, layout.slots, layout.n_floats, None)
    for parameter, value in init_params(model, 0).items():
        slot = layout.slots[parameter]
        backend.inbox[slot.offset : slot.offset + slot.size] = value.reshape(-1)
    backend.refresh()
    tokens = np.random.default_rng(0).integers(0, 256, (BATCH, LENGTH + 1), dtype=np.int32)
    x, y = np.ascontiguousarray(tokens[:, :-1]), np.ascontiguousarray(tokens[:, 1:])
    batch = Batch(x, y, x.size)
    loss, grads = backend.loss_and_grads(batch)
    _check_gradients(loss, grads)
    steps, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds or steps == 0:
        backend.loss_and_grads(batch)
        steps += 1
    return steps * x.size / (time.perf_counter() - begin), loss


def _check_gradients(loss: float, grads: backends.Grads) -> None:
    if not np.isfinite(loss):
        raise ValueError(f"the loss is {loss}")
    for name, grad in grads.items():
        values: Any = grad.values if isinstance(grad, Rows) else grad
        if not np.isfinite(values).all() or not values.any():
            raise ValueError(f"the gradient of {name} is not finite, or all zero")
