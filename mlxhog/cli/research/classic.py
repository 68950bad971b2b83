"""Solve one of the Hogwild paper's own problems, with each way of writing.

Plain serial SGD runs beside it. Without --data the data are generated, with the statistics of the
paper. Without PROBLEM it lists the problems. Every number but "start-up" is of the native loops
only: measurement and shuffling are not timed. lost updates: of a counter that is incremented once
per touch of the busiest shared coordinate; other coordinates lose fewer.

Examples:
    research classic
    research classic svm --workers 2 --write racy
    research classic matrix-completion --rank 32 --strategy round_robin
    research classic svm --data rcv1_train.svm

Main options:
    data size workers strategy write epochs lr batch_size seed verbose json
"""

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlxhog.base.quantities import format_count, format_duration
from mlxhog.cli.frame import EXIT_CODES, CommandResult, Quiet, argument, command, option, ticking
from mlxhog.errors import ConfigError
from mlxhog.research.classic.config import ClassicConfig

if TYPE_CHECKING:
    from mlxhog.research.classic.result import ClassicProgress


@dataclass(frozen=True, kw_only=True)
class _ClassicOptions(Quiet):
    problem: str | None = argument("[PROBLEM]", "see the list: mlxhog research classic")
    verbose: bool = option(False, "every number, not only the main ones")


@command()
def run(args: _ClassicOptions, config: ClassicConfig) -> CommandResult:
    from mlxhog.research.classic import problems

    if args.problem is None:
        if config != ClassicConfig():
            raise ConfigError(
                "name the problem, as in `mlxhog research classic svm`; `mlxhog research classic` "
                "lists them"
            )
        entries = [{"name": n, "about": about} for n, (about, _) in problems.PROBLEMS.items()]
        return CommandResult(
            {"problems": entries}, [{one["name"]: one["about"] for one in entries}]
        )
    # The rest imports NumPy and the native module.
    from mlxhog.base import machine
    from mlxhog.research.classic.result import sections, warnings
    from mlxhog.research.classic.run import compare

    load = os.getloadavg()[0]
    with args.status() as line:
        line.show("generating the data" if config.data is None else f"reading {config.data}")
        problem = problems.create(args.problem, config)
    began_s: dict[str, float] = {}
    line = args.status()
    with ticking(line) as tick:

        def show(progress: "ClassicProgress") -> None:
            if progress.message is not None:
                line.tell(progress.message)
                return
            began = began_s.setdefault(progress.strategy, time.monotonic())
            tick(lambda: _progress_line(progress, time.monotonic() - began))

        result, serial = compare(problem, config, show)
    messages = [result.advice] if result.advice else []
    if result is serial and result.status == "diverged" and config.strategy != "serial":
        messages.insert(0, f"serial diverged, so {config.strategy} was not begun")
    if result.status == "interrupted" and not args.quiet:
        messages.insert(0, f"interrupted after {len(result.epochs)} epochs of {result.strategy}")
    notes = [] if result.status == "diverged" else [*warnings(result, load, machine.here().cores)]
    text = sections(problem.about, result, serial, notes, everything=args.verbose)
    return CommandResult(result.to_json(serial), text, EXIT_CODES[result.status], messages)


def _progress_line(progress: "ClassicProgress", seconds: float) -> str:
    epoch, epochs = progress.epoch, progress.epochs
    ended = 0 if epoch is None else epoch.number
    part = ended + min(1.0, progress.done / progress.examples)
    parts = [progress.strategy, f"epoch {min(ended + 1, epochs)}/{epochs}"]
    if epoch is not None:
        rate = epoch.examples / max(epoch.seconds, 1e-9)
        parts += [f"objective {epoch.objective:.5g}", f"{format_count(rate)} examples/s"]
    if part > 0:
        parts.append(f"{format_duration((epochs - part) * seconds / part)} to go")
    return "  ".join(parts)
