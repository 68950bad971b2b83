"""`mlxhog replay`: repeat a recorded run, bit for bit."""

from dataclasses import dataclass

from mlxhog.cli.flags import Json, Plugins, RunFolder, run_argument
from mlxhog.cli.frame import Report, command
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
class _ReplayConfig(RunFolder, Plugins, Json):
    run: str = run_argument()
    anyway: bool = option(
        False, "continue although versions or the processor differ from those of the run"
    )


@command("replay", ABOUT, EXAMPLES, _ReplayConfig)
def run(config: _ReplayConfig) -> Report:
    """Repeat a run."""
    from mlxhog.training.replay import replay

    outcome = replay(config.find(config.run), anyway=config.anyway)
    head = f"equal bit for bit: {outcome.hashes} hashes"
    if outcome.difference is not None:
        head = f"differs first at {outcome.difference}"
    return Report(outcome.to_json(), head, code=int(outcome.difference is not None))
