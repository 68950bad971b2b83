"""Workers that meet an error in their first or fourth gradient or share; children import it."""

from mlxhog.training import worker_process
from mlxhog.training.steps import Gradients

FAULT, EARLY, PASSING = 1, 2, 3
"""Seeds of runs whose worker meets an error in its fourth gradient, or in the first, which nobody
uses; and of those whose first process alone meets one that may pass."""


def fault():
    return TypeError("rms_norm(): incompatible function arguments.\n\nInvoked with: mlx.core.array")


def main(pipe, job):
    """A worker as always, but for the error."""
    gradient, seed, calls = Gradients.of, job.config.seed, 0
    marker = job.run_dir / "passed"

    def failing(self, batches):
        nonlocal calls
        calls += 1
        if calls == 4 and not marker.exists():
            marker.touch()
            raise RuntimeError("short of memory") if seed == PASSING else fault()
        return gradient(self, batches)

    def failing_at_once(self):
        raise fault()

    Gradients.of = failing
    if seed == EARLY:
        Gradients.warm_up = failing_at_once
    worker_process.main(pipe, job)


def classic_kernel(memory):
    """The kernel of a classic problem, with an error."""
    raise fault()
