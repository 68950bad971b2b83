"""The supervisor's part of a recorded run: its header and its end.

Workers append to their own logs (`mlxhog/strategies/recorded.py`). If one is killed, the supervisor
logs its progress (`access_order.settle`) before any process may touch the stripe that it held.
"""

from __future__ import annotations

import hashlib
import platform
from importlib import metadata
from pathlib import Path

from mlxhog.arena import Arena, Layout, event_log
from mlxhog.base import machine, plain_json
from mlxhog.base.durable import disk_errors, replace_file
from mlxhog.data.tokens import TokenFile
from mlxhog.errors import EnvironmentLacks
from mlxhog.optim import updates
from mlxhog.report.views import Tell
from mlxhog.strategies import access_order
from mlxhog.training.plan import Plan

CONFIG = "config.yaml"
"""The recorded configuration, beside the logs; a resume replaces that in the run's folder."""


def begin(plan: Plan, directory: Path, arena: Arena) -> None:
    """Write the header of a run whose arena is filled and whose workers have not started.

    Raises:
        EnvironmentLacks: the disk is full, or the system refuses.
    """
    path = directory / event_log.FOLDER / CONFIG
    with disk_errors(f"writing {path}"):
        path.parent.mkdir(exist_ok=True)
        replace_file(path, plan.config.to_yaml().encode())
    pairs = zip(plan.workers, plan.kernels, strict=True)
    header = event_log.Header(
        workers=tuple(event_log.Begin(one.backend, one.threads, form) for one, form in pairs),
        slots=plan.strategy.slots,
        layout_sha256=layout_digest(arena.layout),
        tokens_sha256=TokenFile.open(plan.data.train).digest,
        versions=versions({worker.backend for worker in plan.workers}),
        initial_sha256=digests(arena),
    )
    event_log.store(directory, header)


def end(directory: Path, arena: Arena, report: Tell) -> None:
    """Write the end of a run, after that of its workers; reports a failure."""
    sums = tuple(access_order.stripe_sums(arena).tolist())
    try:
        event_log.store(directory, event_log.End(digests(arena), sums))
    except EnvironmentLacks as full:
        report(f"the record has no end, so the run cannot be replayed: {full}")


def digests(arena: Arena) -> dict[str, str]:
    """SHA-256 of the weights and of every segment of optimizer state, by name."""
    layout = arena.layout
    names = [name for name in access_order.SHARED if name in layout.segments]
    for slot in range(1, layout.max_workers + 1):
        names += access_order.private_names(layout, slot)
    arrays = {name: arena.segment(name) for name in names}
    arrays["params"] = arrays["params"][: layout.probe.offset]
    return {name: hashlib.sha256(values.data).hexdigest() for name, values in arrays.items()}


def layout_digest(layout: Layout) -> str:
    """SHA-256 of the places of the parameters and the ranges of the locks."""
    slots = [vars(slot) for slot in layout.slots.values()]
    facts = [slots, layout.n_floats, layout.n_lock_words, layout.max_workers, updates.STRIPE]
    return hashlib.sha256(plain_json.dumps(facts)).hexdigest()


def versions(backends: set[str]) -> dict[str, str]:
    """What bits depend on: Python, NumPy, mlxhog, the frameworks of these backends, the machine.

    Raises:
        ModuleNotFoundError: a framework is not installed.
    """
    frameworks = sorted({backend.partition(":")[0] for backend in backends})
    return {
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("mlxhog", "numpy", *frameworks)},
        "machine": machine.here().name,
        "processor": machine.chip_name(),
    }
