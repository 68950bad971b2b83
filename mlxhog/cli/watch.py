"""Follow a run in another terminal with the live table of `mlxhog train`.

A pipe gets lines in place of the table. The command reads the run's files, which are written every
two seconds, so it disturbs no worker. It ends with the run and prints the result. Ctrl-C ends the
command, not the run.

Examples:
    watch latest
    watch latest --json | jq .loss
"""

import json
import sys
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from mlxhog.base.paths import quoted
from mlxhog.cli.frame import OneRun, Quiet, command
from mlxhog.display.plain import RunView
from mlxhog.display.views import Observer, observer
from mlxhog.errors import INTERRUPTED, RunError
from mlxhog.progress import Progress, Result

if TYPE_CHECKING:
    from mlxhog.display.record import RunRecord

START_POLL_S = 0.1
POLL_S = 0.5
MAX_MESSAGES = 20
"""Messages shown at once; of a run that has trained for long, the newest."""


@command()
def run(config: OneRun, how: Quiet) -> int:
    from mlxhog.checkpoint.run import is_run
    from mlxhog.display.record import RunRecord

    watched = config.find(config.run)
    view = JsonLines() if config.json else observer(sys.stdout, quiet=how.quiet)
    try:
        if watched.is_starting():
            print(f"{watched.name} is starting", file=sys.stderr, flush=True)
        while watched.is_starting():
            time.sleep(START_POLL_S)
        if not is_run(watched.directory):
            raise RunError(f"{watched.name} could not start; its terminal says why")
        record = RunRecord(watched)
        with view as shown:
            follow(record, shown)
        if not (config.json or how.quiet):
            print(_ending(record))
    except KeyboardInterrupt:
        state = "the run continues" if watched.is_locked() else "the run has ended"
        print(f"detached; {state}: mlxhog watch {quoted(watched.directory)}", file=sys.stderr)
        return INTERRUPTED
    return 0


def follow(record: "RunRecord", view: Observer[Progress]) -> None:
    """Show a run in a view until no process trains it; a RunError if its metrics cannot be read.

    Args:
        record: of the run; it is read again at every look.
        view: called about twice a second, and once for every message.
    """
    shown, n_shown, is_running = set[str](), 0, True
    while is_running:
        is_running = False
        with suppress(RunError):  # the run was moved or deleted
            is_running = record.run.is_locked()  # asked first: the last look sees everything
        record.refresh()
        messages = [note for note in record.notes if note not in shown]
        shown.update(messages)
        new, n_shown = record.events[n_shown:], len(record.events)
        for event in new:
            if event.kind in ("checkpoint", "message", "strategy") and event.text:
                messages.append("saved " * (event.kind == "checkpoint") + event.text)
        for message in messages[-MAX_MESSAGES:]:
            view(replace(record.progress, message=message))
        view(record.progress)
        if is_running:
            time.sleep(POLL_S)


def _ending(record: "RunRecord") -> str:
    """State how a run ended, as `mlxhog train` does, and suggest the next commands."""
    from mlxhog.cli.train import summary

    record.refresh()
    run, killed = record.run, record.result is None and record.state == "interrupted"
    saved = str(run.checkpoints) if run.has_checkpoint() else None
    result = record.result or Result.of(
        record.progress, run="", status=record.state, restarts=0, torn=0, checkpoint=saved
    )
    first = "its process ended without a final status: it was killed\n" * killed
    return first + summary(replace(result, run=str(run.directory)))


class JsonLines(RunView):
    """Prints every new state as one line of JSON."""

    _printed = ""

    def __call__(self, progress: Progress) -> None:
        """Print a state or a message."""
        text = json.dumps(progress.to_json())
        if text != self._printed:
            print(text, flush=True)
        self._printed = text
