"""The supervisor's part of a recorded run: how it began, who died in it, and what it came to.

Workers append to their own logs (`mlxhog/strategies/turns.py`). Of one that is killed, the
supervisor writes down how far it had come, before anybody may touch the stripe that it held.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from mlxhog.arena import Arena, Layout, event_log
from mlxhog.data.tokens import TokenFile
from mlxhog.errors import ConfigError, EnvironmentLacks
from mlxhog.files import plain_json
from mlxhog.files.durable import disk_errors, replace_file
from mlxhog.machine import machine
from mlxhog.machine.workers import GPU_BACKENDS
from mlxhog.optim import updates
from mlxhog.strategies import turns
from mlxhog.training.plan import Plan

CONFIG = "config.yaml"
"""The configuration of the run, beside its logs: that of the run's folder is what went on last."""


def check(plan: Plan) -> None:
    """Refuse workers of a recorded run whose gradients may be others when they come again.

    Raises:
        ConfigError: there is one.
    """
    on_gpu = [worker.backend for worker in plan.workers if worker.backend in GPU_BACKENDS]
    if on_gpu and plan.config.determinism == "record":
        raise ConfigError(
            f"determinism=record: {on_gpu[0]} is not known to compute the same bits again; "
            "record workers on the CPU, such as --workers mlx:cpu,torch:cpu"
        )


def begin(plan: Plan, directory: Path, arena: Arena) -> None:
    """Write the header of a run whose arena is filled and whose workers have not started."""
    path = directory / event_log.FOLDER / CONFIG
    with disk_errors(f"writing {path}"):
        path.parent.mkdir(exist_ok=True)
        replace_file(path, plan.config.to_yaml().encode())
    event_log.write_json(
        directory,
        "header",
        {
            "format": event_log.FORMAT,
            "workers": [
                {"backend": spec.backend, "threads": spec.threads, "kernels": kernels}
                for spec, kernels in zip(plan.workers, plan.kernels, strict=True)
            ],
            "slots": plan.strategy.slots,
            "layout_sha256": layout_digest(arena.layout),
            "tokens_sha256": TokenFile.open(plan.data.train).digest,
            "machine": here(),
            "versions": versions({worker.backend for worker in plan.workers}),
            "initial_sha256": digests(arena),
        },
    )


def end(directory: Path, arena: Arena, report: Callable[[str], None]) -> None:
    """Write what a run came to, when all its workers have ended; says where that is impossible."""
    values = {
        "format": event_log.FORMAT,
        "sha256": digests(arena),
        "sums": turns.stripe_sums(arena).tolist(),
        "updates": arena.counters.load("version"),
    }
    try:
        event_log.write_json(directory, "end", values)
    except EnvironmentLacks as full:
        report(f"the record has no end, so the run cannot be replayed: {full}")


def digests(arena: Arena) -> dict[str, str]:
    """SHA-256 of the weights and of every segment of optimizer state, by name."""
    layout = arena.layout
    names = [name for name in turns.SHARED if name in layout.segments]
    for slot in range(1, layout.max_workers + 1):
        names += turns.private_names(layout, slot)
    arrays = {name: arena.segment(name) for name in names}
    arrays["params"] = arrays["params"][: layout.probe.offset]
    return {name: hashlib.sha256(values.data).hexdigest() for name, values in arrays.items()}


def layout_digest(layout: Layout) -> str:
    """SHA-256 of where the parameters lie, and of what each lock guards."""
    slots = [vars(slot) for slot in layout.slots.values()]
    facts = [slots, layout.n_floats, layout.n_lock_words, layout.max_workers, updates.STRIPE]
    return hashlib.sha256(plain_json.dumps(facts)).hexdigest()


def versions(backends: set[str]) -> dict[str, str]:
    """Versions of what computes: Python, NumPy, mlxhog and the frameworks of these backends."""
    frameworks = sorted({backend.partition(":")[0] for backend in backends})
    packages = {name: metadata.version(name) for name in ("mlxhog", "numpy", *frameworks)}
    return {"python": platform.python_version(), **packages}


def here() -> dict[str, Any]:
    """This machine, as far as results may depend on it."""
    me = machine.here()
    return {"name": me.name, "processor": machine.chip_name(), "cores": me.cores}
