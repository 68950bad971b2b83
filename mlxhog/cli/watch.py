"""`mlxhog watch` and `mlxhog board`: follow a run, in another terminal or in a browser."""

import asyncio
import json
import secrets
import shlex
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mlxhog.base.http_server import listen, say_once_where_connections_wait, url_of
from mlxhog.cli.flags import OneRun, Quiet, run_argument
from mlxhog.cli.frame import INTERRUPTED, command, print_json
from mlxhog.config.options import option
from mlxhog.errors import RunError
from mlxhog.report.metrics import Progress, number
from mlxhog.report.plain import observer
from mlxhog.report.views import Observer, RunView

if TYPE_CHECKING:
    from mlxhog.report.record import RunRecord

START_POLL_S = 0.1
LOOK_S = 0.5
MOST_MESSAGES = 20
"""Messages shown at once; of a run that has trained for long, the newest."""


@dataclass(frozen=True, kw_only=True)
class _Watch(OneRun, Quiet):
    pass


@command("watch")
def run(config: _Watch) -> int:
    """Show the table of `mlxhog train` for a run in another terminal; in a pipe, its lines.

    The command reads the run's files, which are written every two seconds, so it disturbs no
    worker. It ends with the run and prints the result. Ctrl-C ends the command, not the run.

    Examples:
        watch latest
        watch runs/20260102-101500-sotu
        watch latest --json | jq .loss
    """
    from mlxhog.checkpoint.run import is_run
    from mlxhog.report.record import RunRecord

    watched = config.find(config.run)
    view = JsonLines() if config.json else observer(sys.stdout, quiet=config.quiet)
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
        if not (config.json or config.quiet):
            print(ending(record))
    except KeyboardInterrupt:
        state = "the run continues" if watched.is_locked() else "the run has ended"
        print(f"no longer watched; {state}: mlxhog watch {watched.directory}", file=sys.stderr)
        return INTERRUPTED
    return 0


def follow(
    record: "RunRecord",
    view: Observer[Progress],
    *,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Show a run in a view until no process trains it any more.

    Args:
        record: of the run; it is read again at every look.
        view: called about twice a second, and once for every message.
        pause: waits for a number of seconds.

    Raises:
        RunError: the metrics of the run cannot be read.
    """
    shown, n_shown, is_running = set[str](), 0, True
    while is_running:
        is_running = False
        with suppress(RunError):  # the run was moved or deleted
            is_running = record.run.is_locked()  # asked first: the last look sees everything
        record.refresh()
        messages = [note for note in record.notes if note not in shown]
        shown.update(messages)
        n_new, n_shown = record.n_events - n_shown, record.n_events
        for event in record.events[-n_new:] if n_new else []:
            if event.kind in ("checkpoint", "message", "strategy") and event.text:
                messages.append("saved " * (event.kind == "checkpoint") + event.text)
        for message in messages[-MOST_MESSAGES:]:
            view(replace(record.progress, message=message))
        view(record.progress)
        if is_running:
            pause(LOOK_S)


def ending(record: "RunRecord") -> str:
    """State how a run ended, and suggest the next commands."""
    record.refresh()
    facts, run = record.facts(), shlex.quote(str(record.run.directory))
    bits = number(record.last("val_bits_per_byte"))
    lines = [
        f"{record.state}: {facts['steps']} steps, {facts['tokens']} tokens in "
        f"{facts['training time']}, held-out {bits} bits per byte{record.scored_at}"
    ]
    if "error" in facts:
        lines.append(facts["error"])
    if record.state == "interrupted" and not record.result:
        lines.append("its process ended without a final status: it was killed")
    lines.append(f"next: mlxhog report {run}")
    lines += [f"      mlxhog train --resume {run}"] * (record.state != "done")
    return "\n".join(lines)


class JsonLines(RunView):
    """Prints every new state as one line of JSON."""

    _printed = ""

    def __call__(self, progress: Progress) -> None:
        """Print a state or a message."""
        text = json.dumps(progress.to_json())
        if text != self._printed:
            print(text, flush=True)
        self._printed = text


@dataclass(frozen=True, kw_only=True)
class _Board(OneRun):
    run: str = run_argument("[RUN]", "latest")
    port: int = option(8322, "port of the server; 0 takes a free one", low=0, high=65535)


@command("board")
def board(config: _Board) -> int:
    """Serve a page that follows a run.

    It shows curves over time, samples and updates, staleness, workers, samples of text, messages.
    All its parts come from this machine, and only this machine can open it; from another one: ssh
    -L 8322:127.0.0.1:8322 HOST. The printed link has a token for the page's buttons: save a
    checkpoint, write a sample, stop the run. Ctrl-C ends the board, not the run.

    Examples:
        board
        board latest --port 8400
        board runs/20260102-101500-sotu
    """
    followed = config.find(config.run)
    with listen("127.0.0.1", config.port) as listener, suppress(KeyboardInterrupt):
        import uvicorn

        from mlxhog.report.board import Board
        from mlxhog.report.record import RunRecord

        token, address = secrets.token_urlsafe(16), f"{url_of(listener)}/"
        settings = uvicorn.Config(
            Board(RunRecord(followed), token),
            log_level="critical",
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=2,
            h11_max_incomplete_event_size=1 << 16,
        )
        if config.json:
            print_json({"url": address, "token": token, "run": str(followed.directory)})
        else:
            print(f"board of {followed.directory}\n  {address}#{token}", flush=True)

        async def answer() -> None:
            say_once_where_connections_wait()
            await uvicorn.Server(settings).serve(sockets=[listener])

        asyncio.run(answer())
    print("the board has ended; it changed nothing in the run", file=sys.stderr)
    return 0
