"""The first lines of a run: what is going to happen, and where."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

from mlxhog.checkpoint.run import Run
from mlxhog.config.quantities import format_bytes, format_count
from mlxhog.data.tokens import TokenFile
from mlxhog.report.metrics import EMULATED, kernels_used, label
from mlxhog.training.plan import Plan


def opening(plan: Plan, run: Run) -> str:
    """Return two lines: the machine's part (workers, memory, model), and the data's."""
    config = plan.config
    workers = ", ".join(
        f"{worker.backend} ({worker.threads} thread{'s' * (worker.threads > 1)})"
        for worker in plan.workers
    )
    train, val = (TokenFile.open(path).n_tokens for path in (plan.data.train, plan.data.val))
    model = Path(config.model).name
    return (
        f"mlxhog {version('mlxhog')}  {config.strategy}  {len(plan.workers)} "
        f"worker{'s' * (len(plan.workers) > 1)}: {workers}  {_metal(plan)}"
        f"arena {format_bytes(plan.arena_bytes)} shared  "
        f"model {model} {format_count(plan.parameters)} parameters\n"
        f"data {config.data}: {format_count(train)} training and {format_count(val)} held-out "
        f"tokens ({config.tokenizer})  run {run.directory}"
    )


def _metal(plan: Plan) -> str:
    """Which part Metal kernels have in the run, where they have one."""
    shown = label(plan.writers.gpu_write, kernels_used(plan.kernels))
    if EMULATED in shown:
        shown += ": Metal source on the CPU, a test"
    return f"{shown}  " if shown else ""


def default_name(data: str) -> str:
    """Name a run after its corpus: `sotu`, or the last plain part of a path, without its ending.

    >>> default_name("notes/*.txt")
    'notes'
    """
    for part in reversed(Path(data).parts):
        name = re.sub(r"[^A-Za-z0-9_-]+", "-", part if "*" in part else Path(part).stem).strip("-")
        if name and "*" not in part:
            return name[:40]
    return "run"
