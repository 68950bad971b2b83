"""`mlxhog simulate`: what each strategy would do with workers like these."""

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
What would each strategy do with workers like these? Simulates them, event by event, without
training anything: gradients per second, staleness, and how long workers wait for each other. Times
of gradients are constant, exponential, log-normal, Pareto or in slow and fast spells; some workers
may be slower, die and come back, or join later. With --run the times are those that a run recorded.
With --objective a small problem is trained, too, whose minimum is known."""
EXAMPLES = (
    "simulate --workers 16 --slow 1=10",
    "simulate --workers 8 --times exponential:1s:2s --sync-time 100ms",
    "simulate --times pareto:50ms:1.5 --strategies hogwild,sync,sync_backup --backup-workers 2",
    "simulate --workers 4 --kill 1=30s:10s --join 3=1m --json",
    "simulate --times markov:20ms:200ms:0.01:0.1 --objective quadratic",
    "simulate --run latest",
    "simulate --strategies version_naive,push_gate,version_bound --max-staleness 2",
)

MAIN = (
    "run", "workers", "times", "slow", "kill", "join", "strategies", "sync_time", "cores",
    "objective", "updates", "seed", "json",
)  # fmt: skip

RECORDED = ("workers", "times", "read", "apply")
"""Options that --run answers."""


def run(arguments: list[str]) -> int:
    """Run the command; returns its exit code."""
    # The options need NumPy, which takes .1 s.
    from mlxhog.theory.simulator.what_if import SimulateConfig

    flags = Flags("simulate", ABOUT, EXAMPLES, main=MAIN)
    flags.argument("--json", action="store_true", help="one JSON object with everything")
    flags.argument("--run", metavar="RUN", help="take times and number of workers from a run")
    flags.argument("--out", metavar="DIR", default="runs", help="folder of the runs [runs]")
    flags.options(SimulateConfig)
    parsed = flags.parse(arguments)
    from mlxhog.theory.simulator.what_if import compare

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
    """Refuse options that a run answers.

    Raises:
        ConfigError: there is one.
    """
    for value in values:
        if value.name in RECORDED:
            raise ConfigError(
                f"{value.origin} contradicts --run, which takes {', '.join(RECORDED)} from what "
                f"was recorded; leave one of them out (--slow and --kill go with --run)"
            )


def _workers_of_run(spec: str, root: Path) -> list[Worker]:
    """The workers of a run, each with the times of its newest steps.

    These times are as long as they were beside the other workers of the run, so a machine that
    simulates them needs no limit of cores.

    Args:
        spec: the run: its path, its name, or latest.
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
