"""Repeat a recorded lock-free run, and compare it bit for bit.

train --determinism record keeps a log of the order in which its lock-free workers read and wrote
every stripe of the parameters. The replay starts the same workers, delays each access until its
turn, and checks the weights of each step and the norm of each gradient. Exit code 1: they differ;
the output names worker, step and stripe of the first difference.

Examples:
    train --determinism record --workers mlx:cpu,torch:cpu --steps 100
    replay latest
"""

from dataclasses import dataclass

from mlxhog.cli.frame import CommandResult, OneRun, Plugins, command, option


@dataclass(frozen=True, kw_only=True)
class _Replay(OneRun, Plugins):
    ignore_versions: bool = option(
        False, "continue although versions or the processor differ from those of the run"
    )


@command()
def run(config: _Replay) -> CommandResult:
    from mlxhog.training.supervisor.replay import replay

    outcome = replay(config.find(config.run), ignore_versions=config.ignore_versions)
    payload, difference = outcome.to_json(), outcome.difference
    if difference is None:
        return CommandResult(payload, [f"equal bit for bit: {outcome.hashes} hashes", payload])
    return CommandResult(payload, [f"differs first at {difference}", payload], code=1)
