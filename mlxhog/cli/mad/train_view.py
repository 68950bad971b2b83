"""The output of `mlxhog mad train`: before the run, while it trains, and after it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from math import floor
from typing import Any, TextIO

from mlxhog.base.interrupts import Interrupts
from mlxhog.base.quantities import format_bytes, format_duration
from mlxhog.cli.frame import Report, titled
from mlxhog.mad.run import Callbacks, Point, RunResult
from mlxhog.mad.tasks.dataset import HELD, held_length
from mlxhog.mad.training.candidate import estimate
from mlxhog.mad.training.run_plan import RunPlan
from mlxhog.models.families import param_count
from mlxhog.models.mad.sequence import canonical
from mlxhog.report.views import StatusLine

REDRAW_S = 0.2


class RunLine(StatusLine, Callbacks):
    """Callbacks that show the progress of a run, and pass Ctrl-C on.

    Args:
        stream: where to write.
        limit: most steps of the run.
        counts_beats: every beat is a step, as with one worker.
        quiet: write nothing.
        signals: counted during the run; the first ends it after an evaluation.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        limit: int,
        counts_beats: bool,
        quiet: bool,
        signals: Interrupts,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(stream, quiet=quiet)
        self._limit = limit
        self._counts_beats, self._signals, self._clock = counts_beats, signals, clock
        self._answered = 0
        self._began_s: float | None = None
        self._drawn_s = 0.0
        self._step = 0
        self._point: Point | None = None

    def beat(self) -> None:
        """Redraw the line at most every `REDRAW_S`.

        Raises:
            KeyboardInterrupt: a signal came since the last beat.
        """
        if self._signals.count > self._answered:
            self._answered = self._signals.count
            raise KeyboardInterrupt
        now = self._clock()
        if self._began_s is None:
            self._began_s = now
        if self._counts_beats:
            self._step = min(self._limit, self._step + 1)
        if self.live and now - self._drawn_s >= REDRAW_S:
            self._drawn_s = now
            self.show(self.text())

    def point(self, point: Point) -> None:
        """Show an evaluation."""
        self._point, self._step = point, point.step
        if not self.live:
            self.tell(self.text())

    def text(self) -> str:
        """Return steps, last evaluation, pace and time to the end."""
        parts = [f"step {self._step}/{self._limit}"]
        if self._point is not None:
            point = self._point
            loss = "-" if point.loss is None else f"{point.loss:.3f}"
            parts += [f"loss {loss}", f"accuracy {point.acc_token:.3f}"]
        if rate := self._steps_per_s():
            left_s = (self._limit - self._step) / rate
            parts += [f"{rate:.1f} steps/s", f"at most {format_duration(left_s)} to go"]
        return "  ".join(parts)

    def _steps_per_s(self) -> float | None:
        """The pace to the last evaluation; before it, of the steps after the first."""
        if self._point is not None:
            return self._point.step / max(self._point.seconds, 1e-9)
        if self._began_s is None or self._step < 2:
            return None
        return (self._step - 1) / max(self._clock() - self._began_s, 1e-9)


def facts(plan: RunPlan) -> dict[str, Any]:
    """Return the definition of the run as plain values."""
    config, model = plan.asked, plan.model
    return {
        "task": config.task,
        "layers": canonical(config.layers),
        "backend": ",".join(worker.backend for worker in plan.workers),
        "threads": config.threads,
        "strategy": plan.strategy.name,
        "dim": config.dim,
        "params": param_count(model),
        "state": sum(sum(parts.values()) for parts in model.state_sizes(model.max_length)),
        "seed": config.seed,
        "settings": dict(sorted(asdict(plan.task_rows.settings).items())),
        "protocol": config.protocol.to_dict(),
        "limit": plan.limit,
        "key": config.key(),
    }


def record(plan: RunPlan, result: RunResult) -> dict[str, Any]:
    """Return the object of `--json`."""
    own = facts(plan)
    first = {name: own.pop(name) for name in ("task", "layers", "backend")}
    held = {"held_length": held_length(result.by_length)} if result.by_length else {}
    return {**first, **asdict(result), **held, **own}


def summary(own: dict[str, Any], result: RunResult, save: str | None) -> str:
    """Return the end of a run, its accuracy, and its model, in words."""
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
    if result.by_length:
        parts = [f"{floor(1000 * a) / 1000:.3f} to {end:,}" for end, a in result.by_length]
        held = f"{HELD} held to {held_length(result.by_length):,}"
        lines.append(f"by length: {', '.join(parts)}; {held}")
    lines.append(
        f"{own['layers']}: {own['params']:,} parameters, {own['state']:,} numbers of state"
    )
    if result.status == "diverged":
        lines.append("gradients were not finite; lower --lr, or clip them with --clip 1")
    elif save is not None:
        lines.append(f"saved: {save}; look at it with mlxhog mad show {save}")
    return "\n".join(lines)


def plan_report(plan: RunPlan) -> Report:
    """Return the plan of a run, with its time from a few steps."""
    own, duration = facts(plan), estimate(plan)
    own["arena_bytes"] = plan.layout.total_bytes
    own["step_s"] = None if duration is None else duration.step_s
    own["at_most_s"] = None if duration is None else duration.total_s
    time = "unknown: several workers would have to be started to measure it"
    if duration is not None:
        clock = format_duration(duration.total_s)
        time = f"at most {clock}, at {duration.step_s:.3g} s per step, measured just now"
    threads = "thread" if own["threads"] == 1 else "threads"
    rows = {
        "task": own["task"],
        "settings": ", ".join(f"{name}={value}" for name, value in own["settings"].items()),
        "layers": own["layers"],
        "parameters": f"{own['params']:,}",
        "state": f"{own['state']:,} numbers per sequence",
        "arena": format_bytes(plan.layout.total_bytes),
        "workers": f"{own['backend']}, {own['threads']} {threads} each",
        "steps": f"at most {plan.limit}, an epoch is {plan.per_epoch}",
        "time": time,
    }
    return Report(own, lambda: titled(rows))
