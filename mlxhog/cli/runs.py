"""`mlxhog runs`, `runs rm` and `show`: what runs were; `join`, `leave` and `stop`: requests to one.

A request comes from another terminal of the same user.
"""

import shlex
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxhog.base import locks
from mlxhog.base.durable import disk_bytes
from mlxhog.base.paths import path_from_here
from mlxhog.base.quantities import format_bytes, format_count, format_duration, format_number
from mlxhog.cli.flags import Json, OneRun, RunsDirectory, Tabular
from mlxhog.cli.frame import Report, command, run_word, table, tabular
from mlxhog.config.options import argument, option, switch
from mlxhog.display.metrics import format_loss, label, scored_at, share_text
from mlxhog.errors import ConfigError, RunError

if TYPE_CHECKING:
    from mlxhog.checkpoint.run import Run
    from mlxhog.models.families import ModelConfig

ADVICE = {
    "interrupted": "mlxhog train --resume RUN continues it",
    "early": "ended before its first checkpoint: mlxhog show RUN says what to do",
    **dict.fromkeys(("diverged", "failed", "unsaved", "damaged"), "mlxhog show RUN says why"),
}


@command(
    "runs",
    otherwise="; runs lists all runs: `mlxhog runs rm RUN` removes one, `mlxhog show RUN` "
    "describes one",
)
def run(config: RunsDirectory, how: Tabular) -> Report:
    """List runs, the newest last.

    bits/byte are those of validation text. `mlxhog runs rm RUN...` removes runs.

    Examples:
        runs
        runs --format latex
        runs rm 20260102-101500-sotu notes --yes
    """
    from mlxhog.checkpoint.run import list_runs

    records = [_facts(each) for each in list_runs(Path(config.runs_dir))]
    if not records:
        text = f"no runs in {config.runs_dir}; `mlxhog train` makes one"
        if how.format != "text":
            return Report(records, (), remarks=[text], one_per_line=True)
        return Report(records, text, one_per_line=True)
    rows = list(map(_row, records))
    statuses = dict.fromkeys(row["status"].partition(",")[0] for row in rows)
    notes = [f"{status}: {ADVICE[status]}" for status in statuses if status in ADVICE]
    return tabular(records, table("", rows, notes), how.format, one_per_line=True)


def _facts(run: "Run") -> dict[str, Any]:
    """Return the facts of a run.json, and of other files what it lacks before the run is done."""
    from mlxhog.config.sources import read_yaml
    from mlxhog.display.history import newest_line

    status, options = run.read_status(), {}
    if "model" not in status:
        with suppress(ConfigError):
            options = {name: value for name, (value, _) in read_yaml(run.config_path).items()}
    reached = status.get("result") or newest_line(run.metrics_path) or {}
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
        "share": (status.get("validation") or {}).get("share"),
    }


def _row(facts: Mapping[str, Any]) -> dict[str, str]:
    from mlxhog.checkpoint.run import default_name

    def spelt(name: str, spell: Callable[[float], str]) -> str:
        value = facts.get(name)
        return "-" if value is None else spell(value)

    status = facts["status"] + _where(facts)
    is_early = facts["status"] == "interrupted" and not facts["resumable"]
    metal = label(*(facts.get(name) or "" for name in ("gpu_write", "kernels")))
    data = facts["data"] or "-"
    early = scored_at(facts["val_step"], facts["steps"])
    return {
        "run": facts["name"],
        "status": ", ".join(filter(None, ["early" if is_early else status, metal])),
        "model": facts["model"],
        "data": default_name(data) if "/" in data else data,
        "params": spelt("parameters", format_count),
        "steps": spelt("steps", format_number),
        "time": spelt("seconds", format_duration),
        "bits/byte": spelt("bits_per_byte", lambda bits: f"{format_loss(bits)}{early}"),
        "of text": spelt("share", share_text),
    }


def _where(status: Mapping[str, Any]) -> str:
    """Name the host that trains a run, if it is another one."""
    return f" on {status['host']}" if status.get("host") else ""


@dataclass(frozen=True, kw_only=True)
class _Remove(RunsDirectory, Json):
    runs: tuple[str, ...] = argument(
        "RUN...", "a path, or a run's whole name, with date and time or without"
    )
    yes: bool = switch("remove them for good; without it they are only listed")


@command("runs rm", writes=True)
def remove(config: _Remove) -> Report:
    """Remove runs with all their files.

    A run that trains is refused. If a name is wrong, no run is removed; no run is removed in part.

    Examples:
        runs rm sotu notes
        runs rm 20260102-101500-sotu --yes
    """
    from mlxhog.checkpoint.run import find, remove

    named = [find(name, Path(config.runs_dir), whole=True) for name in config.runs]
    chosen = {each.directory: each for each in named}
    for each in chosen.values():
        if (holder := each.holder()) is not None:
            where = f" on {holder.elsewhere}" if holder.elsewhere else ""
            word = shlex.quote(run_word(each.directory))
            raise RunError(
                f"the run {each.name} trains now{where}; end it first{where and ', there'}: mlxhog "
                f"stop {word}{locks.if_dead(holder)}"
            )
    sizes = {each.name: disk_bytes(each.directory) for each in chosen.values()}
    names = [f"{name} ({format_bytes(n_bytes)})" for name, n_bytes in sizes.items()]
    if not config.yes:
        raise ConfigError(f"would remove {', '.join(names)} for good; add --yes")
    for each in chosen.values():
        remove(each)
    facts = {"removed": [*map(str, chosen)], "bytes": sum(sizes.values())}
    return Report(facts, [f"removed {name}" for name in names])


_LAST = (
    "step", "tokens", "elapsed_s", "loss", "train_bits_per_byte", "val_bits_per_byte",
    "final_bits_per_byte",
)  # fmt: skip


@command("show")
def show(config: OneRun) -> Report:
    """Show a run: model, data, options that differ from the defaults, workers, last numbers.

    Also the steps at which it was resumed, its checkpoints, and how to load them.

    Examples:
        show latest
        show sotu --json
    """
    from mlxhog.checkpoint import manifest
    from mlxhog.checkpoint.formats.opening import read_config
    from mlxhog.display.metrics import format_parts
    from mlxhog.display.record import RunRecord
    from mlxhog.models import families

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
        "workers": [one for _, one in sorted(record.history.backends.items())],
        "resumed": status.get("resumed") or [],
        "commands": [
            {"steps": steps, "command": line} for steps, line in record.history_of_commands()
        ],
        "checkpoints": [*names[:-1], *(f"{name} (latest)" for name in names[-1:])],
        "validation": record.status.get("validation"),
        "last": {name: record.last(name) for name in _LAST}
        | {"val_step": record.progress.val_step},
        "baselines": dict(record.progress.baselines),
        "first_step_s": record.progress.first_step_s,
        "shares": record.shares(),
        "load": _load(run, model),
        "notes": record.notes,
    }
    spelled, (whole, *each) = record.options_in_words(), facts["shares"].items()
    words = {
        **{name: facts[name] for name in ("model", "family", "data", "tokenizer")},
        **{k: text for k, text in record.facts().items() if k != "status" and text != "-"},
        "a step": format_parts(whole[1]),
        **{name: format_parts(shares) for name, shares in each},
        "resumed at": facts["resumed"],
        **{one["steps"]: one["command"] for one in facts["commands"]},
        "options": [f"{name} {spelled[name]}" for name in facts["options"]] or "the defaults",
        "checkpoints": facts["checkpoints"] or "none yet",
        "load": facts["load"] and f"mlxhog.load({run_word(run.directory)!r}), {facts['load']}",
        "note": record.notes,
    }
    word = shlex.quote(run_word(run.directory))
    train = f"--resume {word} --time 10m"
    if not run.has_checkpoint():  # `--resume` would refuse it
        path = shlex.quote(str(path_from_here(run.config_path)))
        train = f"--config {path}  # begins again: it has no checkpoint"
    after = [f"next: mlxhog plot {word}", f"      mlxhog train {train}"]
    if record.is_running:
        after = [f"next: mlxhog watch {word}"]
    return Report(facts, [f"{run.name}: {record.state}{_where(status)}", words, *after])


def _load(run: "Run", model: "ModelConfig | None") -> str | None:
    if model is None or not (run.model / "model.safetensors").exists():
        return None
    if model.in_transformers and len(model.layout.out_norm) == 1:
        return f"transformers.AutoModelForCausalLM.from_pretrained({str(run.model)!r})"
    word = run_word(run.directory)
    return f"mlxhog.load({word!r}), mlxhog convert {shlex.quote(word)} DIR --format hf"


@dataclass(frozen=True, kw_only=True)
class _Join(OneRun):
    workers: str = option("1", "a number, or backends such as torch:cpu*2")
    threads: int | None = option(
        None, "threads of each; auto is the run's, or shares the cores", low=1, none="auto"
    )


@command("join", writes=True)
def join(config: _Join) -> Report:
    """Add workers to a run while it trains.

    They begin with the optimizer state of one of its workers. The run needs free slots (mlxhog
    train --max-workers) and strategy hogwild.

    Examples:
        join latest --workers torch:cpu
        join latest --workers mlx:cpu,torch:cpu --threads 1
    """
    return _ask(config, "join", workers=config.workers, threads=config.threads)


@dataclass(frozen=True, kw_only=True)
class _Leave(OneRun):
    worker: int | None = argument("[WORKER]", "its number in the table of workers", low=1)


@command("leave", writes=True)
def leave(config: _Leave) -> Report:
    """Let a worker of a run finish its step and leave, by default the last that joined.

    Examples:
        leave latest
        leave latest 3
    """
    return _ask(config, "leave", **{} if config.worker is None else {"worker": config.worker})


@command("stop", writes=True)
def stop(config: OneRun) -> Report:
    """End a run as Ctrl-C does: it finishes its step and saves a checkpoint.

    Examples:
        stop latest
        stop 20260102-101500-sotu --json
    """
    return _ask(config, "stop")


def _ask(config: OneRun, request: str, **fields: Any) -> Report:
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
    return Report({"run": str(run.directory), **answer}, f"{run.name}: {answer['message']}")
