"""`mlxhog runs`: the list of runs; `runs rm` removes some, and `mlxhog show` describes one."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxhog.base.paths import path_from_here
from mlxhog.base.quantities import format_bytes, format_count, format_duration, format_number
from mlxhog.cli.flags import Json, RunFolder, run_argument
from mlxhog.cli.frame import Report, command, run_word
from mlxhog.config.options import argument, switch
from mlxhog.errors import ConfigError, RunError, shown
from mlxhog.report.metrics import label, number, scored_at, share_text
from mlxhog.report.table import Section

if TYPE_CHECKING:
    from mlxhog.checkpoint.run import Run
    from mlxhog.models.families import ModelConfig
    from mlxhog.report.record import RunRecord

ABOUT = """\
List runs, the newest last: status, model, data, parameters, steps and time of training, held-out
bits per byte, and the share of the held-out text that they are of. `mlxhog runs rm RUN...` removes
runs."""
EXAMPLES = ("runs", "runs --json", "runs rm 20260102-101500-sotu notes --yes")
HEADER = ("run", "status", "model", "data", "params", "steps", "time", "bits/byte", "of text")
ADVICE = {
    "interrupted": "mlxhog train --resume RUN continues it",
    "early": "ended before its first checkpoint: mlxhog show RUN says what to do",
    "diverged": "mlxhog show RUN says why",
    "failed": "mlxhog show RUN says why",
    "unsaved": "mlxhog show RUN says why",
    "damaged": "mlxhog show RUN says why",
}


@dataclass(frozen=True, kw_only=True)
class RunsConfig(RunFolder, Json):
    """Options of `mlxhog runs`."""


@command(
    "runs",
    ABOUT,
    EXAMPLES,
    RunsConfig,
    otherwise="; runs lists all runs: `mlxhog runs rm RUN` removes one, `mlxhog show RUN` "
    "describes one",
)
def run(config: RunsConfig) -> Report:
    """List the runs."""
    from mlxhog.checkpoint.run import list_runs

    records = [describe(each) for each in list_runs(Path(config.out))]
    none = f"no runs in {config.out}; `mlxhog train` makes one"
    return Report(records, text=lambda: [_table(records)] if records else none, one_per_line=True)


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


def _table(records: Sequence[Mapping[str, Any]]) -> Section:
    rows = list(map(_row, records))
    statuses = dict.fromkeys(row[1].partition(",")[0] for row in rows)
    notes = [f"{status}: {ADVICE[status]}" for status in statuses if status in ADVICE]
    return Section("", HEADER, rows, notes)


def _row(record: Mapping[str, Any]) -> tuple[str, ...]:
    def spelt(name: str, spell: Any) -> str:
        value = _number(record, name)
        return "-" if value is None else str(spell(value))

    status, data = _text(record, "status"), record.get("data")
    if status == "interrupted" and not record["resumable"]:
        status = "early"
    metal = label(_text(record, "gpu_write", "cpu"), _text(record, "kernels", "native"))
    if isinstance(data, str) and "/" in data:
        from mlxhog.checkpoint.creation import default_name

        data = default_name(data)
    early = scored_at(record.get("val_step"), _number(record, "steps"))
    return (
        record["name"],
        ", ".join(
            filter(None, [status, metal or "emulated before" * bool(record.get("emulated"))])
        ),
        _text(record, "model"),
        _text({"data": data}, "data"),
        spelt("parameters", format_count),
        spelt("steps", format_number),
        spelt("seconds", format_duration),
        spelt("bits_per_byte", lambda bits: f"{number(bits)}{early}"),
        "-" if record["share"] is None else share_text(record["share"]),
    )


def _text(record: Mapping[str, Any], name: str, otherwise: str = "-") -> str:
    """Return a field of a run.json, which may have been edited, as text for the table."""
    value = record.get(name, otherwise)
    if value is None:
        return otherwise
    return (value if isinstance(value, str) else shown(value))[:40]


def _number(record: Mapping[str, Any], name: str) -> float | None:
    value = record.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < 1e15 else None


# -- removal ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RemoveConfig(RunFolder, Json):
    """Options of `mlxhog runs rm`."""

    runs: tuple[str, ...] = argument(
        "RUN...", "a path, or a run's whole name, with date and time or without"
    )
    yes: bool = switch("do not ask")


@command(
    "runs rm",
    "Remove runs with all their files. A run that trains is refused. If a name is wrong, no run is"
    "\nremoved; no run is removed in part.",
    ("runs rm 20260102-101500-sotu", "runs rm sotu notes --yes"),
    RemoveConfig,
)
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
    return Report(facts, text=lambda: "\n".join(f"removed {name}" for name in names))


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


# -- one run ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ShowConfig(RunFolder, Json):
    """Options of `mlxhog show`."""

    run: str = run_argument()


_LAST = (
    "step", "tokens", "elapsed_s", "loss", "train_bits_per_byte", "val_bits_per_byte",
    "final_bits_per_byte",
)  # fmt: skip


@command(
    "show",
    "Show a run: model, data, options that differ from the defaults, workers, steps at which it "
    "was\nresumed, its checkpoints, how to load them, and its last numbers.",
    ("show latest", "show sotu --json"),
    ShowConfig,
)
def show(config: ShowConfig) -> Report:
    """Show a run."""
    from mlxhog.checkpoint import manifest
    from mlxhog.checkpoint.run import find
    from mlxhog.report.metrics import sound_marks
    from mlxhog.report.record import RunRecord
    from mlxhog.report.shares import in_words

    record = RunRecord(find(config.run, Path(config.out)))
    run, status, model = record.run, record.status, _architecture(record.run)
    resumed = status.get("resumed")
    names = [path.name for path in manifest.by_age(run.checkpoints)]
    facts: dict[str, Any] = {
        "run": str(run.directory),
        "name": run.name,
        "status": record.state,
        "created_s": run.created_ns() / 1e9 or None,
        "model": record.config.get("model"),
        "family": None if model is None else model.title,
        "parameters": status.get("parameters"),
        "data": record.config.get("data"),
        "tokenizer": record.config.get("tokenizer"),
        "options": record.changed(),
        "strategy": record.config.get("strategy"),
        "workers": [worker.backend for _, worker in sorted(record.history.workers.items())],
        "resumed": resumed if isinstance(resumed, list) else [],
        "checkpoints": [*names[:-1], *(f"{name} (latest)" for name in names[-1:])],
        "held_out": record.part or None,
        "last": {
            **{name: record.last(name) for name in _LAST},
            "val_step": record.history.evaluation.get("val_step"),
        },
        "marks": dict(sound_marks(record.progress.marks)),
        "first_step_s": record.progress.first_step_s,
        "shares": record.shares(),
        "load": _load(run, model),
        "notes": record.notes,
    }
    rows, spelled = record.facts(), record.options_in_words()
    whole, *each = facts["shares"].items()
    words = {
        **{name: facts[name] for name in ("model", "family", "data", "tokenizer")},
        **{name: text for name, text in rows.items() if name != "status" and text != "-"},
        "a step": in_words(whole[1]),
        **{name: in_words(shares) for name, shares in each},
        "resumed at": facts["resumed"],
        "options": [f"{name} {spelled[name]}" for name in facts["options"]] or "the defaults",
        "checkpoints": facts["checkpoints"] or "none yet",
        "load": facts["load"] and f"mlxhog.load({run_word(run.directory)!r}), {facts['load']}",
        "note": [*record.notes, *filter(None, [record.part.get("seen")])],
    }
    return Report(facts, f"{run.name}: {record.state}", words=words, notes=_next(record))


def _next(record: "RunRecord") -> list[str]:
    name = shlex.quote(run_word(record.run.directory))
    if record.is_running:
        return [f"next: mlxhog watch {name}"]
    config = shlex.quote(str(path_from_here(record.run.config_path)))
    train = f"--resume {name} --time 10m"
    if not record.run.has_checkpoint():  # `--resume` would refuse it
        train = f"--config {config}  # begins again: it has no checkpoint"
    return [f"next: mlxhog plot {name}", f"      mlxhog train {train}"]


def _architecture(run: "Run") -> "ModelConfig | None":
    """Return its model; None if it cannot be read."""
    from mlxhog.checkpoint.formats.opening import read_config
    from mlxhog.models import families

    try:
        return families.read(read_config(run.architecture / "config.json"))
    except ConfigError:
        return None


def _load(run: "Run", model: "ModelConfig | None") -> str | None:
    """Return the Python call that loads its newest checkpoint; None without one."""
    if model is None or not (run.model / "model.safetensors").exists():
        return None
    if model.hf == "class" and len(model.layout.out_norm) == 1:
        return f"transformers.AutoModelForCausalLM.from_pretrained({str(run.model)!r})"
    word = run_word(run.directory)
    xlstm = f", mlxhog convert {shlex.quote(word)} DIR --to xlstm"
    theirs = xlstm if model.in_xlstm else ""
    return f"mlxhog.load({word!r}){theirs} (transformers has no such model)"
