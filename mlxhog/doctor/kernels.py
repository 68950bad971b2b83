"""Check the Metal kernels on each engine of an Apple GPU.

Kernels that write parameters are compared with native steps, kernels of models as operators.
"""

import math
import mmap
import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mlxhog.arena import Slot
from mlxhog.arena.child import START_S, Child, Failed, Lane
from mlxhog.backends import probes
from mlxhog.base.load import LoadWatch
from mlxhog.doctor.checks import Check, CheckResult, check_child
from mlxhog.doctor.litmus import inconclusive
from mlxhog.metal import engines
from mlxhog.metal.kernel import FUSED_RTOL
from mlxhog.models.ops.kernels import choose
from mlxhog.optim import SGD, UpdateTarget
from mlxhog.optim.gradients import Rows
from mlxhog.optim.metal_steps import MetalSteps
from mlxhog.optim.rule import StepTrace
from mlxhog.optim.updates import WRITE_MODES

STEPS: Final = "steps"
SIZE: Final = 10_007  # elements: not a multiple of any group
_LIMIT_S: Final = START_S + 120.0  # with the time to compile kernels
_PAGE: Final = 16_384


def check_engine(name: str, tell: Callable[[str], None]) -> tuple[Check, list[dict[str, Any]]]:
    """Start an engine of `mlxhog.metal.engines`, and run the kernels on it.

    Returns:
        The check of the engine, and a row of the record for parameter updates and for each operator
        of the models; no rows if it does not start. A crash is a row with `error`, a timeout on a
        busy machine one with `inconclusive`, too.
    """
    rows, child = list[dict[str, Any]](), Child()

    def call(function: Callable[..., Any], *arguments: str) -> Any:
        """Call a function in the child, which is replaced after a failure."""
        nonlocal child
        try:
            return child.call(_LIMIT_S, function, name, *arguments)
        except Failed:
            child.close()
            child = Child()
            raise

    def begin() -> tuple[bool, str]:
        call(start)
        return True, "as expected"

    try:
        started = check_child(
            f"Metal engine {name}",
            begin,
            "starts",
            "no --gpu-write metal and no Metal kernels of ours here; MLX and torch work without",
            CheckResult.WARN,
        )
        for each in (STEPS, *probes.CHECKS) if started.result == CheckResult.PASS else ():
            tell(f"{each} on {name}")
            error, limit = None, FUSED_RTOL if each == STEPS else 0.0
            cases, fault, reason = list[probes.Compared](), "", ""
            began_s, watch = time.monotonic(), LoadWatch()
            try:
                if each == STEPS:
                    error = call(step_error)
                else:
                    cases = call(operator_cases, each)
                    fault = next((case.fault for case in cases if case.fault), "")
            except Failed as failure:
                fault, reason = str(failure), inconclusive(failure, watch)
            row = {
                "name": each, "engine": name, "ok": not fault and (error or 0.0) <= limit,
                "max_error": error, "tolerance": limit,
                "seconds": round(time.monotonic() - began_s, 3),  # with the time to compile
                "cases": [case._asdict() for case in cases],
            }  # fmt: skip
            row |= {"error": fault} if fault else {}
            rows.append(row | ({"inconclusive": reason} if reason else {}))
    finally:
        child.close()
    return started, rows


def start(lane: Lane, name: str) -> None:
    """In a child: start an engine."""
    lane.keep(name, lambda: engines.create(name))


def operator_cases(lane: Lane, name: str, operator: str) -> list[probes.Compared]:
    """In a child: compare an operator of the models on an engine with the eager one."""
    framework, device, kernels = {
        "mlx": ("mlx", "gpu", "metal"),
        "mps": ("torch", "mps", "metal"),
        "emulated": ("mlx", "cpu", "metal-emulated"),
    }[name]
    ops = choose(framework, kernels, device)
    return list(probes.compared(framework, device, ops, threads=1, names=(operator,)))


def step_error(lane: Lane, name: str) -> float:
    """In a child: return the largest error of an engine's updates of shared memory.

    The updates are of a dense parameter, with a trace, and of some rows of another, against native
    ones. The error is relative to the largest value if that is above 1, and infinite for a NaN.
    """
    engine = lane.keep(name, lambda: engines.create(name))
    places = {"dense": ((SIZE,), 32), "rows": ((101, 33), 32 * (SIZE // 32 + 2))}
    slots = {
        each: Slot(each, shape, offset, math.prod(shape), each)
        for each, (shape, offset) in places.items()
    }
    rng = np.random.default_rng(0)
    places_of_rows = np.arange(3, 95, 4, dtype=np.int32)
    grads: dict[str, NDArray[np.float32] | Rows] = {
        "dense": rng.standard_normal(SIZE, np.float32),
        "rows": Rows(places_of_rows, rng.standard_normal((23, 33), np.float32)),
    }
    start = rng.standard_normal((3, 2 * _PAGE), np.float32)

    def stepped(*, metal: bool) -> NDArray[np.float64]:
        pages = np.frombuffer(mmap.mmap(-1, start.nbytes), np.float32).reshape(start.shape)
        pages[...] = start
        flat, last, prev = pages
        decay = frozenset({"rows"})
        target = UpdateTarget(
            flat=flat, slots=slots, locks=None, mode=WRITE_MODES["cas"], private={}, shared={},
            decay=decay, record=StepTrace(last, prev),
            metal=MetalSteps(engine, flat, slots, decay) if metal else None,
        )  # fmt: skip
        SGD(weight_decay=0.1).step(target, grads, lr=0.3, step=1, grad_scale=0.75)
        return pages.astype(np.float64)

    expected, actual = stepped(metal=False), stepped(metal=True)
    if not np.array_equal(np.isnan(actual), np.isnan(expected)):
        return float("inf")
    return float(np.abs(actual - expected).max() / max(1.0, np.abs(expected).max()))
