"""The reports of a run: its first lines, its progress, its metrics and its run.json."""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxhog.arena import Arena
from mlxhog.arena.process import monotonic_ns
from mlxhog.arena.requests import socket_path
from mlxhog.base import float32, machine
from mlxhog.base.paths import path_from_here, quoted_paths
from mlxhog.base.quantities import format_bytes, format_count
from mlxhog.checkpoint import hub
from mlxhog.checkpoint.run import Run, run_of
from mlxhog.config.sources import yaml_values_of
from mlxhog.config.train_options import EMULATED
from mlxhog.data import corpora, validation_set
from mlxhog.display.metrics import label
from mlxhog.display.record import changed
from mlxhog.display.views import Observer
from mlxhog.errors import EnvironmentLacks, RunError
from mlxhog.models import registry
from mlxhog.progress import EVALUATED, PhaseStatus, Progress, Result
from mlxhog.training.plan.values import TextPlan
from mlxhog.training.supervisor import run_folder
from mlxhog.training.supervisor.monitor import Monitor

if TYPE_CHECKING:
    from mlxhog.display.trackers import Trackers

REPORT_S = 0.5
METRICS_S = 2.0
TIMES_S = 30.0


class Reporter:
    """Passes the state of a run from its monitor to the observer and the run's files."""

    def __init__(
        self, plan: TextPlan, run: Run, arena: Arena, observer: Observer[Progress] | None
    ) -> None:
        self.plan, self.run, self.observer = plan, run, observer
        state = Progress(
            strategy=plan.strategy.name,
            gpu_write=plan.writers.gpu_write,
            kernels=plan.kernels_used,
            baselines=plan.data.baselines,
            val_share=plan.validation.share if plan.config.eval_every.on else None,
        )
        self.monitor = Monitor(arena, plan.workers, plan.budget, state)
        self.sample: str | None = None
        self._trackers: Trackers | None = None
        self._written: dict[str, Any] = {}  # evaluation that stands in metrics.jsonl
        self._tracked: dict[str, Any] = {}  # that trackers have
        self._reported: set[str] = set()
        self._next_s = dict[str, float]()  # by report
        # What a user may remove while it trains: run.json, the installed package.
        earlier, self._version = run.read_status(), version("mlxhog")
        earlier.setdefault("first_name", run.directory.name)  # trackers know the run by it
        birth = ("created_ns", "order", "first_name")
        self._birth = {name: value for name, value in earlier.items() if name in birth}
        self._text = validation_set.beginning(plan.data.val, plan.data.tokenizer)
        self._resumed: list[int] = []
        first = plan.budget.steps_before
        kept = [one for one in earlier.get("commands", []) if one["from_step"] < first]
        kept[-1:] = [{**one, "to_step": first} for one in kept[-1:]]
        self.commands = [*kept, {"from_step": first, "options": _options(plan)}]
        if plan.resumption is not None:
            self._resumed = sorted({*earlier.get("resumed", []), plan.budget.steps_before})
        self._added = list(earlier.get("text_added", []))
        if plan.data.added is not None and plan.resumption is not None:
            new = {"step": plan.budget.steps_before, **plan.data.added}
            if not any(new.items() <= one.items() for one in self._added):  # of a killed resume
                self._added.append({**new, "t_s": round(time.time(), 3)})

    def report(
        self,
        message: str | None,
        doing: PhaseStatus | None = None,
        *,
        kind: str = "message",
        **fields: object,
    ) -> None:
        """Show the observer a message or the progress; the event of a message has more fields."""
        if message is not None:
            self.record(kind, text=message, **fields)
        if self.observer is None:
            return
        progress = self.monitor.progress(sample=self.sample, message=message, phase=doing)
        try:
            self.observer(progress)
        except OSError as error:  # such as a closed pipe: it must not end the training
            self.observer, text = None, f"progress cannot be shown any more: {error}"
            self.record("message", text=text)
            with contextlib.suppress(Exception):  # stderr may be broken, too, or warnings be errors
                warnings.warn(text, stacklevel=2)
        except BaseException:  # the caller's own: the end of the run reports without it
            self.observer = None
            raise

    def report_once(self, message: str) -> None:
        """Show the observer a message, unless it was shown before."""
        if message not in self._reported:
            self._reported.add(message)
            self.report(message)

    def report_now_and_then(self, doing: PhaseStatus | None) -> None:
        """Show the progress twice a second, and record it every two seconds."""
        if self.is_due("progress", REPORT_S):
            self.report(None, doing)
        if not self.monitor.arena.counters.load("start_ns"):
            return
        if self.is_due("metrics", METRICS_S):
            self.append_metrics()
        if self.is_due("times", TIMES_S):
            self.write_times()

    def is_due(self, what: str, every_s: float) -> bool:
        """Return whether it is time for a report, or another thing by its name, again."""
        now_s = monotonic_ns() / 1e9
        if is_due := now_s >= self._next_s.get(what, 0.0):
            self._next_s[what] = now_s + every_s
        return is_due

    def record(self, kind: str, **fields: object) -> None:
        """Append a line to events.jsonl: a message, a sample, a checkpoint."""
        steps, _, elapsed_s = self.monitor.totals()
        event = {"t_s": time.time(), "elapsed_s": elapsed_s, "step": steps, "kind": kind, **fields}
        with contextlib.suppress(EnvironmentLacks):  # the same error is reported for the metrics
            self.run.append_event(event)

    def append_metrics(self) -> None:
        """Append a line to metrics.jsonl, and to the other reports; each evaluation once."""
        now = self.monitor.progress()
        now = replace(now, lr=self._lr())
        evaluation: dict[str, Any] = {name: getattr(now, name) for name in EVALUATED}
        none: dict[str, Any] = dict.fromkeys(EVALUATED)
        alone = replace(now, **none)
        line = alone if evaluation == self._written else now
        try:  # counts begin with this command, hence its pid
            self.run.append_metrics({**line.to_json(), "supervisor_pid": os.getpid()})
            self._written = evaluation
        except EnvironmentLacks as error:
            self.report_once(f"no metrics: {error}; training continues")
        if self._trackers is not None:
            tracked = alone if evaluation == self._tracked else now
            self._trackers.write(tracked, now.tokens / (self.plan.epoch_tokens or 1))
            self._tracked = evaluation

    def open_trackers(self) -> None:
        """Begin to write to what `report_to` names."""
        if names := self.plan.config.trackers:
            from mlxhog.display.trackers import TrackedRun, Trackers

            plan, at = self.plan, self._birth.get("created_ns", 0)
            run = TrackedRun(
                folder=self.run.directory,
                name=self._birth["first_name"],
                id=f"{self._birth['first_name'][:80]}-{at % 36**8:x}",
                config={**_options(plan), "parameters": plan.parameters},
                first_step=self.monitor.budget.steps_before,
                resumed=plan.resumption is not None,
            )
            self._trackers = Trackers(names, run, self.report_once)

    def close_trackers(self, *, failed: bool) -> None:
        """Finish the run in all trackers."""
        if self._trackers is not None:
            self._trackers.close(failed=failed)

    def _lr(self) -> float:
        """The learning rate of the next update, with the workers with which training began."""
        count, budget = self.monitor.arena.counters.load, self.monitor.budget
        rate = self.plan.schedule(budget.step_share(self.plan.strategy.steps_of))
        done = budget.progress(
            steps=count("steps"),
            tokens=count("tokens") + count("tokens_elsewhere"),
            seconds=self.monitor.clock.seconds(),
        )
        return rate(done, count("version"))

    def write_times(self) -> None:
        """Replace times.json; a full disk is reported for the metrics."""
        with contextlib.suppress(EnvironmentLacks):
            self.run.write_times(self.monitor.step_times())

    def drop_lost_metrics(self) -> None:
        """Drop the metrics of a resumed run after its checkpoint."""
        budget = self.monitor.budget
        try:
            self.run.drop_metrics_after(budget.steps_before, budget.seconds_before)
        except (RunError, EnvironmentLacks) as error:
            self.report(f"metrics keep the lost steps: {error}; training continues")

    def drain(self) -> None:
        """Read the records of workers; a new sample becomes an event."""
        samples = self.monitor.samples
        self.monitor.drain()
        if self.monitor.samples > samples:
            self.sample = self.run.last_sample()
            self.record("sample", text=self.sample)

    def write_options(self) -> None:
        """Replace the options in the run's folder."""
        run_folder.write_options(self.run, self.plan, self.commands)

    def write_status(self, *, status: str, checkpoint: Path | None, **more: Any) -> None:
        """Replace run.json."""
        steps, tokens, seconds = self.monitor.totals()
        here, plan, config = machine.here(), self.plan, self.plan.config
        backends = {worker.backend for worker in plan.workers}
        self.run.write_status(
            {
                "status": status,
                "supervisor_pid": os.getpid(),
                "socket": socket_path(self.run.directory),
                "mlxhog": self._version,
                **self._birth,
                "machine": here.name,
                "chip": machine.chip_name(),
                "cores": here.cores,
                "memory_bytes": here.memory_bytes,
                "gpu_write": plan.writers.gpu_write,
                "kernels": plan.kernels_used,
                "tf32": bool(float32.note(backends, here, disabled=config.determinism != "none")),
                "emulated": plan.emulated,
                "model": _model_name(plan),
                "data": config.data,
                "data_path": corpora.full_path(config.data),
                "validation": asdict(plan.validation),
                **dict(zip(("text_kind", "sample_prompt"), self._text, strict=True)),
                "parameters": plan.parameters,
                "commands": [{"to_step": steps, **one} for one in self.commands],
                "automatic": plan.automatic,
                "steps": steps,
                "tokens": tokens,
                "seconds": round(seconds, 3),
                "resumed": self._resumed,
                "text_added": self._added,
                "budget": asdict(self.monitor.budget),
                "checkpoint": checkpoint,
                **more,
            }
        )

    def result(self, **more: Any) -> Result:
        """The result of the run, with the fields that only the caller knows."""
        plan = self.plan
        return Result.of(
            self.monitor.progress(sample=self.sample),
            run=str(self.run.directory),
            start_s=self.monitor.start_s,
            val_text=plan.validation.text,
            val_of_completions=plan.data.val.prompts is not None,
            emulated_before=plan.emulated_before,
            **more,
        )


def _options(plan: TextPlan) -> dict[str, Any]:
    """The options of this command that differ from the defaults, without automatic ones."""
    different = changed(yaml_values_of(plan.stored)).items()
    return {name: value for name, value in different if name not in plan.automatic}


def _model_name(plan: TextPlan) -> str:
    """The name of the model; a checkpoint's model has the name from the checkpoint's run."""
    path = Path(plan.config.model)
    if plan.stored.model != "auto" or not path.is_dir():
        return str(path) if registry.is_line(str(path)) else path.stem
    origin = run_of(path.resolve())
    name = None if origin is None else origin.read_status().get("model")
    return name if isinstance(name, str) else hub.title(path) or path.name


def summary(plan: TextPlan, run: Run) -> str:
    """Return two lines: one on workers, memory and model, and one on the data."""
    config = plan.config
    chosen = (plan.stored if plan.other else config).strategy
    strategy = "auto" if chosen is None else chosen.name
    workers = ", ".join(
        f"{worker.backend} ({worker.threads} thread{'s' * (worker.threads > 1)})"
        for worker in plan.workers
    )
    train, val = (file.n_tokens for file in (plan.data.train, plan.data.val))
    model, tokenizer = Path(config.model), config.tokenizer
    metal = label(plan.writers.gpu_write, plan.kernels_used)
    metal += ": Metal source on the CPU, a test" if EMULATED in metal else ""
    slots = f" ({plan.free_slots} slots free)" if plan.free_slots else ""
    return (
        f"mlxhog {version('mlxhog')}  {strategy}  {len(plan.workers)} "
        f"worker{'s' * (len(plan.workers) > 1)}: {workers}  {metal}{'  ' if metal else ''}"
        f"arena {format_bytes(plan.arena_bytes)} shared{slots}  "
        f"model {hub.title(model) or model.name} {format_count(plan.parameters)} parameters\n"
        f"data {quoted_paths(config.data)}: {format_count(train)} training and {format_count(val)} "
        f"validation tokens (tokenizer {hub.title(Path(tokenizer)) or tokenizer})  "
        f"run {path_from_here(run.directory)}"
    )
