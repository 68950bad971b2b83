"""`mlxhog watch`, `report` and `plot`: looks at runs while they train, and after."""

import json
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mlxhog.cli.flags import Json, OneRun, Quiet, RunsDirectory, run_argument
from mlxhog.cli.frame import INTERRUPTED, Report, command
from mlxhog.config.options import option
from mlxhog.display.metrics import format_loss
from mlxhog.display.plain import RunView
from mlxhog.display.streams import wrapped
from mlxhog.display.views import Observer, observer
from mlxhog.errors import ConfigError, RunError
from mlxhog.progress import Progress, Result

if TYPE_CHECKING:
    from mlxhog.display.record import RunRecord

START_POLL_S = 0.1
LOOK_S = 0.5
MAX_MESSAGES = 20
"""Messages shown at once; of a run that has trained for long, the newest."""

NAMES_WIDTH, NUMBERS_WIDTH = 26, 24  # of `plot` in the terminal


@command("watch")
def run(config: OneRun, how: Quiet) -> int:
    """Show the table of `mlxhog train` for a run in another terminal; in a pipe, its lines.

    The command reads the run's files, which are written every two seconds, so it disturbs no
    worker. It ends with the run and prints the result. Ctrl-C ends the command, not the run.

    Examples:
        watch latest
        watch latest --json | jq .loss
    """
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
        print(f"no longer watched; {state}: mlxhog watch {watched.directory}", file=sys.stderr)
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
            time.sleep(LOOK_S)


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


@dataclass(frozen=True, kw_only=True)
class _Report(RunsDirectory, Json):
    runs: tuple[str, ...] = run_argument("RUN...")
    output: str | None = option(
        None, "file to write; in the run's folder, or here for several", none="auto"
    )

    def records(self) -> "list[RunRecord]":
        from mlxhog.display.record import RunRecord

        records = [RunRecord(self.find(name)) for name in self.runs]
        return list({each.run.directory.resolve(): each for each in records}.values())

    def write(self, records: "Sequence[RunRecord]", name: str, content: bytes) -> str:
        from mlxhog.base.durable import disk_errors, replace_file

        default = Path(name) if len(records) > 1 else records[0].run.directory / name
        path = Path(self.output) if self.output else default
        with disk_errors(f"writing {path}"):
            replace_file(path, content)
        return str(path)


def suffix_of(path: str, known: Sequence[str]) -> str:
    """Return the format of a file by its suffix; ConfigError if it is none of the known ones."""
    suffix = Path(path).suffix
    if suffix[1:].lower() not in known:
        raise ConfigError(
            f"--output {path}: the suffix is {suffix or 'missing'}, expected one of "
            f"{', '.join(f'.{one}' for one in known)}"
        )
    return suffix[1:].lower()


@command("report", writes=True)
def report(config: _Report) -> Report:
    """Write one HTML file about one run, or about several beside each other.

    The file needs no network. A run in progress is reported up to its last number.

    Examples:
        report latest
        report runs/20260102-101500-sotu runs/20260102-111500-sotu --output compared.html
    """
    from mlxhog.display.run_page import report

    suffix_of(config.output or "report.html", ("html", "htm"))
    records = config.records()
    page = report(records).encode()
    path = config.write(records, "report.html", page)
    notes = [note for each in records for note in each.notes]
    return Report({"report": path, "bytes": len(page), "notes": notes})


@command("plot", writes=True)
def plot(config: _Report) -> Report:
    """Draw the losses of runs in bits per byte, in the terminal and as one picture.

    The picture is a PNG, SVG or PDF file, by the suffix of --output; a dotted line is the learning
    rate. The terminal has a line for each run, on one scale. A run in progress is drawn up to its
    last number.

    Examples:
        plot latest
        plot sotu notes --output compared.pdf
    """
    from mlxhog.display import charts
    from mlxhog.display.record import different_texts

    kind = suffix_of(config.output or "losses.png", charts.FORMATS)
    records = config.records()
    for each in records:
        if each.last("train_bits_per_byte") is None:
            raise RunError(
                f"the run {each.run.name} has no numbers yet; the first come two seconds after "
                "training begins"
            )
    differ = different_texts(records)
    path = config.write(records, "losses.png", charts.losses(records, kind))
    columns = ("train_bits_per_byte", "val_bits_per_byte", "final_bits_per_byte")
    runs = [
        {
            "name": each.run.name,
            "lines": len(each.history),
            **{name: each.last(name) for name in columns},
            "val_step": each.progress.val_step,
            "validation": each.status.get("validation"),
        }
        for each in records
    ]
    notes = [*(note for each in records for note in each.notes), *differ]
    width = shutil.get_terminal_size().columns
    lines = [*_curves(records, width), *(part for one in differ for part in wrapped(one, width))]
    return Report({"plot": path, "runs": runs, "notes": notes}, [*lines, path])


def _curves(records: "Sequence[RunRecord]", width: int) -> Iterator[str]:
    """Yield a line per run, all on one scale: a character for the mean of each part."""
    import numpy as np

    from mlxhog.display.table import cut

    columns = (record.history.column("train_bits_per_byte") for record in records)
    curves = [column[~np.isnan(column)] for column in columns]
    low, high = (float(bound(np.concatenate(curves))) for bound in (np.min, np.max))
    names = [cut(record.run.name, NAMES_WIDTH) for record in records]
    wide = max(map(len, names))
    room = max(width - wide - NUMBERS_WIDTH - 4, 8)
    has_blocks = (sys.stdout.encoding or "").lower().startswith("utf")
    signs = "▁▂▃▄▅▆▇█" if has_blocks else "_.-=+*#@"
    for name, curve, record in zip(names, curves, records, strict=True):
        means = [part.mean() for part in np.array_split(curve, min(room, len(curve)))]
        levels = (np.array(means) - low) / max(high - low, 1e-12) * (len(signs) - 1)
        drawn = "".join(signs[round(level)] for level in levels.tolist())
        validation = record.last("val_bits_per_byte")
        scored = (
            ""
            if validation is None
            else f", validation {format_loss(validation)}{record.scored_at}"
        )
        end = format_loss(record.last("train_bits_per_byte"))
        yield f"{name:{wide}}  {drawn:{room}}  {end}{scored}"
    yield f"training, bits per byte, from {high:.2f} at the top to {low:.2f}"
