"""`mlxhog replay`: repeat a recorded run, bit for bit."""

from dataclasses import dataclass

from mlxhog.cli.flags import OneRun, Plugins
from mlxhog.cli.frame import Report, command
from mlxhog.config.options import option


@dataclass(frozen=True, kw_only=True)
class _Words(OneRun, Plugins):
    anyway: bool = option(
        False, "continue although versions or the processor differ from those of the run"
    )


@command("replay")
def run(config: _Words) -> Report:
    """Repeat a recorded run and compare it bit for bit.

    train --determinism record keeps a log of the order in which its lock-free workers read and
    wrote every stripe of the parameters, of their batches and step sizes, and of deaths. The replay
    starts the same workers, delays each access until its turn, and checks the weights of each step,
    the norm of each gradient, and the SHA-256 of weights and optimizer state at the end. Exit code
    1: they differ; the output names worker, step and stripe of the first difference.

    Examples:
        replay latest
        replay runs/20260102-101500-sotu --json
        train --determinism record --workers mlx:cpu,torch:cpu --steps 100
    """
    from mlxhog.training.replay import replay

    outcome = replay(config.find(config.run), anyway=config.anyway)
    facts, difference = outcome.to_json(), outcome.difference
    if difference is None:
        return Report(facts, [f"equal bit for bit: {outcome.hashes} hashes", facts])
    return Report(facts, [f"differs first at {difference}", facts], code=1)
