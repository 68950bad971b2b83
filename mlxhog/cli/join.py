"""Add workers to a run while it trains.

They begin with the optimizer state of one of its workers. The run needs free slots (mlxhog train
--max-workers) and strategy auto, collect or hogwild.

Examples:
    join latest --workers torch:cpu
    join latest --workers mlx:cpu,torch:cpu --threads 1
"""

from dataclasses import dataclass

from mlxhog.cli.frame import CommandResult, OneRun, command, option
from mlxhog.cli.stop import ask_run


@dataclass(frozen=True, kw_only=True)
class _Join(OneRun):
    workers: str = option("1", "a number, or backends such as torch:cpu*2")
    threads: int | None = option(
        None, "threads of each; auto is the run's, or shares the cores", low=1, none="auto"
    )


@command(writes=True)
def run(config: _Join) -> CommandResult:
    return ask_run(config, "join", workers=config.workers, threads=config.threads)
