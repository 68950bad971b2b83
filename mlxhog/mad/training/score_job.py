"""What a worker of a candidate does beside its steps: score the rows that are not trained on."""

from __future__ import annotations

from dataclasses import dataclass

from mlxhog import records, strategies
from mlxhog.arena.process import monotonic_ns
from mlxhog.arena.workers import Phase
from mlxhog.job import Job
from mlxhog.mad.training.rows import Drawn
from mlxhog.mad.training.scoring import score
from mlxhog.models.mad.config import MADConfig
from mlxhog.side_jobs import takes_on


@dataclass(frozen=True)
class HeldOut:
    """What scoring needs beside the worker; picklable.

    Attributes:
        drawn: the rows.
        model: the architecture.
    """

    drawn: Drawn
    model: MADConfig

    def open(self, job: Job, context: strategies.Context, ring: records.Ring) -> ScoreJobs:
        """Draw the rows in a worker."""
        return ScoreJobs(self, job, context, ring)


class ScoreJobs:
    """Evaluations; each that is asked for is taken on by one worker."""

    def __init__(
        self, held_out: HeldOut, job: Job, context: strategies.Context, ring: records.Ring
    ) -> None:
        """Draw the rows."""
        self.held_out, self.job, self.context, self.ring = held_out, job, context, ring
        held_out.drawn.dataset()

    def serve(self) -> None:
        """See `SideJobs.serve`."""
        if takes_on(self.context, "eval_asked", "eval_taken"):
            self._score()

    def evaluate_rest(self) -> None:
        """See `SideJobs.evaluate_rest`; the rows are too few to share out."""
        self.serve()

    def _score(self) -> None:
        context, held_out = self.context, self.held_out
        steps, read_ns = context.arena.counters.load("steps"), monotonic_ns()
        strategies.copy_to_inbox(context)
        context.entry.beat(Phase.EVALUATE)
        found = score(
            context.backend, held_out.drawn.dataset(), held_out.model, beat=context.entry.beat
        )
        self.ring.append(
            kind=records.Kind.SCORE,
            worker=self.job.slot,
            steps=steps,
            t_ns=read_ns,
            acc_token=found.acc_token,
            acc_macro=found.acc_macro,
            val_token=found.val_token or 0.0,
            val_macro=found.val_macro or 0.0,
        )
