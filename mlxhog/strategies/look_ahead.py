"""Where a lock-free worker takes its gradient: at the parameters, or where they will be.

While a worker computes, the others add their steps, so its gradient lands on parameters that it has
not seen. `--predict` says what it reads instead:

    none  the parameters as they are
    own   moved on by (P - 1)/P of what they moved between this worker's last two reads: each of the
          other P - 1 adds about one step while this one takes two reads. Where n > P steps came
          between the reads (it evaluated, or came late), by h/n of it if that is less; h is as
          below, P - 1 at least. A private copy.
          Related published method: DANA, arXiv:1907.11612 (there from the workers' momenta)
    last  moved on by h (u + (u - u')/2): u is the last step that anyone added, u' the one before,
          element by element; h is how many steps others will have added when this gradient lands,
          a running mean of how many had (P - 1 at first)

What decides is how fresh the prediction is: `last` sees the step that was added a moment ago. With
moments of all workers that step is also the best guess of the next one, so it goes with
`moments=shared`.

    segment               dtype    meaning
    ahead.last            float32  the last step of anyone, laid out as the parameters
    ahead.prev            float32  the one before

Both are written with the step, under its lock, by whoever adds it (`mlxhog.optim.Target.record`).
"""

from __future__ import annotations

from typing import Final, Protocol

import numpy as np

from mlxhog.arena import Arena
from mlxhog.arena.layout import PARAMETER_COPY
from mlxhog.optim import updates
from mlxhog.optim.rule import Record
from mlxhog.optim.updates import Float32
from mlxhog.strategies.facts import RunFacts

SEGMENTS: Final = ("ahead.last", "ahead.prev")
TREND: Final = 0.5
"""How much of the difference between the last two steps the next ones are expected to have."""
MEMORY: Final = 0.9
"""Share of the running mean of steps by others that stays when another gradient has landed."""


def segments(facts: RunFacts, workers: int) -> dict[str, tuple[str, int]]:
    """Arena segments of the table above; none where nothing looks ahead by last steps."""
    if not looks_ahead(facts, workers):
        return {}
    return {name: ("float32", PARAMETER_COPY) for name in SEGMENTS}


def forget(arena: Arena, facts: RunFacts) -> None:
    """Let the last steps be none, where they are recorded at all; nobody else writes meanwhile."""
    for name in recorded(arena, facts):
        arena.segment(name).fill(0.0)


def recorded(arena: Arena, facts: RunFacts) -> tuple[str, ...]:
    """Segments that hold the last steps; none where nothing is recorded, whoever works now."""
    names = SEGMENTS if facts.prediction == "last" else ()
    return tuple(name for name in names if name in arena.layout.segments)


def looks_ahead(facts: RunFacts, workers: int) -> bool:
    """Whether steps are recorded, for `predict=last`; one worker has nobody to look ahead for."""
    return facts.prediction == "last" and workers > 1


def record(arena: Arena, facts: RunFacts, workers: int) -> Record | None:
    """Where steps are recorded; None where they are not."""
    if not looks_ahead(facts, workers):
        return None
    last, prev = (arena.segment(name) for name in SEGMENTS)
    return Record(last, prev)


class Reader(Protocol):
    """One worker's reads of the parameters."""

    def read(self, dst: Float32) -> None:
        """Write the parameters that the next gradient is taken at into `dst`, (n,) float32.

        Concurrency: others may be writing; elements are whole, of any age.
        """

    def landed(self, staleness: int) -> None:
        """Take note of how many steps others added between a read and its gradient's landing."""


class AsTheyAre:
    """Reads the parameters as they are."""

    def __init__(self, params: Float32) -> None:
        """Read from the shared parameters, (n,) float32."""
        self._params = params

    def read(self, dst: Float32) -> None:
        """A plain snapshot."""
        updates.snapshot(dst, self._params)

    def landed(self, staleness: int) -> None:
        """Of no interest."""


class _Ahead(AsTheyAre):
    """Expects some steps of others: one of each, and later as many as there were."""

    def __init__(self, params: Float32, workers: int) -> None:
        """Read from the shared parameters, (n,) float32, as one of so many workers."""
        super().__init__(params)
        self._workers = workers
        self.others = float(workers - 1)

    def landed(self, staleness: int) -> None:
        """Take it into the running mean."""
        self.others = MEMORY * self.others + (1.0 - MEMORY) * staleness


class OwnMovement(_Ahead):
    """Moves a snapshot on by its last movement; costs a private copy of the parameters.

    Attributes:
        previous: the parameters at the last read.
    """

    def __init__(self, arena: Arena, workers: int) -> None:
        """Begin without movement."""
        super().__init__(arena.params, workers)
        self._counters = arena.counters
        self._version = self._counters.load("version")
        self.previous = np.empty_like(arena.params)
        updates.snapshot(self.previous, arena.params)

    def read(self, dst: Float32) -> None:
        """A snapshot, moved on."""
        horizon = self.horizon(self._counters.load("version"))
        updates.snapshot_predict(dst, self._params, self.previous, horizon / self._workers)

    def horizon(self, version: int) -> float:
        """How far a read looks ahead, where the movement since the last one counts as P steps.

        Args:
            version: updates before this read.
        """
        usual, steps = self._workers - 1.0, version - self._version
        self._version = version
        if steps <= self._workers:
            return usual
        return min(usual, max(usual, self.others) / steps * self._workers)


class LastSteps(_Ahead):
    """Moves a snapshot on by the last steps of anyone."""

    def __init__(self, params: Float32, record: Record, workers: int) -> None:
        """Expect one step of each other worker, until gradients have landed."""
        super().__init__(params, workers)
        self._record = record

    def read(self, dst: Float32) -> None:
        """A snapshot, moved on."""
        updates.snapshot_ahead(dst, self._params, *self._record, horizon=self.others, trend=TREND)


def reader(arena: Arena, facts: RunFacts, workers: int) -> Reader:
    """How a lock-free worker of so many reads."""
    if (recorded := record(arena, facts, workers)) is not None:
        return LastSteps(arena.params, recorded, workers)
    if facts.prediction == "own" and workers > 1:
        return OwnMovement(arena, workers)
    return AsTheyAre(arena.params)
