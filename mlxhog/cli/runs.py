"""`mlxhog runs`: the list of runs; `mlxhog runs rm` removes some."""

import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxhog.base.quantities import format_bytes, format_count, format_duration, format_number
from mlxhog.cli.flags import RunFolder
from mlxhog.cli.frame import Report, command, run_word
from mlxhog.config.options import argument, switch
from mlxhog.errors import ConfigError, RunError, shown
from mlxhog.report.metrics import label, number, scored_at, share_text
from mlxhog.report.streams import printable, wrapped

if TYPE_CHECKING:
    from mlxhog.checkpoint.run import Run

ABOUT = """\
List runs, the newest last: model, data, parameters, steps and time of training, held-out bits per
byte, and the date of the last training. `mlxhog runs rm RUN...` removes runs."""
EXAMPLES = ("runs", "runs --json", "runs rm 20260102-101500-sotu notes --yes")
ABOUT_RM = """\
Remove runs with all their files. A run that trains is refused. If a name is wrong, no run is
removed; no run is removed in part."""
EXAMPLES_RM = ("runs rm 20260102-101500-sotu", "runs rm sotu notes --yes")

MARKS = {
    "running": ("*", "trains now"),
    "interrupted": ("-", "interrupted: mlxhog train --resume RUN continues it"),
    "starting": (".", "starts now"),
    "done": (" ", ""),
}
EARLY = ("x", "ended before its first checkpoint: mlxhog show RUN says what to do")
BAD = ("!", "ended badly: mlxhog show RUN says why")
"""Of every other status, such as diverged, failed, unsaved or damaged."""
HEADER = ("  run", "model", "data", "params", "steps", "time", "bits/byte", "trained")
_OTHERWISE = (
    "; runs lists all runs: `mlxhog runs rm RUN` removes one, `mlxhog show RUN` describes one"
)
_WORDS = 3  # of these columns, aligned to the left
LEFT_OUT = ("trained", "params", "data", "model", "time")
"""Columns that are left out in a narrow terminal, in this order."""


@dataclass(frozen=True, kw_only=True)
class RunsConfig(RunFolder):
    """Options of `mlxhog runs`."""

    json: bool = switch("one JSON object per line")


@command("runs", ABOUT, EXAMPLES, RunsConfig, otherwise=_OTHERWISE)
def run(config: RunsConfig) -> Report:
    """List the runs."""
    from mlxhog.checkpoint.run import list_runs

    records = [describe(each) for each in list_runs(Path(config.out))]
    none = f"no runs in {config.out}; `mlxhog train` makes one"
    width = shutil.get_terminal_size().columns
    return Report(records, lambda: _table(records, width) if records else none, one_per_line=True)


def describe(run: "Run") -> dict[str, Any]:
    """Return the facts of a run: of its run.json, and of other files if it is not done.

    The files may have been edited, so no type is certain.
    """
    from mlxhog.report.history import newest_line

    status = run.read_status()
    result = status.get("result")
    reached = result if isinstance(result, dict) else newest_line(run.metrics_path) or {}
    steps, seconds = reached.get("steps", reached.get("step")), reached.get("seconds")
    part = status.get("held_out")
    return {
        **_of_config(run, status),
        **status,
        "run": str(run.directory),
        "name": run.name,
        "steps": status.get("steps") if steps is None else steps,
        "seconds": reached.get("elapsed_s", status.get("seconds")) if seconds is None else seconds,
        "bits_per_byte": reached.get("val_bits_per_byte"),
        "val_step": reached.get("val_step"),
        "resumable": run.has_checkpoint(),
        "share": _number(part, "share") if isinstance(part, dict) else None,
        "trained_s": _last_change(run),
    }


def _of_config(run: "Run", status: Mapping[str, Any]) -> dict[str, Any]:
    """Return model and data of a run, if its run.json does not have them yet."""
    if "model" in status:
        return {}
    from mlxhog.config.sources import read_yaml

    try:
        values = read_yaml(run.config_path)
    except ConfigError:
        return {"model": None, "data": None}
    model = str(values.get("model", ("-", ""))[0])
    return {"model": Path(model).stem, "data": values.get("data", (None, ""))[0]}


def _last_change(run: "Run") -> float:
    """Return the time of the last record of a run, in seconds since 1970."""
    times = [0.0]
    for path in (run.metrics_path, run.directory / "run.json"):
        with suppress(OSError):
            times.append(path.stat().st_mtime)
    return max(times)


# -- the table ----------------------------------------------------------------------------------


def _table(records: Sequence[Mapping[str, Any]], width: int) -> str:
    marks = [_mark(record) for record in records]
    rows = [_row(*pair) for pair in zip(records, marks, strict=True)]
    names = [printable(record["name"]) for record in records]
    early, emulated = [], []
    for name, record in zip(names, records, strict=True):
        if at := _scored_at(record):
            early.append(f"{name}{at}")
        metal = label(_text(record, "gpu_write", "cpu"), _text(record, "kernels", "native"))
        if remark := metal or "emulated before" * bool(record.get("emulated")):
            emulated.append(f"{name}: {remark}")
    legend = list(dict.fromkeys(f"{mark} {words}" for mark, words in marks if words))
    texts = _texts(records) + [f"< of an earlier step: {', '.join(early)}"] * bool(early)
    wrapped_texts = [line for text in texts for line in wrapped(text, width)]
    return "\n".join([*_lines(rows, width), *legend, *wrapped_texts, *emulated])


def _lines(rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Return the lines of the table with the columns that fit; no value is cut.

    If the names of runs leave no room for numbers, these are below the names.
    """
    from mlxhog.report.table import aligned

    shown = list(range(len(HEADER)))
    for name in ("", *LEFT_OUT):
        shown = [k for k in shown if HEADER[k] != name]
        words = range(sum(k < _WORDS for k in shown))
        table = [[row[k] for k in shown] for row in rows]
        lines = aligned([HEADER[k] for k in shown], table, words=words)
        if max(map(len, lines)) <= width:
            return lines
    first, *numbers = shown
    below = aligned([HEADER[k] for k in numbers], [[row[k] for k in numbers] for row in rows])
    names = (HEADER[first], *(row[first] for row in rows))
    return [line for pair in zip(names, below, strict=True) for line in (pair[0], f"    {pair[1]}")]


def _mark(record: Mapping[str, Any]) -> tuple[str, str]:
    """Return the mark of a run in the table, and its meaning."""
    status = _text(record, "status")
    if status == "interrupted" and not record["resumable"]:
        return EARLY
    return MARKS.get(status, BAD)


def _row(record: Mapping[str, Any], mark: tuple[str, str]) -> tuple[str, ...]:
    def spelt(name: str, spell: Any) -> str:
        value = _number(record, name)
        return "-" if value is None else str(spell(value))

    part = " " if record["share"] in (None, 1.0) else "~"
    early = "<" if _scored_at(record) else " "
    return (
        f"{mark[0]} {printable(record['name'])}",
        _text(record, "model"),
        _data(record),
        spelt("parameters", format_count),
        spelt("steps", format_number),
        spelt("seconds", format_duration),
        spelt("bits_per_byte", lambda bits: f"{number(bits)}{part}{early}"),
        f"{datetime.fromtimestamp(record['trained_s']):%Y-%m-%d}" if record["trained_s"] else "-",
    )


def _data(record: Mapping[str, Any]) -> str:
    """Return its data, in a word."""
    from mlxhog.checkpoint.creation import default_name

    data = record.get("data")
    return default_name(data) if isinstance(data, str) and "/" in data else _text(record, "data")


def _texts(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the legend of numbers that are of a part of the held-out text; [] without any.

    It has the text of most runs on the same data, and the runs with another one.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        has_part = record["share"] not in (None, 1.0)
        if has_part and _number(record, "bits_per_byte") is not None:
            groups.setdefault(_text(record["held_out"], "text"), []).append(record)
    parts, corpora = list[str](), set[str]()
    for text, runs in sorted(groups.items(), key=lambda group: -len(group[1])):
        corpus, size = text.rpartition(" ")[0], _number(runs[0]["held_out"], "n_bytes") or 0.0
        words = f"{format_bytes(size)} ({share_text(runs[0]['share'] or 0.0)}) of {_data(runs[0])}"
        names = ", ".join(printable(each["name"]) for each in runs)
        parts.append(f"{words} in {names}" if corpus in corpora else words)
        corpora.add(corpus)
    legend = "~ of a part of the held-out text, the same in all evaluations:  "
    return [legend + "; ".join(parts)] if parts else []


def _scored_at(record: Mapping[str, Any]) -> str:
    """Return the step that its number scored; "" if it is the last one, or unknown."""
    return scored_at(record.get("val_step"), _number(record, "steps"))


def _text(record: Mapping[str, Any], name: str, otherwise: str = "-") -> str:
    """Return a field of a run.json, which may have been edited, as text for the table."""
    value = record.get(name, otherwise)
    if value is None:
        return otherwise
    return printable(value if isinstance(value, str) else shown(value))[:40]


def _number(record: Mapping[str, Any], name: str) -> float | None:
    value = record.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < 1e15 else None


# -- removal ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RemoveConfig(RunFolder):
    """Options of `mlxhog runs rm`."""

    runs: tuple[str, ...] = argument(
        "RUN...", "a path, or a run's whole name, with date and time or without"
    )
    yes: bool = switch("do not ask")
    json: bool = switch("end with one line of JSON")


@command("runs rm", ABOUT_RM, EXAMPLES_RM, RemoveConfig)
def remove(config: RemoveConfig) -> Report | int:
    """Remove runs."""
    from mlxhog.checkpoint.run import find, remove

    named = [find(name, Path(config.out), whole=True) for name in config.runs]
    chosen = list({each.directory: each for each in named}.values())
    for each in chosen:
        if each.is_locked():
            word = shlex.quote(run_word(each.directory))
            raise RunError(f"the run {each.name} trains now; end it first: mlxhog stop {word}")
    sizes = [_bytes_in(each.directory) for each in chosen]
    names = [f"{each.name} ({format_bytes(n)})" for each, n in zip(chosen, sizes, strict=True)]
    if not (config.yes or _agrees(names)):
        print("nothing was removed", file=sys.stderr)
        return 1
    for each in chosen:
        remove(each)
    facts = {"removed": [str(each.directory) for each in chosen], "bytes": sum(sizes)}
    return Report(facts, lambda: "\n".join(f"removed {name}" for name in names))


def _agrees(names: Sequence[str]) -> bool:
    """Ask on the terminal.

    Raises:
        ConfigError: there is no terminal.
    """
    if not sys.stdin.isatty():
        raise ConfigError(f"would remove {', '.join(names)}; add --yes")
    print("\n".join(names), file=sys.stderr)
    print("remove for good? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _bytes_in(folder: Path) -> int:
    """Return the bytes of all files of a folder, without links."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # just removed
            total += 0 if path.is_dir() else path.lstat().st_size
    return total
