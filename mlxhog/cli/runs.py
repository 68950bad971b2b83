"""List runs, the newest last; `runs rm` removes some.

bits/byte are those of the validation set.

Examples:
    runs
    runs --format latex
    runs rm 20260102-101500-sotu notes --yes
"""

import shlex
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxhog.base import locks
from mlxhog.base.durable import disk_bytes
from mlxhog.base.paths import path_from_here
from mlxhog.base.quantities import format_bytes, format_count, format_duration, format_number
from mlxhog.cli.frame import CommandResult, argument, command, option, short_name, table, tabular
from mlxhog.cli.frame.flags import Json, RunsDirectory, Tabular
from mlxhog.display.metrics import format_loss, label, scored_at, share_text
from mlxhog.errors import ConfigError, RunError

if TYPE_CHECKING:
    from mlxhog.checkpoint.run import Run

ADVICE = {
    "interrupted": "mlxhog train --resume RUN continues it",
    "early": "ended before its first checkpoint: mlxhog show RUN says what to do",
    **dict.fromkeys(("diverged", "failed", "unsaved", "damaged"), "mlxhog show RUN says why"),
}


@command(
    otherwise="; runs lists all runs: `mlxhog runs rm RUN` removes one, `mlxhog show RUN` "
    "describes one"
)
def run(config: RunsDirectory, how: Tabular) -> CommandResult:
    from mlxhog.checkpoint.run import list_runs

    every = map(_fields, list_runs(Path(config.runs_dir)))
    records = [each for each in every if "status" in each]  # others were removed meanwhile
    rows = list(map(_row, records))
    statuses = dict.fromkeys(row["status"].partition(",")[0] for row in rows)
    notes = [f"{status}: {ADVICE[status]}" for status in statuses if status in ADVICE]
    if not rows:
        notes = [f"no runs in {config.runs_dir}; `mlxhog train` makes one"]
    return tabular(records, table("", rows, notes), how.format, one_per_line=True)


def _fields(run: "Run") -> dict[str, Any]:
    """Return the fields of a run.json, and from other files those that it lacks meanwhile."""
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


def _row(payload: Mapping[str, Any]) -> dict[str, str]:
    from mlxhog.checkpoint.new_run import default_name

    def shown(name: str, form: Callable[[float], str]) -> str:
        value = payload.get(name)
        return "-" if value is None else form(value)

    status = payload["status"] + on_host(payload)
    is_early = payload["status"] == "interrupted" and not payload["resumable"]
    metal = label(*(payload.get(name) or "" for name in ("gpu_write", "kernels")))
    data = payload["data"] or "-"
    early = scored_at(payload["val_step"], payload["steps"])
    return {
        "run": payload["name"],
        "status": ", ".join(filter(None, ["early" if is_early else status, metal])),
        "model": payload["model"],
        "data": default_name(data) if "/" in data else data,
        "params": shown("parameters", format_count),
        "steps": shown("steps", format_number),
        "time": shown("seconds", format_duration),
        "bits/byte": shown("bits_per_byte", lambda bits: f"{format_loss(bits)}{early}"),
        "of text": shown("share", share_text),
    }


def on_host(status: Mapping[str, Any]) -> str:
    """Name the host that trains a run, if it is another one."""
    return f" on {status['host']}" if status.get("host") else ""


@dataclass(frozen=True, kw_only=True)
class _Remove(RunsDirectory, Json):
    runs: tuple[str, ...] = argument(
        "RUN...", "a path, or a run's whole name, with date and time or without"
    )
    yes: bool = option(False, "remove them for good; without it they are only listed")


@command(writes=True)
def rm(config: _Remove) -> CommandResult:
    """Remove runs with all their files.

    A run that trains is refused. If a name is wrong, no run is removed; no run is removed in part.

    Examples:
        runs rm sotu notes
        runs rm 20260102-101500-sotu --yes
    """
    from mlxhog.checkpoint.run import find, remove

    named = [find(name, Path(config.runs_dir), whole=True) for name in config.runs]
    # A run by two paths is one; a link to a run is not the run, and is refused.
    chosen = {each.directory.parent.resolve() / each.name: each for each in named}
    for each in chosen.values():
        if (holder := each.holder()) is not None:
            where = f" on {holder.elsewhere}" if holder.elsewhere else ""
            word = shlex.quote(short_name(each.directory))
            raise RunError(
                f"the run {each.name} trains now{where}; end it first{where and ', there'}: mlxhog "
                f"stop {word}{locks.if_dead(holder)}"
            )
    n_called = Counter(each.name for each in chosen.values())
    sizes = {path: disk_bytes(path) for path in chosen}
    names = [
        f"{path.name if n_called[path.name] == 1 else path_from_here(path)} ({format_bytes(size)})"
        for path, size in sizes.items()
    ]
    if not config.yes:
        raise ConfigError(f"would remove {', '.join(names)}; run it again with --yes")
    for each in chosen.values():
        remove(each)
    removed = [str(each.directory) for each in chosen.values()]
    payload = {"removed": removed, "bytes": sum(sizes.values())}
    return CommandResult(payload, [f"removed {name}" for name in names])
