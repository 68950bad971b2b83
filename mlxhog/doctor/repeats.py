"""Whether a GPU computes the same bits of a gradient again, which a replay needs.

Two processes compute one gradient at once, as in a replay, with float32 as it is there.
"""

from __future__ import annotations

import hashlib

from mlxhog.arena.child import START_S, Child, Failed, Lane
from mlxhog.doctor.checks import Check, CheckResult, check, failed
from mlxhog.doctor.frameworks import PATIENCE_S, Speeds, prepared
from mlxhog.machine.load import LoadWatch
from mlxhog.machine.verdicts import GPU_ENGINES
from mlxhog.optim.gradients import Rows


def check_repeats(speeds: Speeds) -> tuple[list[Check], dict[str, dict[str, bool]]]:
    """Compare the gradients of two processes, for each GPU backend and form of the operations.

    Args:
        speeds: of `check_backends`, which name the backends and forms that work.

    Returns:
        A check for each, and whether they were equal, by backend and form; without failed ones.
    """
    checks: list[Check] = []
    repeats: dict[str, dict[str, bool]] = {}
    for name in (name for name in speeds.usual if name in GPU_ENGINES):
        repeats[name] = {}
        for kernels in ("reference", *["metal"] * (name in speeds.metal)):
            compared, same = _compare(name, kernels)
            checks.append(compared)
            if same is not None:
                repeats[name][kernels] = same
    return checks, repeats


def _compare(name: str, kernels: str) -> tuple[Check, bool | None]:
    title, expected = f"gradients of {name}, kernels {kernels}", "the same bits in two processes"
    consequence, watch = f"no --determinism record with {name}", LoadWatch()
    warn = CheckResult.WARN
    try:
        with Child() as first, Child() as second:
            for child in (first, second):
                child.start(0, gradient_sha256, name, kernels)
            same = len({child.take(0, START_S + PATIENCE_S) for child in (first, second)}) == 1
    except Failed as failure:
        load = watch.look()
        return failed(title, failure, expected, consequence, load, otherwise=warn), None
    observed = expected if same else "other bits in the second process"
    return check(title, same, observed, expected, consequence, otherwise=warn), same


def gradient_sha256(lane: Lane, name: str, kernels: str) -> str:
    """In a child: return the SHA-256 of a gradient."""
    backend, batch = prepared(name, kernels)
    digest = hashlib.sha256()
    for grad in backend.loss_and_grads(batch)[1].values():
        for part in (grad.index, grad.values) if isinstance(grad, Rows) else (grad,):
            digest.update(part.tobytes())
    return digest.hexdigest()
