"""An event-driven simulation of workers that train together: speed and staleness, no learning.

Each worker reads, computes and adds; a scheme says in which order and what waits for what; cores
and memory bandwidth are shared among the workers that are active at the same time.
"""

from __future__ import annotations

from collections.abc import Sequence

from mlxhog.errors import DataError
from mlxhog.theory import staleness
from mlxhog.theory.simulator.machine import Machine
from mlxhog.theory.simulator.prediction import Prediction
from mlxhog.theory.simulator.schemes import Scheme
from mlxhog.theory.simulator.workers import Worker


def simulate(
    workers: Sequence[Worker],
    scheme: Scheme,
    *,
    updates: int = 5000,
    warm_up: int | None = None,
    cores: int | None = None,
    bandwidth: float | None = None,
    seed: int = 0,
) -> Prediction:
    """Simulate a machine and return what it would do.

    Args:
        workers: at least one.
        scheme: one of `mlxhog.theory.simulator.schemes`.
        updates: to simulate after the warm-up.
        warm_up: updates left out at the start; a tenth of `updates` where not given.
        cores: of the CPU, shared by its workers; None for enough of them.
        bandwidth: of the memory, bytes per second; None for no limit.
        seed: of the compute times. The same seed gives the same prediction.

    Raises:
        DataError: no workers, nothing to simulate, or a machine without cores or bandwidth.
        ConfigError: the scheme does not fit the workers.
    """
    if not workers or updates < 1:
        raise DataError(f"{len(workers)} workers, {updates} updates: wanted at least one of each")
    for name, value in (("cores", cores), ("bandwidth", bandwidth)):
        if value is not None and not value > 0:
            raise DataError(f"a machine with {name} = {value}: wanted more than 0, or no limit")
    skipped = updates // 10 if warm_up is None else warm_up
    machine = Machine(workers, scheme, cores=cores, bandwidth=bandwidth, seed=seed)
    machine.run_until(skipped)
    start = machine.snapshot()
    machine.run_until(start.version + updates)
    end = machine.snapshot()
    seconds = end.now - start.now
    gradients, wasted = end.gradients - start.gradients, end.wasted - start.wasted
    late = machine.board.staleness[start.version : end.version]
    return Prediction(
        inputs={
            "workers": [worker.to_json() for worker in workers],
            "scheme": scheme.to_json(),
            "cores": cores,
            "bandwidth_bytes_per_s": bandwidth,
            "updates": updates,
            "warm_up": skipped,
            "seed": seed,
        },
        seconds=seconds,
        updates_per_s=(end.version - start.version) / seconds,
        gradients_per_s=gradients / seconds,
        efficiency=gradients / seconds / sum(1.0 / worker.step_s for worker in workers),
        waiting_share=(end.waited_s - start.waited_s) / (seconds * len(workers)),
        wasted_share=wasted / (gradients + wasted),
        staleness=staleness.of_values("all", (tau for _, tau in late)),
        workers=tuple(
            staleness.of_values(worker.name, (tau for who, tau in late if who == rank))
            for rank, worker in enumerate(workers)
        ),
    )
