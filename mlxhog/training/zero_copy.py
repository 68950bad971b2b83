"""Unified memory: what of the arena a worker's GPU uses in place.

An import that the system refuses, or that turns out to be a copy, costs speed and nothing else: the
worker goes on with snapshots and lets the CPU add its steps, and the run's opening lines say so.
"""

from __future__ import annotations

from mlxhog.arena import Arena
from mlxhog.arena.importing import whole
from mlxhog.backends.backend import Float32
from mlxhog.errors import EnvironmentLacks
from mlxhog.metal import engine
from mlxhog.metal.engine import shares_memory
from mlxhog.optim.metal_steps import RECORDED, MetalSteps, Rule
from mlxhog.strategies import look_ahead
from mlxhog.training.job import Job
from mlxhog.training.worker_messages import leave_notice

COPY = "what one side writes is not seen on the other"


def live_params(job: Job, arena: Arena) -> Float32 | None:
    """The shared parameters where this worker computes with them, else None: a snapshot is taken.

    On a CPU they are memory like any other.
    """
    if job.config.read != "live":
        return None
    backend = job.spec.backend
    if backend != "mlx:gpu":
        return arena.params
    try:
        gpu = engine.create("mlx")
        _refuse_straddling(arena, ["params"])
        params = gpu.adopt(whole(arena.params))
        if shares_memory(gpu, params, arena.params, arena.layout.self_check(job.slot)):
            return arena.params
        problem = COPY
    except EnvironmentLacks as error:
        problem = str(error)
    leave_notice(f"worker {job.slot} ({backend}) takes snapshots, not live reads: {problem}")
    return None


def metal_steps(job: Job, arena: Arena, rule: Rule, decay: frozenset[str]) -> MetalSteps | None:
    """What adds this worker's steps by Metal kernels; None where native code adds them.

    Raises:
        EnvironmentLacks: emulation lacks its C++ compiler.
        MetalError: a kernel does not compile.
    """
    if job.engine is None:
        return None
    gpu = engine.create(job.engine, threads=job.spec.threads)
    slots = {job.slot, 1}  # where a strategy keeps one state for all, it is slot 1's
    recorded = tuple(look_ahead.segments(job.config, job.setup.strategy.slots))
    private = (f"{name}.{slot}" for name in rule.private for slot in slots)
    names = [*private, *rule.shared, *recorded]
    try:
        if not gpu.emulated:
            _refuse_straddling(arena, ["params", *names])
        steps = MetalSteps(gpu, arena.params, arena.layout.slots, decay)
        for name in names:  # now, while the CPU can still take over
            steps.adopt(arena.segment(name))
        at = arena.layout.self_check(job.slot)
        problem = None if shares_memory(gpu, steps.arena, arena.params, at) else COPY
    except EnvironmentLacks as error:
        if gpu.emulated:
            raise
        problem = str(error)
    if problem is None:
        steps.warm_up(rule)
        if recorded:
            steps.warm_up(RECORDED["sgd" if rule.muon else rule.name])
        return steps
    leave_notice(
        f"worker {job.slot} ({job.spec.backend}) lets the CPU add its steps, not the GPU: {problem}"
    )
    return None


def _refuse_straddling(arena: Arena, names: list[str]) -> None:
    """Refuse segments that no GPU should import as one range; see `mlxhog.arena.layout`.

    Raises:
        EnvironmentLacks: there is one.
    """
    for name in names:
        if arena.layout.straddles(name):
            nbytes = arena.layout.segments[name].nbytes
            raise EnvironmentLacks(
                f"segment {name} has {nbytes:,} bytes, and shared memory of macOS consists of "
                "pieces of 4 GiB, which a GPU imports one by one; smaller models fit"
            )
