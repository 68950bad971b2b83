"""A worker whose framework raises MLX's error of ended GPU work; children import it."""

from mlxhog.errors import MetalError
from mlxhog.training import worker_process
from mlxhog.training.steps import Gradients

MLX_SAYS = (
    "[METAL] Command buffer execution failed: Impacting Interactivity "
    "(0000000e:kIOGPUCommandBufferCallbackErrorImpactingInteractivity)."
)
AFTER = 3  # gradients


def main(pipe, job):
    """A usual worker that fails with more than one sequence at a time."""
    gradient = Gradients.of
    calls = 0

    def ended(self, batches):
        nonlocal calls
        calls += 1
        if job.micro_batch > 2 and calls > AFTER:
            raise RuntimeError(MLX_SAYS)
        if job.micro_batch > 1 and calls > AFTER:
            raise MetalError("kernel mlstm_out failed") from RuntimeError(MLX_SAYS)
        return gradient(self, batches)

    Gradients.of = ended
    worker_process.main(pipe, job)
