"""Workers that meet an error in their first or fourth gradient or share; children import it."""

from __future__ import annotations

from multiprocessing.connection import Connection
from typing import Any

from mlxhog.classic import worker as classic_worker
from mlxhog.classic.worker import WorkerArgs as ClassicJob
from mlxhog.training import worker
from mlxhog.training.gradients import Gradients
from mlxhog.training.job import Job

FAULTS: dict[int, Exception] = {  # by the seed of the run
    1: TypeError("rms_norm(): incompatible function arguments.\n\nInvoked with: mlx.core.array"),
    2: KeyError("blocks.0.norm"),
    3: AssertionError(),
    4: ValueError("operands could not be broadcast together"),
}
PASSING: dict[int, Exception] = {5: RuntimeError("short of memory"), 6: OSError("short of memory")}
EARLY = 10  # added to the seed: in the first gradient, which nobody uses


def main(job: Job) -> None:
    """A worker as always, but for the error; a passing one meets its first process only."""
    gradient = Gradients.of
    warm_up = Gradients.warm_up
    seed, calls = job.config.seed, 0
    error = (FAULTS | PASSING)[seed % EARLY]
    marker = job.run_dir / "passed"

    def failing(self: Gradients, batches: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4 and not marker.exists():
            marker.touch()
            raise error
        return gradient(self, batches)

    def failing_at_once(self: Gradients) -> None:
        raise error

    Gradients.of = failing  # type: ignore[method-assign]
    Gradients.warm_up = failing_at_once if seed > EARLY else warm_up  # type: ignore[method-assign]
    worker.main(job)


class ClassicWorker:
    """Stands for the module of classic workers."""

    @staticmethod
    def main(pipe: Connection, job: ClassicJob) -> None:
        """A worker as always, but its first share is an error."""

        def failing(self: Any, share: Any) -> int:
            raise FAULTS[1]

        classic_worker._Steps.do = failing  # type: ignore[method-assign]
        classic_worker.main(pipe, job)
