"""`mlxhog join`, `leave` and `stop`: requests to a run, from another terminal of the same user."""

from dataclasses import dataclass
from typing import Any

from mlxhog.cli.flags import Json, RunFolder, run_argument
from mlxhog.cli.frame import Report, command
from mlxhog.config.options import argument, option
from mlxhog.errors import RunError


@dataclass(frozen=True, kw_only=True)
class _RequestConfig(RunFolder, Json):
    run: str = run_argument()


@dataclass(frozen=True, kw_only=True)
class _JoinConfig(_RequestConfig):
    workers: str = option("1", "a number, or backends such as torch:cpu*2")
    threads: int | None = option(
        None, "threads of each; auto is the run's, or shares the cores", low=1, none="auto"
    )


@dataclass(frozen=True, kw_only=True)
class _LeaveConfig(_RequestConfig):
    worker: int | None = argument("[WORKER]", "its number in the table of workers", low=1)


@command(
    "join",
    "Add workers to a run while it trains. They begin with the optimizer state of one of its\n"
    "workers. The run needs free slots (mlxhog train --max-workers) and strategy hogwild.",
    ("join latest --workers torch:cpu", "join latest --workers mlx:cpu,torch:cpu --threads 1"),
    _JoinConfig,
)
def join(config: _JoinConfig) -> Report:
    """Add workers to a run."""
    return _ask(config, "join", workers=config.workers, threads=config.threads)


@command(
    "leave",
    "Let a worker of a run finish its step and leave, by default the last that joined.",
    ("leave latest", "leave latest 3"),
    _LeaveConfig,
)
def leave(config: _LeaveConfig) -> Report:
    """Let a worker leave a run."""
    return _ask(config, "leave", **{} if config.worker is None else {"worker": config.worker})


@command(
    "stop",
    "End a run as Ctrl-C does: it finishes its step and saves a checkpoint.",
    ("stop latest", "stop 20260102-101500-sotu --json"),
    _RequestConfig,
)
def stop(config: _RequestConfig) -> Report:
    """End a run."""
    return _ask(config, "stop")


def _ask(config: _RequestConfig, request: str, **fields: Any) -> Report:
    from mlxhog.arena.requests import ask

    run = config.find(config.run)
    if run.is_starting():
        raise RunError(
            f"the run {run.name} is starting, and takes no request yet; try again when mlxhog runs "
            "shows that it trains, or end it with Ctrl-C in its terminal"
        )
    answer = ask(run.directory, request, **fields)
    facts = {"run": str(run.directory), **answer}
    return Report(facts, f"{run.name}: {answer['message']}", words={})
