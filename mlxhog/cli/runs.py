"""`mlxhog runs`: the list of runs; `runs rm` removes some, and `mlxhog show` describes one."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxhog.base.paths import path_from_here
from mlxhog.base.quantities import format_bytes, format_count, format_duration, format_number
from mlxhog.cli.flags import Json, RunFolder, run_argument
from mlxhog.cli.frame import Report, command, run_word
from mlxhog.config.options import argument, switch
from mlxhog.errors import ConfigError, RunError
from mlxhog.report.metrics import label, number, scored_at, share_text
from mlxhog.report.table import Section

if TYPE_CHECKING:
    from mlxhog.checkpoint.run import Run
    from mlxhog.models.families import ModelConfig

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

    records = [_facts(each) for each in list_runs(Path(config.out))]

    def text() -> str | list[Section]:
        if not records:
            return f"no runs in {config.out}; `mlxhog train` makes one"
        rows = list(map(_row, records))
        statuses = dict.fromkeys(row[1].partition(",")[0] for row in rows)
        notes = [f"{status}: {ADVICE[status]}" for status in statuses if status in ADVICE]
        return [Section("", HEADER, rows, notes)]

    return Report(records, text=text, one_per_line=True)


def _facts(run: Run) -> dict[str, Any]:
    """Return the facts of a run.json, and of other files what it lacks before the run is done."""
    from mlxhog.config.sources import read_yaml
    from mlxhog.report.history import newest_line

    status, options = run.read_status(), {}
    if "model" not in status:
        with suppress(ConfigError):
            options = {name: value for name, (value, _) in read_yaml(run.config_path).items()}
    result, part = status.get("result"), status.get("held_out")
    reached = result if isinstance(result, dict) else newest_line(run.metrics_path) or {}
    return {
        "model": Path(str(options.get("model", "-"))).stem,
        "data": options.get("data"),
        **status,
        "run": str(run.directory),
        "name": run.name,
        "steps": reached.get("steps", reached.get("step", status.get("steps"))),
        "seconds": reached.get("seconds", reached.get("elapsed_s", status.get("seconds"))),
        "bits_per_byte": reached.get("val_bits_per_byte"),
        "val_step": reached.get("val_step"),
        "resumable": run.has_checkpoint(),
        "share": part.get("share") if isinstance(part, dict) else None,
    }


def _row(facts: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a run as a row of the table; its run.json may have been edited, so of any types."""

    def spelt(name: str, spell: Callable[[float], str]) -> str:
        value: Any = facts.get(name)
        is_number = type(value) in (int, float) and abs(value) < 1e15
        return spell(float(value)) if is_number else "-"

    status, data = str(facts.get("status"))[:40], facts.get("data")
    if status == "interrupted" and not facts["resumable"]:
        status = "early"
    metal = label(*(str(facts.get(name, "")) for name in ("gpu_write", "kernels")))
    if isinstance(data, str) and "/" in data:
        from mlxhog.checkpoint.creation import default_name

        data = default_name(data)
    steps = facts["steps"] if type(facts["steps"]) is int else None
    early = scored_at(facts["val_step"], steps)
    return (
        facts["name"],
        f"{status}, {metal}" if metal else status,
        str(facts.get("model"))[:40],
        "-" if data is None else str(data)[:40],
        spelt("parameters", format_count),
        spelt("steps", format_number),
        spelt("seconds", format_duration),
        spelt("bits_per_byte", lambda bits: f"{number(bits)}{early}"),
        spelt("share", share_text),
    )


# -- removal ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _RemoveConfig(RunFolder, Json):
    runs: tuple[str, ...] = argument(
        "RUN...", "a path, or a run's whole name, with date and time or without"
    )
    yes: bool = switch("do not ask")


@command(
    "runs rm",
    "Remove runs with all their files. A run that trains is refused. If a name is wrong, no run is"
    "\nremoved; no run is removed in part.",
    ("runs rm 20260102-101500-sotu", "runs rm sotu notes --yes"),
    _RemoveConfig,
)
def remove(config: _RemoveConfig) -> Report | int:
    """Remove runs."""
    from mlxhog.checkpoint.run import find, remove

    named = [find(name, Path(config.out), whole=True) for name in config.runs]
    chosen = {each.directory: each for each in named}
    for each in chosen.values():
        if each.is_locked():
            word = shlex.quote(run_word(each.directory))
            raise RunError(f"the run {each.name} trains now; end it first: mlxhog stop {word}")
    sizes = [_bytes_in(folder) for folder in chosen]
    names = [
        f"{each.name} ({format_bytes(n)})" for each, n in zip(chosen.values(), sizes, strict=True)
    ]
    if not config.yes:
        if not sys.stdin.isatty():
            raise ConfigError(f"would remove {', '.join(names)}; add --yes")
        print(*names, "remove for good? [y/N] ", sep="\n", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            print("nothing was removed", file=sys.stderr)
            return 1
    for each in chosen.values():
        remove(each)
    facts = {"removed": list(map(str, chosen)), "bytes": sum(sizes)}
    return Report(facts, text=lambda: "\n".join(f"removed {name}" for name in names))


def _bytes_in(folder: Path) -> int:
    """Return the bytes of all files of a folder, without links."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # just removed
            total += 0 if path.is_dir() else path.lstat().st_size
    return total


# -- one run ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _ShowConfig(RunFolder, Json):
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
    _ShowConfig,
)
def show(config: _ShowConfig) -> Report:
    """Show a run."""
    from mlxhog.checkpoint import manifest
    from mlxhog.checkpoint.formats.opening import read_config
    from mlxhog.models import families
    from mlxhog.report.record import RunRecord
    from mlxhog.report.shares import in_words

    record = RunRecord(config.find(config.run))
    run, status, model = record.run, record.status, None
    with suppress(ConfigError):  # it may not be written yet
        model = families.read(read_config(run.architecture / "config.json"))
    names = [path.name for path in manifest.by_age(run.checkpoints)]
    facts: dict[str, Any] = {
        "run": str(run.directory),
        "name": run.name,
        "status": record.state,
        "created_s": run.created_ns() / 1e9 or None,
        **{name: record.config.get(name) for name in ("model", "data", "tokenizer", "strategy")},
        "family": None if model is None else model.title,
        "parameters": status.get("parameters"),
        "options": record.changed(),
        "workers": [worker.backend for _, worker in sorted(record.history.workers.items())],
        "resumed": resumed if isinstance(resumed := status.get("resumed"), list) else [],
        "checkpoints": [*names[:-1], *(f"{name} (latest)" for name in names[-1:])],
        "held_out": record.part or None,
        "last": {
            **{name: record.last(name) for name in _LAST},
            "val_step": record.progress.val_step,
        },
        "marks": dict(record.progress.marks),
        "first_step_s": record.progress.first_step_s,
        "shares": record.shares(),
        "load": _load(run, model),
        "notes": record.notes,
    }
    spelled, (whole, *each) = record.options_in_words(), facts["shares"].items()
    words = {
        **{name: facts[name] for name in ("model", "family", "data", "tokenizer")},
        **{k: text for k, text in record.facts().items() if k != "status" and text != "-"},
        "a step": in_words(whole[1]),
        **{name: in_words(shares) for name, shares in each},
        "resumed at": facts["resumed"],
        "options": [f"{name} {spelled[name]}" for name in facts["options"]] or "the defaults",
        "checkpoints": facts["checkpoints"] or "none yet",
        "load": facts["load"] and f"mlxhog.load({run_word(run.directory)!r}), {facts['load']}",
        "note": [*record.notes, *filter(None, [record.part.get("seen")])],
    }
    word = shlex.quote(run_word(run.directory))
    train = f"--resume {word} --time 10m"
    if not run.has_checkpoint():  # `--resume` would refuse it
        path = shlex.quote(str(path_from_here(run.config_path)))
        train = f"--config {path}  # begins again: it has no checkpoint"
    after = [f"next: mlxhog plot {word}", f"      mlxhog train {train}"]
    if record.is_running:
        after = [f"next: mlxhog watch {word}"]
    return Report(facts, f"{run.name}: {record.state}", words=words, notes=after)


def _load(run: Run, model: ModelConfig | None) -> str | None:
    """Return the Python call that loads its newest checkpoint; None without one."""
    if model is None or not (run.model / "model.safetensors").exists():
        return None
    if model.hf == "class" and len(model.layout.out_norm) == 1:
        return f"transformers.AutoModelForCausalLM.from_pretrained({str(run.model)!r})"
    word = run_word(run.directory)
    xlstm = f", mlxhog convert {shlex.quote(word)} DIR --to xlstm" * model.in_xlstm
    return f"mlxhog.load({word!r}){xlstm} (transformers has no such model)"
