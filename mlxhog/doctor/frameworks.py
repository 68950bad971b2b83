"""Checks of the frameworks: one gradient on every backend, every way between memories.

All of it happens in processes of their own, since a framework can end its process.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np

from mlxhog import arena, backends
from mlxhog.arena.child import START_S, Child, Failed, Lane
from mlxhog.backends.backend import Grads
from mlxhog.data.batch import Batch
from mlxhog.doctor.checks import Check, Result, absent
from mlxhog.machine.machine import Machine
from mlxhog.machine.verdicts import GPU_ENGINES
from mlxhog.machine.workers import BACKENDS, missing
from mlxhog.models.families import init_params, param_spec
from mlxhog.models.registry import load_architecture
from mlxhog.optim.gradients import Rows

MODEL: Final = "tiny"
BATCH, LENGTH = 2, 256  # what `mlxhog train` begins with
_EXPECTED = "starts, and computes a finite gradient of the model tiny"


@dataclass
class Speeds:
    """Tokens per second of one worker with one thread, by backend.

    Attributes:
        usual: with native kernels on a CPU, with the framework's own operations on a GPU.
        metal: of GPUs, with our Metal kernels.
    """

    usual: dict[str, float] = field(default_factory=dict)
    metal: dict[str, float] = field(default_factory=dict)


def check_backends(
    machine: Machine, seconds: float, *, agreed: Collection[str] = ()
) -> tuple[list[Check], Speeds]:
    """Start each backend in a process of its own.

    Args:
        machine: says what cannot be here.
        seconds: how long each computes gradients, with one thread.
        agreed: Metal engines on which every kernel agreed with its reference; GPU workers of these
            are measured with the Metal kernels too, right after.

    Returns:
        A check per backend and form, and the speeds of those that work.
    """
    checks: list[Check] = []
    speeds = Speeds()
    for name in BACKENDS:
        lack = missing(name, machine)
        if lack is not None:
            checks.append(absent(f"backend {name}", lack, _EXPECTED))
            continue
        consequence = f"--workers {name} cannot train here"
        usual = "reference" if name in GPU_ENGINES else "auto"
        result = _measure(f"backend {name}", name, usual, seconds, Result.FAIL, consequence)
        checks.append(result.check)
        if result.tokens_per_s is None:
            continue
        speeds.usual[name] = result.tokens_per_s
        if GPU_ENGINES.get(name) in agreed:
            consequence = f"--kernels auto is reference on {name}, and metal fails"
            title = f"backend {name}, Metal kernels"
            result = _measure(title, name, "metal", seconds, Result.WARN, consequence)
            checks.append(result.check)
            if result.tokens_per_s is not None:
                speeds.metal[name] = result.tokens_per_s
    return checks, speeds


class _Measurement(NamedTuple):
    check: Check
    tokens_per_s: float | None


def _measure(
    title: str, name: str, kernels: str, seconds: float, otherwise: Result, consequence: str
) -> _Measurement:
    try:
        with Child() as child:
            speed, loss = child.call(
                START_S + 10 * seconds, measure_gradients, name, kernels, seconds
            )
    except Failed as failure:
        return _Measurement(Check(title, otherwise, str(failure), _EXPECTED, consequence), None)
    found = f"loss {loss:.3f}, {speed:,.0f} tokens/s with one thread"
    return _Measurement(Check(title, Result.PASS, found, _EXPECTED), speed)


def measure_gradients(lane: Lane, name: str, kernels: str, seconds: float) -> tuple[float, float]:
    """In a child: return tokens per second and the first loss.

    Raises:
        ValueError: the gradient is not finite, or zero.
    """
    backend = backends.create(name, threads=1, kernels=kernels, cpu_blas="auto")
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


def _check_gradients(loss: float, grads: Grads) -> None:
    if not np.isfinite(loss):
        raise ValueError(f"the loss is {loss}")
    for name, grad in grads.items():
        values: Any = grad.values if isinstance(grad, Rows) else grad
        if not np.isfinite(values).all() or not values.any():
            raise ValueError(f"the gradient of {name} is not finite, or all zero")


# -- the ways between host memory and the frameworks' memory ---------------------------------------

IMPORT_BYTES: Final = 100 << 20
QUICK_IMPORT_BYTES: Final = 4 << 20


@dataclass(frozen=True)
class Probe:
    """Something to try in a child.

    Attributes:
        what: its name, should it end the child.
        target: function below `mlxhog.doctor`, as `module:function`, which returns checks.
        args: of the function.
        worst: what it means that the child ended.
        consequence: what follows from that.
    """

    what: str
    target: str
    args: tuple[int, ...] = ()
    worst: Result = Result.FAIL
    consequence: str = "how this memory is shared is not known: keep to the defaults"


def check_imports(machine: Machine, *, quick: bool) -> list[Check]:
    """Try every way between the frameworks that are installed."""
    probes: list[Probe] = []
    nbytes = QUICK_IMPORT_BYTES if quick else IMPORT_BYTES
    if "mlx" in machine.frameworks:
        probes.append(Probe("memory of MLX", "probes_mlx:examine", (nbytes,)))
    if "torch" in machine.frameworks:
        probes.append(Probe("memory of torch", "probes_torch:examine"))
    if {"mlx", "torch"} <= machine.frameworks:
        probes.append(Probe("memory of MLX and torch", "probes_torch:examine_with_mlx"))
    if "mlx" in machine.frameworks:  # last, since Metal may end the process over it
        probes.append(
            Probe(
                "import of an unaligned address",
                "probes_mlx:unaligned",
                (nbytes,),
                Result.WARN,
                "none: mlxhog refuses such an address itself",
            )
        )
    return _run_probes(probes)


def _run_probes(probes: Iterable[Probe]) -> list[Check]:
    """Run each probe in a child, which alone imports frameworks; in a new one if it dies."""
    checks: list[Check] = []
    child: Child | None = None
    try:
        for probe in probes:
            child = child or Child()
            try:
                checks += child.call(
                    START_S, call_by_name, f"mlxhog.doctor.{probe.target}", *probe.args
                )
            except Failed as failure:
                expected = "every way can be tried"
                checks.append(
                    Check(probe.what, probe.worst, str(failure), expected, probe.consequence)
                )
                child.close()
                child = None
    finally:
        if child is not None:
            child.close()
    return checks


def call_by_name(lane: Lane, target: str, *args: Any) -> list[Check]:
    """In a child: call `module:function`."""
    module, _, function = target.partition(":")
    checks: list[Check] = getattr(importlib.import_module(module), function)(lane, *args)
    return checks
