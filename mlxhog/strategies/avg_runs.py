"""Independent runs, averaged (Zinkevich et al. 2010, Parallelized SGD: SimuParallelSGD).

Every worker trains its own copy of the parameters on its own shard: of each epoch's shuffle it
takes every P-th batch. The copies are averaged in rank order once, at the end. With a budget of
steps or tokens reruns are equal bit for bit, and one worker is the serial run.

The theory is for convex problems. Copies of a network may leave the common basin of their first
values; their average is then worse than each of them, so a run evaluates them, too.
"""

from __future__ import annotations

from collections.abc import Sequence

from mlxhog.strategies.local import Local


class AvgRuns(Local):
    """Local runs that never meet."""

    def copies(self) -> tuple[str, ...]:
        """Each worker's own parameters, where they differ from the average."""
        return () if self.workers == 1 else self.replica_segments()

    def warning(self, average: float, copies: Sequence[float]) -> str | None:
        """Warn where averaging has made the model worse."""
        best = min(copies, default=average)
        if best >= average:
            return None
        return (
            f"the average of {len(copies)} runs has {average:.3f} bits per byte, the parameters of "
            f"worker {copies.index(best) + 1} alone {best:.3f}: averaging did not help; average "
            "during training with --strategy local_sgd --average-every 16, or use hogwild or sync"
        )
