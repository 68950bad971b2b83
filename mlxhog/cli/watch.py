"""`mlxhog watch`: the live table of a run in another terminal."""

import json
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from mlxhog.cli.flags import RunFolder, quiet_flag, run_argument
from mlxhog.cli.frame import command
from mlxhog.config.options import switch
from mlxhog.errors import RunError
from mlxhog.report.metrics import Progress
from mlxhog.report.plain import observer
from mlxhog.report.views import Observer

ABOUT = """\
Show the table of `mlxhog train` for a run in another terminal; in a pipe, its lines. The command
reads the run's files, which are written every two seconds, so it disturbs no worker. It ends with
the run and prints the result. Ctrl-C ends the command, not the run."""
EXAMPLES = (
    "watch latest",
    "watch runs/20260102-101500-sotu",
    "watch latest --json | jq .loss",
)
INTERRUPTED = 130
START_POLL_S = 0.1


@dataclass(frozen=True, kw_only=True)
class WatchConfig(RunFolder):
    """Options of `mlxhog watch`."""

    run: str = run_argument()
    json: bool = switch("one JSON object per line and state")
    quiet: bool = quiet_flag()


@command("watch", ABOUT, EXAMPLES, WatchConfig)
def run(config: WatchConfig) -> int:
    """Show a run until it ends."""
    from mlxhog.checkpoint.run import find, is_run
    from mlxhog.report.follow import RunFollower, follow

    watched = find(config.run, Path(config.out))
    view: AbstractContextManager[Observer[Progress]] = (
        nullcontext(JsonLines()) if config.json else observer(sys.stdout, quiet=config.quiet)
    )
    try:
        if watched.is_starting():
            print(f"{watched.name} is starting", file=sys.stderr, flush=True)
        while watched.is_starting():
            time.sleep(START_POLL_S)
        if not is_run(watched.directory):
            raise RunError(f"{watched.name} could not start; its terminal says why")
        follower = RunFollower(watched)
        with view as shown:
            follow(follower, shown)
        if not (config.json or config.quiet):
            print(follower.ending())
    except KeyboardInterrupt:
        state = "the run continues" if watched.is_locked() else "the run has ended"
        print(f"no longer watched; {state}: mlxhog watch {watched.directory}", file=sys.stderr)
        return INTERRUPTED
    return 0


class JsonLines:
    """Prints every new state as one line of JSON."""

    def __init__(self) -> None:
        self._printed = ""

    def __call__(self, progress: Progress) -> None:
        """Print a state or a message."""
        text = json.dumps(progress.to_json())
        if text != self._printed:
            print(text, flush=True)
        self._printed = text
