"""Show a run: model, data, options, workers, checkpoints, last numbers.

Options are those that differ from the defaults. It says also at which steps the run was resumed,
and how to load its checkpoints.

Examples:
    show latest
    show sotu --json
"""

import shlex
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from mlxhog.base.paths import path_from_here
from mlxhog.cli.frame import CommandResult, OneRun, command, short_name
from mlxhog.cli.runs import on_host
from mlxhog.errors import ConfigError

if TYPE_CHECKING:
    from mlxhog.checkpoint.run import Run
    from mlxhog.models.families import ModelConfig

_LAST = ("step", "tokens", "elapsed_s", "loss", "train_bits_per_byte", "val_bits_per_byte")
_EVALUATED = ("final_bits_per_byte", "val_step")  # of the newest evaluation


@command()
def run(config: OneRun) -> CommandResult:
    from mlxhog.checkpoint import manifest
    from mlxhog.checkpoint.formats.opening import read_config
    from mlxhog.display.metrics import format_parts
    from mlxhog.display.record import RunRecord, resume_flags
    from mlxhog.models import families

    record = RunRecord(config.find(config.run))
    run, status, model = record.run, record.status, None
    with suppress(ConfigError):  # it may not be written yet
        model = families.read(read_config(run.architecture / "config.json"))
    names = [path.name for path in manifest.by_age(run.checkpoints)]
    payload: dict[str, Any] = {
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
        "validation": status.get("validation"),
        "last": {name: record.last(name) for name in _LAST}
        | {name: getattr(record.progress, name) for name in _EVALUATED},
        "baselines": dict(record.progress.baselines),
        "first_step_s": record.progress.first_step_s,
        "shares": record.shares(),
        "load": _load(run, model),
        "notes": record.notes,
    }
    texts, (whole, *each) = record.options_in_words(), payload["shares"].items()
    rows = {
        **{name: payload[name] for name in ("model", "family", "data", "tokenizer")},
        **{k: text for k, text in record.facts().items() if k != "status" and text != "-"},
        "a step": format_parts(whole[1]),
        **{name: format_parts(shares) for name, shares in each},
        "resumed at": payload["resumed"],
        **{one["steps"]: one["command"] for one in payload["commands"]},
        "options": [f"{name} {texts[name]}" for name in payload["options"]] or "the defaults",
        "checkpoints": payload["checkpoints"] or "none yet",
        "load": payload["load"]
        and f"mlxhog.load({short_name(run.directory)!r}), {payload['load']}",
        "note": record.notes,
    }
    word = shlex.quote(short_name(run.directory))
    more = resume_flags(run, is_done=record.state == "done")
    train, again = f"--resume {word}{more}", list[str]()
    if not run.has_checkpoint():  # `--resume` would refuse it
        path = shlex.quote(str(path_from_here(run.config_path)))
        train = f"--config {path}"
        again = ["it has no checkpoint, so mlxhog train begins again"]
    after = [*again, f"next: mlxhog plot {word}", f"      mlxhog train {train}"]
    if record.is_running:
        after = [f"next: mlxhog watch {word}"]
    return CommandResult(payload, [f"{run.name}: {record.state}{on_host(status)}", rows, *after])


def _load(run: "Run", model: "ModelConfig | None") -> str | None:
    """Return how transformers loads a run, if it has a checkpoint; else how it is converted."""
    from mlxhog.checkpoint.formats import peft

    if model is None or not run.model.exists():
        return None
    is_adapter = (run.model / peft.CONFIG).exists()
    if not is_adapter and model.in_transformers and len(model.layout.out_norm) == 1:
        return f"transformers.AutoModelForCausalLM.from_pretrained({str(run.model)!r})"
    word, merge = shlex.quote(short_name(run.directory)), "--merge " * is_adapter
    return f"mlxhog convert {word} DIR {merge}--format hf"
