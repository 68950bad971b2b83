"""`mlxhog join`, `leave` and `stop`: requests to a run, from another terminal of the same user."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxhog.cli.flags import RUN_HELP, Flags, Parsed, RunFolder
from mlxhog.config.options import option
from mlxhog.errors import ConfigError, RunError


@dataclass(frozen=True, kw_only=True)
class JoinConfig(RunFolder):
    """Options of `mlxhog join`."""

    workers: str = option("1", "a number, or backends such as torch:cpu*2")
    threads: int | None = option(
        None, "threads of each; auto is the run's, or shares the cores", low=1, none="auto"
    )


def join(arguments: list[str]) -> int:
    """Run `mlxhog join`; returns its exit code."""
    flags = _flags(
        "join",
        "Add workers to a run while it trains. They begin with the optimizer state of one of its\n"
        "workers. The run needs free slots (mlxhog train --max-workers) and strategy hogwild.",
        ("join latest --workers torch:cpu", "join latest --workers mlx:cpu,torch:cpu --threads 1"),
    )
    parsed, config = flags.read(JoinConfig, arguments)
    return _ask(parsed, config.out, "join", workers=config.workers, threads=config.threads)


def leave(arguments: list[str]) -> int:
    """Run `mlxhog leave`; returns its exit code."""
    flags = _flags(
        "leave",
        "Let a worker of a run finish its step and leave, by default the last that joined.",
        ("leave latest", "leave latest 3"),
        "[WORKER]",
    )
    flags.argument("worker", metavar="WORKER", nargs="?", help="its number in the table of workers")
    parsed, config = flags.read(RunFolder, arguments)
    number = parsed.other.worker
    if number is not None and not (number.isdecimal() and 0 < int(number) < 10**6):
        raise ConfigError(f"WORKER is {number!r}; wanted its number, such as 3")
    return _ask(parsed, config.out, "leave", **({} if number is None else {"worker": int(number)}))


def stop(arguments: list[str]) -> int:
    """Run `mlxhog stop`; returns its exit code."""
    flags = _flags(
        "stop",
        "End a run as Ctrl-C does: it finishes its step and saves a checkpoint.",
        ("stop latest", "stop 20260102-101500-sotu --json"),
    )
    parsed, config = flags.read(RunFolder, arguments)
    return _ask(parsed, config.out, "stop")


def _flags(command: str, about: str, examples: Sequence[str], *arguments: str) -> Flags:
    flags = Flags(command, about, examples, ("RUN", *arguments))
    flags.argument("run", metavar="RUN", help=RUN_HELP)
    flags.argument("--json", action="store_true", help="the run's answer as one line of JSON")
    return flags


def _ask(parsed: Parsed, out: str, request: str, **fields: Any) -> int:
    """Send a request to the run of the command line, and print the answer."""
    from mlxhog.arena.requests import ask
    from mlxhog.checkpoint.run import find

    run = find(parsed.other.run, Path(out))
    if run.is_starting():
        raise RunError(
            f"the run {run.name} is starting, and takes no request yet; try again when mlxhog runs "
            "shows that it trains, or end it with Ctrl-C in its terminal"
        )
    answer = ask(run.directory, request, **fields)
    if parsed.other.json:
        print(json.dumps({"run": str(run.directory), **answer}))
    else:
        print(f"{run.name}: {answer['message']}")
    return 0
