"""Where a lock-free worker takes its gradient: at the parameters, or where they will be.

While a worker computes, the others add their steps, so its gradient lands on parameters that it has
not seen. `--predict` chooses the point that it reads:

    none  the parameters as they are
    own   moved on by (P - 1)/P of their movement between this worker's last two reads: each of the
          other P - 1 adds about one step while this one takes two reads. Where n > P steps came
          between the reads (it evaluated, or came late), by h/n of it if that is less; h is as
          below, P - 1 at least. It needs a private copy. With --overlap the share is P/P.
          Related published method: DANA, arXiv:1907.11612 (there from the workers' momenta)
    last  moved on by h (u + (u - u')/2): u is the last step of any worker, u' the one before,
          element by element; h is the expected number of steps by others before this gradient
          lands, a running mean of the numbers so far (P - 1 at first; P with --overlap)

A prediction is better the fresher it is: `last` sees the step that was added a moment ago. With
moments of all workers that step is also the best guess of the next one, so it suits
`moments=shared`.

    segment               dtype    meaning
    ahead.last            float32  the last step of any worker, laid out as the parameters before
                                   the tables
    ahead.prev            float32  the one before

The worker that adds a step writes both with it, under its lock (`mlxhog.optim.Target.record`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from mlxhog import _native
from mlxhog.config.components import Constraints
from mlxhog.config.config import TrainConfig
from mlxhog.config.options import option
from mlxhog.optim import updates
from mlxhog.optim.gradients import Float32
from mlxhog.optim.rule import StepTrace
from mlxhog.strategies.strategy import (
    RunFacts,
    Segments,
    Strategy,
    parameter_copies,
    shares_moments,
)

if TYPE_CHECKING:
    from mlxhog.arena import Arena

SEGMENTS: Final = ("ahead.last", "ahead.prev")
TREND: Final = 0.5  # part of the difference of the last two steps that the next ones have, too
MEMORY: Final = 0.9  # decay of the running mean of steps by others, per gradient


@dataclass(frozen=True, kw_only=True)
class LookAhead(Strategy):
    """The number of strategies that can take gradients where the parameters will be."""

    predict: str = option(
        "auto",
        "parameters at which a gradient is taken: the current ones, or those expected when it "
        "lands, by their movement since this worker's last read (own) or by the last steps of all "
        "workers (last); auto is last if hogwild shares moments, own if it does not, else none",
        choices=("auto", "none", "own", "last"),
    )

    def prediction(self, config: TrainConfig) -> str:
        if self.predict in ("none", "last"):
            return self.predict
        is_off = self.predict == "auto" and not self.looks_ahead
        if config.read == "live" or self.delay_feedback or is_off:
            return "none"
        return "last" if self.predict == "auto" and shares_moments(config) else "own"

    def constraints(self) -> Constraints:
        return (
            (self.predict in ("own", "last") and self.delay_feedback, "predict",
             f"{self.predict} already expects the pending steps of other workers; leave it out, "
             "or delay_feedback"),
        )  # fmt: skip

    def run_constraints(self, config: TrainConfig) -> Constraints:
        ahead, is_open = self.predict in ("own", "last"), config.optimizer is None
        return (
            (ahead and config.read == "live" and not self.one_process, "read",
             "live reads have no snapshot to predict from; add predict=none"),
            (self.predict == "last" and not (is_open or shares_moments(config)), "predict",
             "last needs steps from moments that all workers share; add moments=shared"),
        )  # fmt: skip


def segments(run: RunFacts, workers: int) -> Segments:
    """Arena segments of the table above; empty unless one of several workers records its steps."""
    records = run.prediction == "last" and workers > 1
    return parameter_copies(SEGMENTS if records else (), tables=False)


def record(arena: Arena, run: RunFacts, workers: int) -> StepTrace | None:
    """The arrays in which steps are recorded; None if they are not."""
    names = segments(run, workers)
    return StepTrace(*(arena.segment(name) for name in names)) if names else None


class PredictingReader:
    """The reads of one of `workers` lock-free workers, by the table above."""

    def __init__(self, arena: Arena, run: RunFacts, workers: int) -> None:
        import numpy as np

        self._params, self._counters = arena.dense, arena.counters
        self._record, self._workers = record(arena, run, workers), workers
        # Expected steps by others before a gradient lands: one of each, and with `overlap` its own.
        self.others = self._usual = workers + run.overlap - 1.0
        self.previous: Float32 | None = None  # parameters at the last read, for `own`
        if self._record is None and run.prediction == "own" and workers > 1:
            self._version = self._counters.load("version")
            self.previous = np.empty_like(arena.dense)
            updates.snapshot(self.previous, arena.dense)

    def read(self, dst: Float32, threads: int = 1) -> None:
        """Write the parameters of the next gradient, but for tables, into `dst`, (n,) float32.

        Concurrency: others may be writing; elements are whole, of any age.
        """
        how = self.extrapolation(self.horizon(self._counters.load("version")))
        _native.read(dst, self._params, threads=threads, **how)

    def horizon(self, version: int) -> float:
        """Steps that a read at this version looks ahead; the last movement counts as P steps."""
        if self.previous is None:
            return self.others
        steps, self._version = version - self._version, version
        if steps <= self._workers:
            return self._usual
        return min(self._usual, max(self._usual, self.others) / steps * self._workers)

    def extrapolation(self, horizon: float) -> dict[str, Any]:
        """The part of a read that looks so many steps ahead, as `_native.read` takes it."""
        if self._record is not None:
            last, prev = self._record
            return {"last": last, "prev": prev, "a": horizon * (1 + TREND), "b": horizon * TREND}
        if self.previous is not None:
            return {"own_prev": self.previous, "a": horizon / self._workers}
        return {}

    def landed(self, staleness: int) -> None:
        """Note the number of steps by others between a read and the write of its gradient."""
        self.others = MEMORY * self.others + (1.0 - MEMORY) * staleness
