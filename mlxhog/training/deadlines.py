"""When what comes after training has to end, so that a run with a budget of time keeps it."""

from __future__ import annotations

from mlxhog.arena.process import monotonic_ns
from mlxhog.config.budget import END_S, STOP_S, training_s

EVALUATING_S = 60.0  # the last evaluation without a budget of time; more where training took more
SAMPLE_S = 60.0  # a sample without a budget of time
LEAVING_S = 5.0  # workers that are asked to leave
SAMPLING_S = 1.0  # of what is left after an evaluation
LEAST_S = 1.0  # for an evaluation, however late it is


class Deadlines:
    """The moments of one run, by a monotonic clock."""

    def __init__(self, began_ns: int, seconds: float | None) -> None:
        """Count from a moment.

        Args:
            began_ns: when the run began.
            seconds: its budget of time; None is none.
        """
        self._began_ns, self._seconds = began_ns, seconds or None
        self._end_ns = began_ns + int(((seconds or 0.0) + END_S - STOP_S) * 1e9)

    def training_s(self, *, save_s: float, evaluates: bool) -> float | None:
        """How long training may take that begins now; None where time does not limit it.

        Args:
            save_s: what the checkpoint after it will take.
            evaluates: whether it is evaluated then.
        """
        if self._seconds is None:
            return None
        start_s = (monotonic_ns() - self._began_ns) / 1e9
        return training_s(self._seconds, start_s=start_s, save_s=save_s, evaluates=evaluates)

    def evaluation_ns(self, *, parts: int, trained_s: float) -> int:
        """When an evaluation has to end that begins now and is the first of so many."""
        if self._seconds is None:
            seconds = max(EVALUATING_S, trained_s) / parts
        else:
            seconds = max((self._rest_s() - SAMPLING_S) / parts, LEAST_S)
        return monotonic_ns() + int(seconds * 1e9)

    def sample_s(self) -> float:
        """How long a sample may take now; none may where it is too late."""
        return SAMPLE_S if self._seconds is None else self._rest_s()

    def leaving_s(self) -> float:
        """How long workers may take to leave."""
        if self._seconds is None:
            return LEAVING_S
        return min(max(self._rest_s(), LEAST_S), LEAVING_S)

    def _rest_s(self) -> float:
        return (self._end_ns - monotonic_ns()) / 1e9
