"""What `mlxhog mad train` says of a run: before it, and after it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from mlxhog.config.quantities import format_bytes, format_clock
from mlxhog.files import plain_json
from mlxhog.mad.result import RunResult
from mlxhog.mad.training.estimate import estimate
from mlxhog.mad.training.run_plan import RunPlan
from mlxhog.models.mad import param_count, state_sizes
from mlxhog.models.mad.sequence import canonical


def facts(plan: RunPlan) -> dict[str, Any]:
    """What the run is, in plain values."""
    config, model = plan.config, plan.model
    return {
        "task": config.task,
        "layers": canonical(config.layers),
        "backend": ",".join(worker.backend for worker in plan.workers),
        "threads": config.threads,
        "strategy": plan.options.strategy,
        "dim": config.dim,
        "params": param_count(model),
        "state": sum(sum(parts.values()) for parts in state_sizes(model, model.max_length)),
        "seed": config.seed,
        "settings": dict(plan.drawn.settings),
        "protocol": asdict(config.protocol),
        "limit": plan.limit,
        "key": config.key(),
    }


def record(plan: RunPlan, result: RunResult) -> dict[str, Any]:
    """Return what `--json` prints."""
    own = facts(plan)
    first = {name: own.pop(name) for name in ("task", "layers", "backend")}
    return {**first, **result.to_dict(), **own}


def summary(plan: RunPlan, result: RunResult, save: str | None) -> str:
    """Say how a run ended, how good it was, and what was trained."""
    own = facts(plan)
    best = "" if result.ceiling >= 1 else f", where {result.ceiling:.4f} is possible"
    lines = [
        f"{result.status}: {result.steps} steps in {result.seconds:.1f} s on {own['backend']}",
        f"{own['task']}: accuracy {result.acc_token:.4f} of tokens{best}, "
        f"{result.acc_macro:.4f} mean over classes",
    ]
    if result.val_token is not None:
        lines.append(
            f"validation rows: {result.val_token:.4f} of tokens, "
            f"{result.val_macro:.4f} mean over classes"
        )
    lines.append(
        f"{own['layers']}: {own['params']:,} parameters, {own['state']:,} numbers of state"
    )
    if result.status == "diverged":
        lines.append("gradients were not finite; lower --lr, or clip them with --clip 1")
    elif save is not None:
        lines.append(f"saved: {save}; look at it with mlxhog mad show {save}")
    return "\n".join(lines)


def print_plan(plan: RunPlan, *, as_json: bool) -> None:
    """Print what would run, with the time that its first steps promise."""
    own, found = facts(plan), estimate(plan)
    own["arena_bytes"] = plan.layout.total_bytes
    own["step_s"] = None if found is None else found.step_s
    own["at_most_s"] = None if found is None else found.total_s
    if as_json:
        print(plain_json.dumps(own).decode())
        return
    print(f"task        {own['task']}")
    print("settings    " + ", ".join(f"{name}={value}" for name, value in own["settings"].items()))
    print(f"layers      {own['layers']}")
    print(f"parameters  {own['params']:,}")
    print(f"state       {own['state']:,} numbers per sequence")
    print(f"arena       {format_bytes(plan.layout.total_bytes)}")
    threads = "thread" if own["threads"] == 1 else "threads"
    print(f"workers     {own['backend']}, {own['threads']} {threads} each")
    print(f"steps       at most {plan.limit}, an epoch is {plan.per_epoch}")
    if found is None:
        print("time        unknown: several workers would have to be started to measure it")
    else:
        clock = format_clock(found.total_s)
        print(f"time        at most {clock}, at {found.step_s:.3g} s per step, measured just now")
