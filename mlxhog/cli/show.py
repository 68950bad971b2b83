"""`mlxhog show`: a run in a dozen lines."""

import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxhog.base.paths import path_from_here
from mlxhog.cli.flags import RunFolder, run_argument
from mlxhog.cli.frame import Report, command, run_word
from mlxhog.config.options import switch
from mlxhog.data import encodings
from mlxhog.errors import ConfigError
from mlxhog.report.metrics import number
from mlxhog.report.shares import in_words
from mlxhog.report.streams import WIDTH, in_columns

if TYPE_CHECKING:
    from mlxhog.checkpoint.run import Run
    from mlxhog.models.families import ModelConfig
    from mlxhog.report.record import RunRecord

ABOUT = """\
Show a run: model, data, options that differ from the defaults, workers, steps at which it was
resumed, its checkpoints, how to load them, and its last numbers."""
EXAMPLES = ("show latest", "show sotu --json")
_LAST = (
    "step", "tokens", "elapsed_s", "loss", "train_bits_per_byte", "val_bits_per_byte",
    "final_bits_per_byte",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ShowConfig(RunFolder):
    """Options of `mlxhog show`."""

    run: str = run_argument()
    json: bool = switch("one JSON object instead of lines")


@command("show", ABOUT, EXAMPLES, ShowConfig)
def run(config: ShowConfig) -> Report:
    """Show a run."""
    from mlxhog.checkpoint.run import find
    from mlxhog.report.record import RunRecord

    record = RunRecord(find(config.run, Path(config.out)))
    facts = _facts(record)
    width = shutil.get_terminal_size((WIDTH, 0)).columns
    return Report(facts, lambda: "\n".join(_lines(record, facts, width)))


def _facts(record: "RunRecord") -> dict[str, Any]:
    """Return the facts of a run as JSON types."""
    from mlxhog.checkpoint import manifest
    from mlxhog.report.metrics import sound_marks

    run, status, model = record.run, record.status, _architecture(record.run)
    resumed = status.get("resumed")
    names = [path.name for path in manifest.by_age(run.checkpoints)]
    return {
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


def _lines(record: "RunRecord", facts: Mapping[str, Any], width: int) -> list[str]:
    words, spelled = record.facts(), record.options_in_words()
    text, larger = record.evaluated_text, record.larger_score
    bits = f"{number(record.last('val_bits_per_byte'))} bits per byte{record.scored_at}"
    whole, *each = facts["shares"].items()
    name = run_word(record.run.directory)
    load = str(facts["load"] or "")
    in_hf = f"AutoModelForCausalLM.from_pretrained of {path_from_here(record.run.model)}"
    if not load.startswith("transformers."):
        in_hf = "transformers has no such model"
    parts = {
        "model": [
            Path(str(facts["model"])).name if facts["model"] else "-",
            facts["family"] or "unknown family",
            f"{words['parameters']} parameters",
        ],
        "data": [encodings.words(facts["data"] or "-"), f"tokenizer {facts['tokenizer'] or '-'}"],
        "workers": [words["workers"], f"strategy {record.strategy}" * bool(facts["strategy"])],
        "trained": [
            f"{words['steps']} steps",
            f"{words['tokens']} tokens in {words['training time']} ({words['tokens/s']} tok/s)",
            words["first step after"] != "-" and f"first step after {words['first step after']}",
            (began := facts["created_s"])
            and f"begun {datetime.fromtimestamp(began):%Y-%m-%d %H:%M}",
        ],
        "a step": in_words(whole[1]),
        **{name: in_words(shares) for name, shares in each},
        "resumed": [f"at step {step:,}" for step in facts["resumed"]],
        "held-out": [
            bits + (f" ({text})" if text else ""),
            larger and f"{number(larger[0])} ({larger[1]})",
            f"training {words['train bits per byte']}",
            record.counts_text,
            str(record.part.get("seen") or ""),
        ],
        "options": [f"{one} {spelled[one]}" for one in facts["options"]] or ["the defaults"],
        "checkpoints": facts["checkpoints"] or ["none yet"],
        "load": [f"mlxhog.load({name!r})", in_hf] if load else [],
        "error": [words.get("error")],
    }
    shown = [
        line
        for title, every in parts.items()
        if (texts := [one for one in every if one])
        for line in in_columns(f"  {title:11}  ", texts, width)
    ]
    notes = [line for note in record.notes for line in in_columns("  note: ", [note], width)]
    return [f"{record.run.name}: {record.state}", *shown, *notes, *_next(record)]


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
    from mlxhog.models.mad.config import MADConfig
    from mlxhog.models.xlstm_large import XLSTMLargeConfig

    if model is None or not (run.model / "model.safetensors").exists():
        return None
    if isinstance(model, XLSTMLargeConfig) and model.add_out_norm and not model.out_norm_bias:
        return f"transformers.AutoModelForCausalLM.from_pretrained({str(run.model)!r})"
    word = run_word(run.directory)
    xlstm = f", mlxhog convert {shlex.quote(word)} DIR --to xlstm"
    theirs = "" if isinstance(model, MADConfig) else xlstm
    return f"mlxhog.load({word!r}){theirs} (transformers has no such model)"
