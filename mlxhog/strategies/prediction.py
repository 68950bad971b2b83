"""Weight prediction of lock-free workers: gradients at the parameters expected when they land.

While a worker computes, the others update the parameters that it has read. `--predict` chooses
what it reads:

    none  the parameters as they are
    own   extrapolated by (P - 1)/P of their movement between this worker's last two reads, in which
          each of the other P - 1 applies about one update. Where n > P updates came between the
          reads (it evaluated, or is slow), by h/n of it if that is less; h as below, at least
          P - 1. It needs a private copy. With --overlap the share is P/P.
          Related published method: DANA, arXiv:1907.11612 (there from the workers' momenta)
    last  extrapolated by h (u + (u - u')/2): u is the last update of any worker, u' the one before,
          element by element; h is the expected number of updates by others before this gradient
          lands, a running mean (P - 1 at first; P with --overlap)

`last` suits `moments=shared`: with the moments of all workers the last update is also the best
guess of the next one.

    segment       dtype    meaning
    predict.last  float32  the last update of any worker, laid out as the parameters before the
                           tables
    predict.prev  float32  the one before

The worker that applies an update writes both with it, under its lock (`UpdateTarget.record`).
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

SEGMENTS: Final = ("predict.last", "predict.prev")
TREND: Final = 0.5  # weight of the difference of the last two updates
MEMORY: Final = 0.9  # decay of the running mean of updates by others, per gradient


@dataclass(frozen=True, kw_only=True)
class PredictionOptions(Strategy):
    """Options of strategies with weight prediction."""

    predict: str = option(
        "auto",
        "parameters at which a gradient is taken: the current ones, or those expected when it "
        "lands, by their movement since this worker's last read (own) or by the last updates of "
        "all workers (last); auto is last if hogwild shares moments, own if it does not, else none",
        choices=("auto", "none", "own", "last"),
    )

    def prediction(self, config: TrainConfig) -> str:
        if self.predict in ("none", "last"):
            return self.predict
        is_off = self.predict == "auto" and not self.predicts_by_default
        if config.read == "live" or self.delay_feedback or is_off:
            return "none"
        return "last" if self.predict == "auto" and shares_moments(config) else "own"

    def constraints(self) -> Constraints:
        return (
            (self.predict in ("own", "last") and self.delay_feedback, "predict",
             f"{self.predict} already expects the pending updates of other workers; leave it "
             "out, or delay_feedback"),
        )  # fmt: skip

    def run_constraints(self, config: TrainConfig) -> Constraints:
        predicts, is_open = self.predict in ("own", "last"), config.optimizer is None
        return (
            (predicts and config.read == "live" and not self.one_process, "read",
             "live reads have no snapshot to predict from; add predict=none"),
            (self.predict == "last" and not (is_open or shares_moments(config)), "predict",
             "last needs updates from moments that all workers share; add moments=shared"),
        )  # fmt: skip


def segments(run: RunFacts, workers: int) -> Segments:
    """Return the arena segments of `last`; empty with other predictions, or one worker."""
    records = run.prediction == "last" and workers > 1
    return parameter_copies(SEGMENTS if records else (), tables=False)


def record(arena: Arena, run: RunFacts, workers: int) -> StepTrace | None:
    """Return the arrays that trace updates; None if none do."""
    names = segments(run, workers)
    return StepTrace(*(arena.segment(name) for name in names)) if names else None


class PredictingReader:
    """The reads of one of `workers` lock-free workers."""

    def __init__(self, arena: Arena, run: RunFacts, workers: int) -> None:
        import numpy as np

        self._params, self._counters = arena.dense, arena.counters
        self._record, self._workers = record(arena, run, workers), workers
        # Expected updates before a gradient lands: one by each other, and with `overlap` its own.
        self.others = self._usual = workers + run.overlap - 1.0
        self.previous: Float32 | None = None  # parameters at the last read, for `own`
        if self._record is None and run.prediction == "own" and workers > 1:
            self._version = self._counters.load("version")
            self.previous = np.empty_like(arena.dense)
            updates.snapshot(self.previous, arena.dense)

    def read(self, dst: Float32, threads: int = 1) -> None:
        """Copy the parameters of the next gradient, but for tables, into `dst`, (n,) float32.

        Concurrency: others may be writing; no element is torn, but they may be of any update.
        """
        how = self.extrapolation(self.horizon(self._counters.load("version")))
        _native.read(dst, self._params, threads=threads, **how)

    def horizon(self, version: int) -> float:
        """Updates to extrapolate by, for a read at this version; the last movement counts as P."""
        if self.previous is None:
            return self.others
        steps, self._version = version - self._version, version
        if steps <= self._workers:
            return self._usual
        return min(self._usual, max(self._usual, self.others) / steps * self._workers)

    def extrapolation(self, horizon: float) -> dict[str, Any]:
        """Return the arguments of `_native.read` that extrapolate by so many updates."""
        if self._record is not None:
            last, prev = self._record
            return {"last": last, "prev": prev, "a": horizon * (1 + TREND), "b": horizon * TREND}
        if self.previous is not None:
            return {"own_prev": self.previous, "a": horizon / self._workers}
        return {}

    def landed(self, staleness: int) -> None:
        """Count the updates by others between a read and the write of its gradient."""
        self.others = MEMORY * self.others + (1.0 - MEMORY) * staleness
