"""`mlxhog simulate`: pace and staleness of each strategy with given workers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mlxhog.cli.flags import Flags
from mlxhog.cli.output import print_json, print_sections
from mlxhog.config.sources import Assignment, resolve
from mlxhog.errors import ConfigError, DataError, RunError

if TYPE_CHECKING:
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


def run(arguments: list[str]) -> int:
    """Run the command; returns its exit code."""
    # The options need NumPy, which takes .1 s.
    from mlxhog.theory.simulator.what_if import SimulateConfig, compare

    flags = Flags("simulate", ABOUT, EXAMPLES, main=MAIN)
    flags.argument("--json", action="store_true", help="one JSON object with everything")
    flags.argument("--run", metavar="RUN", help="take times and number of workers from a run")
    flags.argument("--out", metavar="DIR", default="runs", help="folder of the runs [runs]")
    flags.options(SimulateConfig)
    parsed = flags.parse(arguments)
    values, workers, source = parsed.values, None, ""
    if parsed.other.run is not None:
        workers = _workers_of_run(parsed.other.run, Path(parsed.other.out))
        _refuse_recorded(values)
        values = [*values, Assignment("workers", len(workers), "--run")]
        source = f"recorded by {parsed.other.run}"
    comparison = compare(resolve(SimulateConfig, [values], parsed.problems), workers, source)
    if parsed.other.json:
        print_json(comparison.to_json())
        return 0
    print_sections(comparison.sections())
    return 0


def _refuse_recorded(values: Sequence[Assignment]) -> None:
    """Refuse options that `--run` sets.

    Raises:
        ConfigError: there is one.
    """
    for value in values:
        if value.name in RECORDED:
            raise ConfigError(
                f"{value.origin} contradicts --run, which takes {', '.join(RECORDED)} from the "
                "recorded run; leave one of them out (--slow and --kill are possible with --run)"
            )


def _workers_of_run(spec: str, root: Path) -> list[Worker]:
    """Return the workers of a run, each with the times of its newest steps.

    These times include the slowdown by the other workers of the run, so a simulation needs no limit
    of cores.

    Args:
        spec: path or name of the run, or latest.
        root: the folder of runs.

    Raises:
        RunError: there is no such run, or it recorded no times.
    """
    from mlxhog.checkpoint.run import find
    from mlxhog.theory.simulator.workers import worker_of

    run = find(spec, root)
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
