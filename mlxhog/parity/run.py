"""Run every side in a process of its backend's own, and gather the arrays.

Arrays travel by files in a folder that is gone when the block ends, whatever ended it; processes
are spawned, and end with their parent.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from multiprocessing import connection
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from mlxhog.arena.child import Child, Failed
from mlxhog.errors import WorkerFailed
from mlxhog.files import tensors
from mlxhog.parity import work
from mlxhog.parity.faults import Fault
from mlxhog.parity.sides import Side
from mlxhog.parity.subject import Array, Results, Subject

Tell = Callable[[str, str], None]
PATIENCE_S = 60.0  # for the rest of a message that has begun to arrive


@dataclass(frozen=True)
class Spoilt:
    """An input that one side gets another value of."""

    side: str
    name: str
    value: Array


@dataclass
class _Task:
    """A child, and the sides it has yet to compute."""

    child: Child
    waiting: list[Side]
    now: Side | None = field(default=None)


@contextmanager
def computed(
    subject: Subject,
    sides: Sequence[Side],
    spoilt: Spoilt | None,
    tell: Tell,
    faults: Mapping[str, Fault] | None = None,
) -> Iterator[dict[str, Results]]:
    """Compute the results of every side; they are there until the block ends.

    Args:
        subject: what to compute.
        sides: who computes; those of one backend in a row.
        spoilt: see `Spoilt`.
        tell: called with (side, what it does).
        faults: what sides compute with, by their names.

    Raises:
        WorkerFailed: a side could not compute it, or its process died; says what it said last.
    """
    with tempfile.TemporaryDirectory(prefix="mlxhog-parity-") as name, ExitStack() as stack:
        folder = Path(name)
        given = folder / "given.safetensors"
        save_file(_flat(subject), given)
        if spoilt is not None:
            save_file({work.INPUT + spoilt.name: spoilt.value}, folder / "spoilt.safetensors")
        groups = [list(group) for _, group in groupby(sides, lambda side: side.backend)]
        # The last ones first: peers take longest to import.
        tasks = [_Task(stack.enter_context(Child()), group) for group in reversed(groups)]
        orders: dict[str, list[str]] = {}
        for task in tasks:
            _next(task, subject, given, spoilt, tell, faults or {})
        while running := {task.child.pipe: task for task in tasks if task.now is not None}:
            for pipe in connection.wait(list(running)):
                task = running[pipe]  # type: ignore[index]  # wait returns what it was given
                done, names = _take(task)
                orders[done.name] = names
                _next(task, subject, given, spoilt, tell, faults or {})
        results: dict[str, Results] = {}
        for side in sides:
            found = tensors.read(_file(folder, side))
            results[side.name] = {name: found[name] for name in orders[side.name]}
        yield results


def _flat(subject: Subject) -> dict[str, Array]:
    inputs = {work.INPUT + name: value for name, value in subject.inputs.items()}
    fixed = {work.FIXED + name: value for name, value in subject.fixed.items()}
    return {
        name: np.ascontiguousarray(value).reshape(value.shape)
        for name, value in (inputs | fixed).items()
    }


def _file(folder: Path, side: Side) -> Path:
    return folder / f"{side.name.replace(':', '-')}.safetensors"


def _next(
    task: _Task,
    subject: Subject,
    given: Path,
    spoilt: Spoilt | None,
    tell: Tell,
    faults: Mapping[str, Fault],
) -> None:
    """Let a child begin with its next side, or end it."""
    if not task.waiting:
        task.now = None
        task.child.close()
        return
    side = task.now = task.waiting.pop(0)
    tell(side.name, "")
    replaced = given.with_name("spoilt.safetensors")
    spoils = spoilt is not None and spoilt.side == side.name
    task.child.start(
        0,
        work.compute,
        side,
        subject.plan,
        given,
        replaced if spoils else None,
        _file(given.parent, side),
        faults.get(side.name),
    )


def _take(task: _Task) -> tuple[Side, list[str]]:
    """Return what has arrived: whose results, and their names in their order."""
    assert task.now is not None
    try:
        names: list[str] = task.child.take(0, PATIENCE_S)
    except Failed as failure:
        raise WorkerFailed(f"{task.now.name} cannot compute it: {failure}") from failure
    return task.now, names
