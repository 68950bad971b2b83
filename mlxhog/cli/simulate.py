"""`mlxhog simulate`: pace and staleness of each strategy with given workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlxhog.cli.flags import Json, Part, RunFolder, Written
from mlxhog.cli.frame import Report, command
from mlxhog.config.options import option
from mlxhog.errors import DataError, RunError
from mlxhog.theory.simulator.what_if import SimulateConfig, compare

if TYPE_CHECKING:
    from mlxhog.checkpoint.run import Run
    from mlxhog.theory.simulator.workers import Worker

ABOUT = """\
Simulate the strategies with given workers, event by event, without training: gradients per second,
staleness, and the waiting times of workers. Times of gradients are constant, exponential,
log-normal, Pareto, or alternate between slow and fast; some workers may be slower, die and return,
or join later. With --run the times are those of a recorded run. With --objective a small problem
with a known minimum is trained. With --machines and --link the workers are on several machines:
rounds of cluster by the clock, beside strategies whose every step or merge waits for the link."""
EXAMPLES = (
    "simulate --workers 16 --slow 1=10",
    "simulate --workers 8 --times exponential:1s:2s --sync-time 100ms",
    "simulate --times pareto:50ms:1.5 --strategies hogwild,sync,sync_backup --backup-workers 2",
    "simulate --workers 4 --kill 1=30s:10s --join 3=1m --json",
    "simulate --times markov:20ms:200ms:0.01:0.1 --objective quadratic",
    "simulate --run latest",
    "simulate --machines 2 --link 100Mbit:50ms --params 4M",
)

MAIN = (
    "run", "workers", "times", "slow", "kill", "join", "strategies", "sync_time", "cores",
    "machines", "link", "params", "round_every", "objective", "updates", "seed", "json",
)  # fmt: skip

RECORDED = ("workers", "times", "read", "apply")
"""Options that --run sets."""


@dataclass(frozen=True, kw_only=True)
class Words(RunFolder, Json):
    """Flags beside the options of the simulation."""

    run: str | None = option(
        None, "take times and number of workers from a run", metavar="RUN", excludes=RECORDED
    )


@command("simulate", ABOUT, EXAMPLES, Words, Part(SimulateConfig, merged=True), main=MAIN)
def run(words: Words, written: Written) -> Report:
    """Simulate the strategies."""
    values, workers, source = dict(written.values), None, ""
    if words.run is not None:
        workers = _workers_of_run(words.find(words.run))
        values["workers"] = (len(workers), "--run")
        source = f"recorded by {words.run}"
    config = Written(values, problems=written.problems).read(SimulateConfig)
    comparison = compare(config, workers, source)
    return Report(comparison.to_json(), text=comparison.sections)


def _workers_of_run(run: Run) -> list[Worker]:
    """Return the workers of a run, each with the times of its newest steps.

    These times include the slowdown by the other workers of the run, so a simulation needs no limit
    of cores.

    Raises:
        RunError: it recorded no times.
    """
    from mlxhog.theory.simulator.workers import worker_of

    try:
        workers = [worker_of(times) for times in run.read_times()]
    except (LookupError, TypeError, ValueError, DataError) as error:
        raise RunError(
            f"{run.times_path} holds no times of steps ({error}); train on to have others"
        ) from error
    if not workers:
        raise RunError(
            f"the run {run.directory} recorded no times of steps; train it on (--resume) to "
            "have them, or name another run"
        )
    return workers
