"""The preview of a run, without starting it: `mlxhog train --dry-run`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from mlxhog.base import verdicts
from mlxhog.base.paths import printable
from mlxhog.base.quantities import format_bytes, format_count, format_duration
from mlxhog.base.workers import GPU_BACKENDS
from mlxhog.checkpoint import run
from mlxhog.config.config import TrainConfig
from mlxhog.config.sources import specs_of, spelt_values_of
from mlxhog.data.corpora import inventory
from mlxhog.data.tokens import TokenFile
from mlxhog.errors import RunError
from mlxhog.models.families import param_count
from mlxhog.models.registry import load_architecture
from mlxhog.training import state
from mlxhog.training.plan import Plan, passes

MOST_NAMED = 10
"""Files that the text lists by name; the JSON lists all of them."""
WIDTH = 15  # of the labels
RULES = {
    "every-12th": "every-12th: every twelfth document",
    "tail": "tail: the end of each document",
    "volume": "volume: ends of long documents and whole short ones",
    "given": "given: its own files or split",
}
MEASURED = "tiny"  # the model whose speed `mlxhog doctor` measures


def facts(plan: Plan, asked: TrainConfig) -> dict[str, Any]:
    """Return the facts of a run as JSON types.

    Args:
        plan: of the run.
        asked: the options as given, before open ones were resolved.
    """
    config = plan.stored
    values, asked_values, defaults = map(spelt_values_of, (config, asked, TrainConfig()))
    specs = specs_of(TrainConfig, asked_values)
    declared = {name: spec.spell(spec.default) for name, spec in specs.items()}
    changed = {n: v for n, v in asked_values.items() if v not in (defaults.get(n), declared[n])}
    speed = tokens_per_s(plan)
    rate = None if speed is None else speed[0]
    train, val = (TokenFile.open(path) for path in (plan.data.train, plan.data.val))
    epoch_tokens = plan.epoch_tokens
    held_out_bytes = plan.data.held_out_bytes()
    read = passes(
        plan.budget,
        epoch_tokens=epoch_tokens,
        tokens_per_step=plan.mean_tokens_per_step,
        tokens_per_s=rate,
    )
    return {
        "config": values,
        "changed": changed,
        "decided": {
            name: value for name, value in values.items() if value != asked_values.get(name)
        },
        "parameters": plan.parameters,
        "arena_bytes": plan.arena_bytes,
        "worker_bytes": plan.worker_bytes,
        "free_slots": plan.free_slots,
        "workers": [
            {"backend": worker.backend, "threads": worker.threads, "kernels": kernels}
            for worker, kernels in zip(plan.workers, plan.kernels, strict=True)
        ],
        "write": plan.writers.write,
        "gpu_write": plan.writers.gpu_write,
        "emulated": plan.emulated,
        "model": {
            "name": config.model,
            "family": plan.model.title,
            "hidden_size": plan.model.hidden_size,
            "blocks": plan.model.num_hidden_layers,
            "vocab_size": plan.model.vocab_size,
        },
        "data": inventory(plan.data.corpus, config.text_key, held_out_bytes)
        | {
            "documents": train.header["documents"],
            "tokens": train.n_tokens,
            "bytes": train.header["bytes"],
            "held_out_documents": val.header["documents"],
            "held_out_tokens": val.n_tokens,
            "held_out_bytes": val.header["bytes"],
            "held_out_share": val.header["bytes"] / (train.header["bytes"] + val.header["bytes"]),
            "held_out_rule": plan.data.rule,
        },
        "tokens_per_step": plan.tokens_per_step,
        "epoch_tokens": epoch_tokens,
        "epochs": read,
        "tokens_per_s": rate,
        "tokens_per_s_from": None if speed is None else speed[1],
        "seconds": _seconds(plan, rate, read),
        "memory_bytes": plan.arena_bytes + len(plan.workers) * plan.worker_bytes,
        "memory_limit_bytes": int(plan.memory.limit_bytes),
        "checkpoint_bytes": state.n_bytes(plan),
        "checkpoints_kept": plan.keep_last,
        "token_file_bytes": sum(
            path.stat().st_size for path in plan.data.train.parent.iterdir() if path.is_file()
        ),
        "token_files": str(plan.data.train.parent),
        "notes": [*plan.notes, *plan.data.notes],
    }


def tokens_per_s(plan: Plan) -> tuple[float, str] | None:
    """Estimate the speed of a run, with the source; None if nothing was measured.

    The source is the newest run with as many parameters and the same workers, or else the speed of
    one model in `mlxhog doctor`, scaled by the number of parameters.
    """
    backends = sorted(worker.backend for worker in plan.workers)
    for one in reversed(run.list_runs(Path(plan.config.out))):
        try:
            status = one.read_status()
        except RunError:
            continue
        result = status.get("result")
        if not isinstance(result, dict) or status.get("parameters") != plan.parameters:
            continue
        rate, workers = result.get("tokens_per_s"), result.get("workers")
        if not isinstance(rate, int | float) or rate <= 0 or not isinstance(workers, list):
            continue
        if sorted(str(w.get("backend")) for w in workers if isinstance(w, dict)) == backends:
            return float(rate), f"run {one.name}, as large and with such workers"
    measured = verdicts.load().tokens_per_s
    if not all(backend in measured for backend in backends):
        return None
    size = param_count(load_architecture(MEASURED)) / plan.parameters
    on_cpu = [worker for worker in plan.workers if worker.backend not in GPU_BACKENDS]
    speeds = [measured[worker.backend] * worker.threads for worker in on_cpu]
    # All workers on a GPU share it.
    speeds.append(max((measured[name] for name in backends if name in GPU_BACKENDS), default=0.0))
    return (
        size * sum(speeds),
        f"mlxhog doctor's speed of {MEASURED}, by parameters and threads: a rough guess",
    )


def _seconds(plan: Plan, rate: float | None, read: float | None) -> float | None:
    """Seconds of training: the budget's time, or less if its steps or tokens end sooner."""
    limit = plan.budget.seconds
    if rate is None or read is None:
        return limit
    needed = read * plan.epoch_tokens / rate
    return needed if limit is None else min(limit, needed)


def text(plan: Plan, asked: TrainConfig) -> str:
    """Return the facts as text; arguments as for `facts`."""
    known = facts(plan, asked)
    model, data = known["model"], known["data"]
    size, kept = format_bytes, known["checkpoints_kept"]
    decided = ", ".join(f"{name} {value}" for name, value in known["decided"].items())
    parameters = f"{known['parameters']:,} parameters ({format_count(known['parameters'])})"
    held_out = f"{size(data['held_out_bytes'])}, {data['held_out_share']:.1%} of the text"
    limit = size(known["memory_limit_bytes"])
    lines = ["differs from the defaults:" if known["changed"] else "all options are defaults"]
    lines += [f"  {name}: {value}" for name, value in known["changed"].items()]
    lines += _table(
        ("decided here", decided),
        ("model", f"{Path(model['name']).name}, {model['family']}: {parameters}"),
        (" ", f"width {model['hidden_size']}, {model['blocks']} blocks, vocabulary "
              f"{model['vocab_size']:,}"),
        ("data", data["source"] + (f", field {data['field']}" if data["field"] else "")),
    )  # fmt: skip
    lines += _files(data)
    lines += _table(
        ("training text", f"{_n(data['documents'], 'document')}, {size(data['bytes'])}, "
                          f"{format_count(data['tokens'])} tokens"),
        ("held-out text", f"{_n(data['held_out_documents'], 'document')}, {held_out}, "
                          f"{format_count(data['held_out_tokens'])} tokens "
                          f"({RULES[data['held_out_rule']]})"),
    )  # fmt: skip
    lines += _held_out_files(data["files"])
    lines += _budget(plan, known)
    lines += _table(
        ("shared memory", f"{plan.arena_bytes:,} bytes ({size(plan.arena_bytes)})"),
        ("each worker", f"{plan.worker_bytes:,} bytes ({size(plan.worker_bytes)})"),
        ("memory", f"{size(known['memory_bytes'])} in all, of {limit} that a run may take"),
        ("disk", f"{size(known['checkpoint_bytes'])} for each of up to {kept + 1} checkpoints; "
                 f"tokens take {size(known['token_file_bytes'])}"),
        ("free slots", f"{plan.free_slots}, for workers that join (mlxhog join)"
                       if plan.free_slots else ""),
        ("steps", f"write {plan.writers.write}, gpu-write {plan.writers.gpu_write}"),
        *((f"worker {number}", f"{one['backend']}, {_n(one['threads'], 'thread')}, kernels "
                               f"{one['kernels']}")
          for number, one in enumerate(known["workers"], start=1)),
    )  # fmt: skip
    return "\n".join([*lines, *(f"note: {note}" for note in known["notes"])])


def _files(data: dict[str, Any]) -> Iterator[str]:
    """The files of a corpus: the first of those that are read, then all skipped, with reasons."""
    files, skipped = data["files"], data["skipped"]
    if files:
        size = format_bytes(sum(file["n_bytes"] for file in files))
        yield from _table(
            ("files", f"{_n(len(files), 'file')} read, {size}; {len(skipped)} skipped")
        )
    for file in files[:MOST_NAMED]:
        field = f", field {file['field']}" if file["field"] else ""
        yield f"  {printable(file['path'])}  {format_bytes(file['n_bytes'])}{field}"
    if len(files) > MOST_NAMED:
        yield f"  and {len(files) - MOST_NAMED} more"
    for one in skipped:
        yield f"  skipped {one['path']}: {one['reason']}"


def _held_out_files(files: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The files with the most held-out text."""
    some = [(one["held_out_bytes"], one["path"]) for one in files if one["held_out_bytes"]]
    if len(files) < 2 or not some:
        return
    yield from _table((" ", f"in {len(some)} of {_n(len(files), 'file')}:"))
    for n_bytes, path in sorted(some, key=itemgetter(0), reverse=True)[:MOST_NAMED]:
        yield f"  {printable(path)}  {format_bytes(n_bytes)}"
    if len(some) > MOST_NAMED:
        yield f"  and {len(some) - MOST_NAMED} more"


def _budget(plan: Plan, known: dict[str, Any]) -> Iterator[str]:
    """An epoch, the budget in epochs, and the time."""
    per_step, budget = plan.mean_tokens_per_step, plan.budget
    amounts = {"steps": budget.steps, "tokens": budget.tokens, "s": budget.seconds}
    words = ", ".join(f"{n:g} {unit}" for unit, n in amounts.items() if n is not None)
    read, rate, seconds = known["epochs"], known["tokens_per_s"], known["seconds"]
    clock = "" if seconds is None else format_duration(seconds)
    if rate is not None:
        epoch_s = format_duration(plan.epoch_tokens / rate)
        time = f"about {clock or 'no end'}; an epoch about {epoch_s} at {format_count(rate)} tok/s"
    elif clock:
        time = f"{clock}, the budget; mlxhog doctor measures speeds"
    else:
        time = (
            "unknown: no run of this size here yet, and mlxhog doctor has not measured this machine"
        )
    return _table(
        ("epoch", f"{format_count(plan.epoch_tokens)} tokens: "
                  f"{format_count(plan.epoch_tokens / per_step)} steps of {per_step:,.0f} tokens"),
        ("budget", (words or "until it is stopped")
                   + ("" if read is None else f": {read:.3g} epochs")),
        ("time", time),
        (" ", "" if rate is None else f"from {known['tokens_per_s_from']}"),
    )  # fmt: skip


def _n(count: int, word: str) -> str:
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def _table(*rows: tuple[str, str]) -> Iterator[str]:
    """A line for each row that has a text."""
    return (f"{label:{WIDTH}}{fact}" for label, fact in rows if fact)
