"""The deadline of each part of a run, so that the run keeps its budget of time."""

from __future__ import annotations

import math

from mlxhog.arena.process import monotonic_ns
from mlxhog.training.evaluation import EVALUATING_S

END_S = 10.0
"""Latest end of a command after its budget of time, with any model."""
STOP_S = 3.0  # of these, to end workers and write the result
SAMPLING_S = 2.0  # of these, for the last sample
EVALUATION_PART, EVALUATION_MOST_S = 0.05, 20.0  # of the budget, kept for the last evaluation
START_PART = 0.2  # of the budget; a longer start is reported
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
        """A warning of a start that took much time; see `late_start`."""
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


def training_s(
    seconds: float,
    *,
    start_s: float,
    save_s: float,
    evaluates: bool,
    samples: bool,
    evaluation_s: float = 0.0,
) -> float:
    """Return the part of a budget of time for training, so that the command ends in time.

    It is the budget without a part for the last evaluation, or without the time of start and end
    beyond `END_S` if that is more, as with a large model; at least a fifth of the budget.

    Args:
        seconds: the budget.
        start_s: time until all workers were up.
        save_s: expected time of the last checkpoint.
        evaluates: whether there is a last evaluation.
        samples: whether there is a last sample.
        evaluation_s: least time of the evaluation; at most two fifths of the budget are for it.
    """
    kept_s = min(EVALUATION_PART * seconds, EVALUATION_MOST_S) if evaluates else 0.0
    evaluation_s = min(evaluation_s, seconds * 2 / 5) * evaluates
    beyond_s = start_s + save_s + evaluation_s + SAMPLING_S * samples + STOP_S - END_S
    return max(seconds - max(kept_s, beyond_s), seconds / 5)


def late_start(seconds: float, *, start_s: float, training_s: float, measured: bool) -> str | None:
    """Return a message if the start took much of a budget of time, else None.

    Args:
        seconds: the budget.
        start_s: time until training began.
        training_s: time left for training.
        measured: whether workers were measured in that time.
    """
    if start_s <= START_PART * seconds:
        return None
    minutes = math.ceil(start_s / START_PART / 60)
    return (
        f"start-up{' and measuring' * measured} took {start_s:.0f} s of {seconds:.0f} s, which "
        f"leaves {training_s:.0f} s for training; give more time, such as --time {minutes}m"
    )
