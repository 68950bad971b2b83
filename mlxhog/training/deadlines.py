"""The deadline of each part of a run, so that the run keeps its budget of time."""

from __future__ import annotations

from mlxhog.arena.process import monotonic_ns
from mlxhog.config.budget import END_S, STOP_S, late_start, training_s
from mlxhog.training.evaluation import EVALUATING_S

SAMPLE_S = 60.0  # limit of a sample without a budget of time
LEAVING_S = 5.0  # limit for workers to leave
LEAST_S = 1.0  # for workers to leave, a sample, or the score of a worker's copy, however late it is
MARGIN = 2.0  # factor for the load of other programs


class Deadlines:
    """The deadlines of a run's phases, by a monotonic clock."""

    def __init__(self, began_ns: int, seconds: float | None, *, whole: bool = False) -> None:
        """Count from the start of the run.

        Args:
            began_ns: when the run began.
            seconds: its budget of time; None for no limit.
            whole: whether all of it is for training, so that the run ends later.
        """
        self._began_ns, self._seconds, self._whole = began_ns, seconds or None, whole
        self._end_ns = began_ns + int(((seconds or 0.0) + END_S - STOP_S) * 1e9)

    def spent_s(self) -> float:
        """The seconds since the run began."""
        return (monotonic_ns() - self._began_ns) / 1e9

    def training_s(
        self, *, save_s: float, evaluates: bool, samples: bool, evaluation_s: float = 0.0
    ) -> float | None:
        """How long training may take if it begins now; None if time does not limit it.

        Args:
            save_s: time of the last checkpoint.
            evaluates: whether the model is evaluated afterwards.
            samples: whether a sample is written afterwards.
            evaluation_s: time of the evaluation.
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
        """A warning of a start that took much time; see `mlxhog.config.budget.late_start`."""
        if self._seconds is None or self._whole:
            return None
        return late_start(self._seconds, start_s=start_s, training_s=training_s, measured=measured)

    def evaluation_ns(
        self, *, parts: int, trained_s: float, least_s: float, sample_s: float = 0.0
    ) -> int:
        """The deadline of an evaluation that begins now.

        Args:
            parts: evaluations that share the remaining time.
            trained_s: the time of training.
            least_s: least time for this evaluation, however late it is.
            sample_s: part of the remaining time that is reserved for a sample.
        """
        if self._seconds is None:
            seconds = max(EVALUATING_S, trained_s) / parts
        else:
            seconds = max((self._rest_s() - sample_s) / parts, least_s)
        return monotonic_ns() + int(seconds * 1e9)

    def sample_s(self) -> float:
        """How long a sample may take now; there is always time for a short one."""
        return SAMPLE_S if self._seconds is None else max(self._rest_s(), LEAST_S)

    def step_s(self, save_s: float) -> float:
        """How long the current step may take so that its checkpoint is saved in time.

        Args:
            save_s: time of a checkpoint.
        """
        return self._rest_s() - save_s

    def round_s(self, longest_s: float, save_s: float) -> float:
        """How long the last round of a cluster may take; an evaluation gets as much.

        Args:
            longest_s: without a budget of time.
            save_s: time of a checkpoint.
        """
        if self._seconds is None or self._whole:
            return longest_s
        return min(longest_s, max(0.0, self._rest_s() - save_s) / 2)

    def leaving_s(self) -> float:
        """How long workers may take to leave."""
        if self._seconds is None:
            return LEAVING_S
        return min(max(self._rest_s(), LEAST_S), LEAVING_S)

    def _rest_s(self) -> float:
        return (self._end_ns - monotonic_ns()) / 1e9
