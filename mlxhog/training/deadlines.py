"""When each part of a run has to be over, so that the run keeps its budget of time."""

from __future__ import annotations

from mlxhog.arena.process import monotonic_ns
from mlxhog.config.budget import END_S, STOP_S, late_start, training_s
from mlxhog.training.evaluation import EVALUATING_S

SAMPLE_S = 60.0  # a sample without a budget of time
LEAVING_S = 5.0  # workers that are asked to leave
LEAST_S = 1.0  # for workers to leave, for a sample or for a worker's own score, however late it is
MARGIN = 2.0  # for other programs


class Deadlines:
    """The moments by which a run with a budget of time keeps it, by a monotonic clock."""

    def __init__(self, began_ns: int, seconds: float | None, *, whole: bool = False) -> None:
        """Count from a moment.

        Args:
            began_ns: when the run began.
            seconds: its budget of time; None is none.
            whole: whether all of it is for training, and the run ends later.
        """
        self._began_ns, self._seconds, self._whole = began_ns, seconds or None, whole
        self._end_ns = began_ns + int(((seconds or 0.0) + END_S - STOP_S) * 1e9)

    def spent_s(self) -> float:
        """The seconds since the run began."""
        return (monotonic_ns() - self._began_ns) / 1e9

    def training_s(
        self, *, save_s: float, evaluates: bool, samples: bool, evaluation_s: float = 0.0
    ) -> float | None:
        """How long training may take that begins now; None where time does not limit it.

        Args:
            save_s: what the checkpoint after it will take.
            evaluates: whether it is evaluated then.
            samples: whether a sample is written then.
            evaluation_s: what the evaluation will take.
        """
        if self._seconds is None or self._whole:
            return self._seconds
        return training_s(
            self._seconds,
            start_s=self.spent_s(),
            save_s=save_s,
            evaluates=evaluates,
            samples=samples,
            evaluation_s=MARGIN * evaluation_s,
        )

    def late_start(self, start_s: float, training_s: float, *, measured: bool) -> str | None:
        """Say that the start took much of the time; see `mlxhog.config.budget.late_start`."""
        if self._seconds is None or self._whole:
            return None
        return late_start(self._seconds, start_s=start_s, training_s=training_s, measured=measured)

    def evaluation_ns(
        self, *, parts: int, trained_s: float, least_s: float, sample_s: float = 0.0
    ) -> int:
        """When an evaluation has to end that begins now and shares the rest of the time.

        Args:
            parts: of the time that is left.
            trained_s: the time of training.
            least_s: for this one, however late it is.
            sample_s: of the time that is left, for a sample afterwards.
        """
        if self._seconds is None:
            seconds = max(EVALUATING_S, trained_s) / parts
        else:
            seconds = max((self._rest_s() - sample_s) / parts, least_s)
        return monotonic_ns() + int(seconds * 1e9)

    def sample_s(self) -> float:
        """How long a sample may take now: a short one is written however late it is."""
        return SAMPLE_S if self._seconds is None else max(self._rest_s(), LEAST_S)

    def step_s(self, save_s: float) -> float:
        """How long a step in hand may take so that its checkpoint is still saved in time.

        Args:
            save_s: what a checkpoint takes.
        """
        return self._rest_s() - save_s

    def leaving_s(self) -> float:
        """How long workers may take to leave."""
        if self._seconds is None:
            return LEAVING_S
        return min(max(self._rest_s(), LEAST_S), LEAVING_S)

    def _rest_s(self) -> float:
        return (self._end_ns - monotonic_ns()) / 1e9
