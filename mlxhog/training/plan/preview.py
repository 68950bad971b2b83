"""The preview of a run, without starting it: `mlxhog train --dry-run`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlxhog.base import capabilities, machine
from mlxhog.base.workers import GPU_BACKENDS
from mlxhog.config.config import TrainConfig
from mlxhog.config.sources import specs_of, yaml_values_of
from mlxhog.data import validation_set
from mlxhog.models.families import param_count
from mlxhog.models.registry import load_architecture
from mlxhog.training.plan import roofline, sizes
from mlxhog.training.plan.batch_size import alike
from mlxhog.training.plan.values import TextPlan, epochs_read

MAX_NAMED = 10
"""Items of a list, such as files, that the text names; the JSON has all of them."""
MEASURED = "tiny"  # the model whose speed `mlxhog doctor` measures


def facts(plan: TextPlan, asked: TrainConfig) -> dict[str, Any]:
    """Return the facts of a run as JSON types."""
    config = plan.stored
    values, asked_values, defaults = map(yaml_values_of, (config, asked, TrainConfig()))
    specs = specs_of(TrainConfig, asked_values)
    declared = {name: spec.to_yaml_value(spec.default) for name, spec in specs.items()}
    changed = {n: v for n, v in asked_values.items() if v not in (defaults.get(n), declared[n])}
    speed = tokens_per_s(plan)
    rate, read = None if speed is None else speed[0], epochs(plan)
    train, val = plan.data.train, plan.data.val
    budget, epoch_tokens = plan.budget, plan.epoch_tokens
    is_scored = config.eval_every.on and config.follow is None
    counts_bytes, counts_s = validation_set.ngram_cost(train) if is_scored else (0, 0.0)
    checkpoint_bytes, kept = plan.checkpoint_bytes, config.keep_last + config.keeps_best
    seconds = budget.seconds
    if rate is not None and read is not None:  # its steps or tokens may end sooner
        needed = read * epoch_tokens / rate
        seconds = needed if seconds is None else min(seconds, needed)
    warnings = sizes.overfitting(plan, read), sizes.decay(plan, read)
    of_adapter = {
        "trained_parameters": plan.trained_parameters,
        "base_bytes": plan.memory.base_bytes,
    }
    return {
        "config": values,
        "changed": changed,
        "decided": {
            name: value for name, value in values.items() if value != asked_values.get(name)
        },
        "parameters": plan.parameters,
        "parameters_per_token": plan.parameters / max(train.n_tokens, 1),
        **({} if plan.base is None else of_adapter),
        "arena_bytes": plan.arena_bytes,
        "worker_bytes": plan.worker_bytes,
        "free_slots": plan.free_slots,
        "workers": [
            {"backend": worker.backend, "threads": worker.threads, "kernels": kernels}
            for worker, kernels in zip(plan.workers, plan.kernels, strict=True)
        ],
        "recompute": plan.config.recompute,
        "recompute_from": plan.recompute_from,
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
        "data": plan.data.inventory()
        | {
            "documents": train.header["documents"],
            "tokens": train.n_tokens,
            "bytes": train.header["bytes"],
            "val_documents": val.header["documents"],
            "val_tokens": val.n_tokens,
            "val_bytes": val.header["bytes"],
            "val_share": val.header["bytes"] / (train.header["bytes"] + val.header["bytes"]),
            "val_split": plan.data.rule,
        },
        "tokens_per_step": plan.strategy.tokens_per_step,
        "epoch_tokens": epoch_tokens,
        "epochs": read,
        "tokens_per_s": rate,
        "tokens_per_s_from": None if speed is None else speed[1],
        **roofline.expected(plan, machine.here().chip),
        "seconds": seconds,
        "ngram_baseline_bytes": counts_bytes,
        "ngram_baseline_seconds": counts_s,
        "memory_bytes": plan.arena_bytes
        + plan.memory.base_bytes
        + len(plan.workers) * plan.worker_bytes
        + counts_bytes,
        "memory_limit_bytes": int(plan.memory.limit_bytes),
        "checkpoint_bytes": checkpoint_bytes,
        "checkpoints_kept": kept,
        "checkpoints_kept_bytes": kept * checkpoint_bytes,
        "token_file_bytes": sum(
            path.stat().st_size for path in train.path.parent.iterdir() if path.is_file()
        ),
        "token_files": str(train.path.parent),
        "better_preset": sizes.preset(plan, read),
        "notes": [*plan.notes, *plan.data.notes, *filter(None, warnings)],
    }


def epochs(plan: TextPlan) -> float | None:
    """Estimate how often a run reads its text; None if nothing was measured."""
    speed, per_step = tokens_per_s(plan), plan.mean_tokens_per_step
    return epochs_read(
        plan.budget, epoch_tokens=plan.epoch_tokens, tokens_per_step=per_step,
        tokens_per_s=None if speed is None else speed[0],
    )  # fmt: skip


def tokens_per_s(plan: TextPlan) -> tuple[float, str] | None:
    """Estimate the speed of a run, with the source; None if nothing was measured.

    The source is the newest run with as many parameters and the same workers, or else the speed of
    one model in `mlxhog doctor`, scaled by the number of parameters.
    """
    for name, result in alike(plan):
        if rate := result["tokens_per_s"]:
            return float(rate), f"run {name}, as large and with such workers"
    backends = [worker.backend for worker in plan.workers]
    measured = capabilities.load().tokens_per_s
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


def text(known: Mapping[str, Any]) -> list[Any]:
    """Return facts for people, as the parts of a `Report`: rows, tables of files, and notes."""
    facts, data = dict(known), dict(known["data"])
    del facts["config"], facts["data"]  # what was changed and what was decided say it
    if facts["tokens_per_s"] is None:
        facts["tokens_per_s_from"] = (
            "unknown: no run of this size here yet, and mlxhog doctor has not measured this machine"
        )
    notes, files, skipped = facts.pop("notes"), data.pop("files"), data.pop("skipped")
    parts: list[Any] = [facts | data]
    for name, items in (
        ("files", sorted(files, key=lambda file: -file["val_bytes"])),
        ("skipped", skipped),
    ):
        parts += [f"{name}: {len(items)}", items[:MAX_NAMED]] if items else []
        parts += [f"and {len(items) - MAX_NAMED} more"] * (len(items) > MAX_NAMED)
    # The table has them.
    return [*parts, *(note for note in notes if "; --dry-run lists them" not in note)]
