"""End a run with a checkpoint, as Ctrl-C does; or take one worker away from it.

Examples:
    stop latest
    stop 20260102-101500-sotu --json
    stop latest --worker last
"""

from dataclasses import dataclass
from typing import Any

from mlxhog.cli.frame import CommandResult, OneRun, command, option
from mlxhog.errors import RunError

LAST = "last"


def _number(text: str) -> int | None:
    """Return the number of a worker; None for the one that joined last."""
    if text != LAST and not (text.isdecimal() and int(text)):
        raise ValueError(f"wanted the number of a worker, or {LAST}")
    return None if text == LAST else int(text)


@dataclass(frozen=True, kw_only=True)
class _StopOptions(OneRun):
    worker: str | None = option(
        None,
        "only this worker, which finishes its step: its number in the table of workers, or last, "
        "the one that joined last",
        metavar="N|last", none="all", reads=_number,
    )  # fmt: skip


@command(writes=True)
def run(config: _StopOptions) -> CommandResult:
    if config.worker is None:
        return ask_run(config, "stop")
    number = _number(config.worker)
    return ask_run(config, "leave", **{} if number is None else {"worker": number})


def ask_run(config: OneRun, request: str, **fields: Any) -> CommandResult:
    """Send a request to a run that trains, and return its answer."""
    from mlxhog.arena.requests import Refused, ask

    run = config.find(config.run)
    if run.is_starting():
        raise RunError(
            f"the run {run.name} is starting, and takes no request yet; try again when mlxhog runs "
            "shows that it trains, or end it with Ctrl-C in its terminal"
        )
    try:
        answer = ask(run.directory, request, **fields)
    except RunError as error:
        holder = None if isinstance(error, Refused) else run.holder()
        if holder is None or not holder.elsewhere:
            raise
        raise RunError(
            f"the run {run.name} trains on {holder.elsewhere}, and no request reaches it from "
            "here; give this command there"
        ) from error
    return CommandResult({"run": str(run.directory), **answer}, f"{run.name}: {answer['message']}")
