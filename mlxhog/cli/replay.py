"""`mlxhog replay`: repeat a recorded run, bit for bit."""

import json
from dataclasses import dataclass
from pathlib import Path

from mlxhog.cli.flags import RUN_HELP, Flags, RunFolder
from mlxhog.config.options import option

ABOUT = """\
Repeat a recorded run and compare it bit for bit. train --determinism record keeps a log of the
order in which its lock-free workers read and wrote every stripe of the parameters, of their batches
and step sizes, and of deaths. The replay starts the same workers, delays each access until its
turn, and checks the weights of each step, the norm of each gradient, and the SHA-256 of weights and
optimizer state at the end. Exit code 1: they differ; the output names worker, step and stripe of
the first difference."""
EXAMPLES = (
    "replay latest",
    "replay runs/20260102-101500-sotu --json",
    "train --determinism record --workers mlx:cpu,torch:cpu --steps 100",
)


@dataclass(frozen=True, kw_only=True)
class ReplayConfig(RunFolder):
    """Options of `mlxhog replay`."""

    anyway: bool = option(
        False, "continue although versions or the processor differ from those of the run"
    )


def run(arguments: list[str]) -> int:
    """Run the command; returns its exit code."""
    flags = Flags("replay", ABOUT, EXAMPLES, ("RUN",))
    flags.argument("run", metavar="RUN", help=RUN_HELP)
    flags.plugin()
    flags.argument("--json", action="store_true", help="end with one line of JSON")
    parsed, config = flags.read(ReplayConfig, arguments)
    from mlxhog.checkpoint.run import find
    from mlxhog.training.replay import replay

    outcome = replay(find(parsed.other.run, Path(config.out)), anyway=config.anyway)
    if parsed.other.json:
        print(json.dumps(outcome.to_json()))
    else:
        deaths = f", {outcome.deaths} of which died" if outcome.deaths else ""
        print(
            f"{outcome.steps} steps of {len(outcome.workers)} workers "
            f"({', '.join(outcome.workers)}){deaths}, in {outcome.seconds:.1f} s"
        )
        if outcome.difference is None:
            print(f"equal bit for bit: {outcome.hashes} hashes; weights {outcome.sha256[:16]}")
        else:
            print(f"differs first at {outcome.difference}")
    return 0 if outcome.difference is None else 1
