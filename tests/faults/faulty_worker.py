"""Workers that meet an error in their first or fourth gradient or share; children import it."""

from mlxhog.training import worker
from mlxhog.training.steps import Gradients

FAULTS = {  # by the seed of the run
    1: TypeError("rms_norm(): incompatible function arguments.\n\nInvoked with: mlx.core.array"),
    2: KeyError("blocks.0.norm"),
    3: AssertionError(),
    4: ValueError("operands could not be broadcast together"),
}
PASSING = {5: RuntimeError("short of memory"), 6: OSError("short of memory")}
EARLY = 10  # added to the seed: in the first gradient, which nobody uses


def main(job):
    """A worker as always, but for the error; a passing one meets its first process only."""
    gradient = Gradients.of
    warm_up = Gradients.warm_up
    seed, calls = job.config.seed, 0
    error = (FAULTS | PASSING)[seed % EARLY]
    marker = job.run_dir / "passed"

    def failing(self, batches):
        nonlocal calls
        calls += 1
        if calls == 4 and not marker.exists():
            marker.touch()
            raise error
        return gradient(self, batches)

    def failing_at_once(self):
        raise error

    Gradients.of = failing
    Gradients.warm_up = failing_at_once if seed > EARLY else warm_up
    worker.main(job)


def classic_kernel(memory):
    """The kernel of a classic problem, with an error."""
    raise FAULTS[1]
