"""The supervisor's part of a recorded run: its start, the deaths of workers, and its end.

Start and end are JSON files, `RecordHeader` and `RecordEnd`; their values are checked when they are
read. Workers append to their own logs (`mlxhog/strategies/access_order.py`). If one is killed, the
supervisor records its progress before any process may touch the stripe that it held.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import Any, Self

import numpy as np

from mlxhog.arena import Arena, Layout, event_log
from mlxhog.arena.event_log import Begin, UInt32
from mlxhog.data.tokens import TokenFile
from mlxhog.errors import EnvironmentLacks, RunError, message_of, shown
from mlxhog.files import plain_json
from mlxhog.files.durable import disk_errors, replace_file
from mlxhog.machine import machine
from mlxhog.machine.workers import BACKENDS, MOST_WORKERS, WorkerSpec
from mlxhog.models.ops import kernels
from mlxhog.optim import updates
from mlxhog.report.views import Tell
from mlxhog.strategies import access_order
from mlxhog.training.plan import Plan

MOST_THREADS = 4096
CONFIG = "config.yaml"
"""The recorded configuration, beside the logs; a resume replaces that in the run's folder."""


@dataclass(frozen=True)
class RecordHeader:
    """The set-up of a recorded run, in `header.json`.

    Attributes:
        workers: workers at the start.
        kernels: form of the model's operations of each worker.
        slots: number in the worker table.
        layout_sha256: digest of the layout.
        tokens_sha256: digest of the training text.
        machine: name, processor and cores.
        versions: of Python, NumPy, mlxhog and the frameworks.
        initial_sha256: digests of weights and optimizer state at the beginning.
    """

    workers: tuple[WorkerSpec, ...]
    kernels: tuple[str, ...]
    slots: int
    layout_sha256: str
    tokens_sha256: str
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    initial_sha256: Mapping[str, str]

    def write(self, directory: Path) -> None:
        """Write it into a run's folder.

        Raises:
            EnvironmentLacks: the disk is full, or the system refuses.
        """
        pairs = zip(self.workers, self.kernels, strict=True)
        workers = [{**asdict(spec), "kernels": form} for spec, form in pairs]
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        del values["kernels"]
        _write(directory, "header", {**values, "workers": workers})

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Read the header of a run.

        Raises:
            RunError: the run was not recorded, or the file is damaged.
        """
        none = (
            f"the run {directory} was not recorded; record one with: mlxhog train "
            "--determinism record"
        )
        with _reading(directory, "header", none) as values:
            workers = [_begin(one) for one in _list(values, "workers")]
            slots = values["slots"]
            if type(slots) is not int or not len(workers) <= slots <= MOST_WORKERS:
                raise ValueError(f"slots: {shown(slots)}, expected at most {MOST_WORKERS:,}")
            if not workers:
                raise ValueError("it names no worker")
            return cls(
                workers=tuple(WorkerSpec(one.backend, one.threads) for one in workers),
                kernels=tuple(one.kernels for one in workers),
                slots=slots,
                layout_sha256=_text(values["layout_sha256"]),
                tokens_sha256=_text(values["tokens_sha256"]),
                machine={name: _text(values["machine"][name]) for name in ("name", "processor")},
                versions=_texts(values["versions"]),
                initial_sha256=_texts(values["initial_sha256"]),
            )


@dataclass(frozen=True)
class RecordEnd:
    """The final state of a recorded run, in `end.json`.

    Attributes:
        sha256: digests of weights and optimizer state.
        sums: of every stripe of the weights, (stripes,) uint32.
        updates: of the parameters.
    """

    sha256: Mapping[str, str]
    sums: UInt32
    updates: int

    def write(self, directory: Path) -> None:
        """Write it into a run's folder.

        Raises:
            EnvironmentLacks: the disk is full, or the system refuses.
        """
        _write(directory, "end", vars(self))

    @classmethod
    def read(cls, directory: Path, stripes: int | None = None) -> Self:
        """Read the end of a run.

        Args:
            directory: of the run.
            stripes: number of stripes of its weights; None for any.

        Raises:
            RunError: the run has not ended, or the file is damaged.
        """
        none = (
            f"the log of {directory} has no end: the run still trains, or was killed with its "
            "supervisor; only a run that has ended can be replayed"
        )
        with _reading(directory, "end", none) as values:
            sha256, sums = _texts(values["sha256"]), _list(values, "sums")
            if "params" not in sha256:
                raise ValueError("it has no digest of the weights")
            if not all(type(one) is int and 0 <= one < 1 << 32 for one in sums):
                raise ValueError("sums: expected numbers of 32 bits")
            if len(sums) != (stripes or len(sums)):
                raise ValueError(f"{len(sums)} sums, expected {stripes}")
            return cls(sha256, np.asarray(sums, np.uint32), values["updates"])


def _write(directory: Path, name: str, values: Mapping[str, Any]) -> None:
    path = directory / event_log.FOLDER / f"{name}.json"
    content = plain_json.dumps({"format": event_log.FORMAT, **values}, indent=1) + b"\n"
    with disk_errors(f"writing {path}"):
        replace_file(path, content)


@contextmanager
def _reading(directory: Path, name: str, none: str) -> Iterator[dict[str, Any]]:
    """Yield the values of one of the two files; bad values raise a `RunError`."""
    path = directory / event_log.FOLDER / f"{name}.json"
    try:
        values = plain_json.read(path)
        if not isinstance(values, dict) or values["format"] != event_log.FORMAT:
            raise ValueError(f"expected a log of format {event_log.FORMAT}")
        yield values
    except FileNotFoundError:
        raise RunError(none) from None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise RunError(
            f"{path} cannot be read ({message_of(error)}); replay it with the version that "
            "recorded it, or copy the run's folder again"
        ) from error


def check_worker(begin: Begin) -> None:
    """Refuse a recorded worker that is impossible.

    Raises:
        RunError: its backend, number of threads, or form of the operations does not exist.
    """
    if (
        begin.backend not in BACKENDS
        or begin.kernels not in kernels.CHOICES
        or type(begin.threads) is not int
        or not 1 <= begin.threads <= MOST_THREADS
    ):
        raise RunError(
            f"the record names a worker with backend {shown(begin.backend)}, threads "
            f"{shown(begin.threads)} and kernels {shown(begin.kernels)}; expected one of "
            f"{', '.join(BACKENDS)}, 1 to {MOST_THREADS:,} and one of {', '.join(kernels.CHOICES)}"
        )


def _begin(values: Mapping[str, Any]) -> Begin:
    begin = Begin(values["backend"], values["threads"], values["kernels"])
    check_worker(begin)
    return begin


def _list(values: Mapping[str, Any], name: str) -> list[Any]:
    if not isinstance(values[name], list):
        raise ValueError(f"{name}: {shown(values[name])}, expected a list")
    return list(values[name])


def _texts(values: object) -> dict[str, str]:
    if not isinstance(values, dict):
        raise ValueError(f"{shown(values)}, expected texts by name")
    return {name: _text(value) for name, value in values.items()}


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{shown(value)}, expected a text")
    return value


def begin(plan: Plan, directory: Path, arena: Arena) -> None:
    """Write the header of a run whose arena is filled and whose workers have not started."""
    path = directory / event_log.FOLDER / CONFIG
    with disk_errors(f"writing {path}"):
        path.parent.mkdir(exist_ok=True)
        replace_file(path, plan.config.to_yaml().encode())
    header = RecordHeader(
        workers=plan.workers,
        kernels=plan.kernels,
        slots=plan.strategy.slots,
        layout_sha256=layout_digest(arena.layout),
        tokens_sha256=TokenFile.open(plan.data.train).digest,
        machine=here(),
        versions=versions({worker.backend for worker in plan.workers}),
        initial_sha256=digests(arena),
    )
    header.write(directory)


def end(directory: Path, arena: Arena, report: Tell) -> None:
    """Write the end of a run, after that of its workers; reports a failure."""
    state = RecordEnd(
        digests(arena), access_order.stripe_sums(arena), arena.counters.load("version")
    )
    try:
        state.write(directory)
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
    """Versions of Python, NumPy, mlxhog and the frameworks of these backends."""
    frameworks = sorted({backend.partition(":")[0] for backend in backends})
    packages = {name: metadata.version(name) for name in ("mlxhog", "numpy", *frameworks)}
    return {"python": platform.python_version(), **packages}


def here() -> dict[str, Any]:
    """The properties of this machine that results may depend on."""
    me = machine.here()
    return {"name": me.name, "processor": machine.chip_name(), "cores": me.cores}
