"""Read the folder of a run, during training and later; damage is reported, never fatal."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mlxhog.base.paths import words
from mlxhog.base.quantities import format_bytes, format_count, format_duration, format_value
from mlxhog.base.typed import fill, read
from mlxhog.checkpoint.run import DAMAGED, RUNNING, STARTING, Run
from mlxhog.config.config import TrainConfig
from mlxhog.config.sources import by_flat_names, read_yaml, specs_of
from mlxhog.errors import ConfigError, RunError, message_of
from mlxhog.report.history import GrowingFile, History
from mlxhog.report.metrics import (
    COUNTS,
    Result,
    beside_counts,
    label,
    number,
    rate,
    scored_at,
    share_text,
)
from mlxhog.report.shares import shares
from mlxhog.report.streams import printable, printable_lines

MOST_TEXT = 2000
"""Largest number of characters of an event; the rest is cut off."""
MOST_EVENTS = 2000
"""Number of newest events and samples in memory."""
ALL = "all workers"
_ASIDE = ("out", "name")
"""Options that choose the folder of a run and do not change its training."""


@dataclass(frozen=True, kw_only=True)
class RunEvent:
    """A line of events.jsonl."""

    elapsed_s: float  # seconds of training of the whole run
    step: int  # of the whole run
    kind: str  # "message", "strategy" (of a change), "sample", "checkpoint" or "ended"
    text: str = ""  # the message, the sample, or the path of the checkpoint


@dataclass(frozen=True, kw_only=True)
class _Part:
    """What run.json says of the part of the held-out text for evaluations."""

    n_bytes: float | None = None
    share: float | None = None


@dataclass(frozen=True, kw_only=True)
class _About:
    """What run.json says of the run and its machine."""

    status: str = "unknown"
    error: str | None = None
    machine: str | None = None
    chip: str | None = None
    cores: int | None = None
    memory_bytes: float | None = None
    mlxhog: str | None = None
    kernels: str | None = None
    gpu_write: str | None = None
    parameters: float | None = None
    held_out: _Part = _Part()
    result: Result | None = None


class RunRecord:
    """The files of a run, read together; `refresh` reads them again.

    Attributes:
        run: the run.
        history: history of its metrics.
        progress: their last line, with the newest evaluation and the newest sample.
        status: contents of its run.json.
        config: option -> value, in the spelling of config.yaml; numbers of choices by flat names.
        events: the newest `MOST_EVENTS` events.
        n_events: number of all events.
        notes: sentences about missing or damaged files, for the reader of a report.
    """

    def __init__(self, run: Run) -> None:
        """Read all files.

        Raises:
            RunError: the metrics cannot be read.
        """
        self.run = run
        self.history = History(run.metrics_path)
        self.config: dict[str, object] = {}
        self.events: list[RunEvent] = []
        self._event_file, self.n_events, self._damaged_events = GrowingFile(run.events_path), 0, 0
        self.refresh()

    def refresh(self) -> None:
        """Read every file again; of growing files only the new part.

        Raises:
            RunError: the metrics cannot be read.
        """
        self.status: dict[str, Any] = self.run.read_status()
        self._about = fill(_About, self.status)
        try:
            self.history.update()
        except OSError as error:
            raise RunError(f"{self.run.metrics_path} cannot be read: {error.strerror}") from error
        self.notes = [*self._read_config(), *self._read_events(), *self._lacks()]
        sample = self.samples[-1].text if self.samples else None
        self.progress = replace(self.history.progress, sample=sample)

    def _read_config(self) -> list[str]:
        """Read config.yaml, which never changes; returns a note if that is not possible."""
        try:
            layer = {} if self.config else by_flat_names(read_yaml(self.run.config_path))
        except ConfigError as error:
            return [f"the configuration of the run cannot be read: {error}"]
        self.config |= {name: value for name, (value, _) in layer.items()}
        return []

    def _read_events(self) -> list[str]:
        """Read new events; returns a note if that is not possible."""
        try:
            for record in self._event_file.read():
                try:
                    event = read(RunEvent, {"text": record.get("path", ""), **record})
                except ValueError:
                    self._damaged_events += 1
                    continue
                text = printable_lines(event.text)[:MOST_TEXT]
                self.events.append(replace(event, kind=printable(event.kind)[:20], text=text))
                self.n_events += 1
        except OSError as error:
            return [f"events.jsonl cannot be read: {message_of(error)}"]
        del self.events[:-MOST_EVENTS]
        return []

    def _lacks(self) -> list[str]:
        """What a reader should know of the files."""
        history, sizes = self.history, self.history.column("val_bytes")
        lacks = {
            "run.json is missing or damaged: status and result are unknown": (
                self.status.get("status") == DAMAGED or not self.status
            ),
            f"{history.damaged} damaged lines of metrics.jsonl are skipped": history.damaged,
            f"{self._damaged_events} damaged lines of events.jsonl are skipped": (
                self._damaged_events
            ),
            "evaluations before and after a resume used different parts of the held-out text: "
            "their numbers cannot be compared": len({*sizes[~np.isnan(sizes)].tolist()}) > 1,
            "no numbers yet: the first ones are written two seconds after training begins": (
                not len(history) and self.is_running
            ),
            "no numbers: nothing was trained": not len(history) and not self.is_running,
            "events.jsonl is missing: messages and samples are unknown": (
                len(history) and not self.run.events_path.exists()
            ),
        }
        return [note for note, applies in lacks.items() if applies]

    @property
    def is_running(self) -> bool:
        """Whether a process trains the run now."""
        return self.state in (STARTING, RUNNING)

    @property
    def state(self) -> str:
        """The status of the run, in one word."""
        return printable(self._about.status)[:20]

    @property
    def result(self) -> Result | None:
        """The result of the newest command; None before it ends, and if it was killed."""
        return self._about.result

    @property
    def part(self) -> Mapping[str, Any]:
        """The part of the held-out text for evaluations; {} if unknown."""
        part = self.status.get("held_out")
        return part if isinstance(part, dict) else {}

    @property
    def evaluated_text(self) -> str:
        """Size and share of the held-out text for evaluations; "" if unknown."""
        part = self._about.held_out
        if part.n_bytes is None or part.share is None:
            return ""
        return f"{format_bytes(part.n_bytes)}, {share_text(part.share)}"

    @property
    def larger_score(self) -> tuple[float, str] | None:
        """The final score, in bits per byte, and its share of the held-out text, or None."""
        bits, share = self.progress.final_bits_per_byte, self.progress.final_share
        return None if bits is None or share is None else (bits, share_text(share))

    @property
    def scored_at(self) -> str:
        """The step that its newest evaluation scored; "" if it is the last one, or unknown."""
        return scored_at(self.progress.val_step, self.last("step"))

    @property
    def samples(self) -> list[RunEvent]:
        """Samples of text from the model."""
        return [event for event in self.events if event.kind == "sample"]

    @property
    def strategy(self) -> str:
        """The strategy; for auto also the newest one, and the number of changes; - is unknown."""
        requested, now = self.config.get("strategy"), self.progress.strategy
        if requested != "auto" or now is None:
            return str(requested or "-")
        changes = sum(event.kind == "strategy" for event in self.events)
        changed = f", {changes} change{'s' * (changes > 1)}" if changes else ""
        return f"auto: {now}{changed}"

    def shares(self) -> dict[str, dict[str, float]]:
        """Shares of a step in the newest command: of `ALL`, and of each of several workers."""
        workers = [vars(worker) for worker in self.progress.workers]
        each = {f"{worker['slot']} {worker['backend']}": [worker] for worker in workers}
        named = {ALL: workers, **(each if len(each) > 1 else {})}
        return {printable(name)[:40]: shares(some) for name, some in named.items()}

    # -- facts -----------------------------------------------------------------------------------

    def last(self, name: str) -> float | None:
        """The newest number of a column of the metrics, or None."""
        return self.history.last(name)

    def facts(self) -> dict[str, str]:
        """The rows of a table about the run and its machine: name -> value; - is unknown."""
        history, now, about, last = self.history, self.progress, self._about, self.last
        result, workers = about.result, [one for _, one in sorted(history.workers.items())]
        tokens, seconds, bits = last("tokens"), last("elapsed_s"), last("val_bits_per_byte")
        counts, larger = now.marks.get(COUNTS), self.larger_score
        dropped = restarts = torn = beside = None
        if result is not None:
            dropped, restarts, torn = result.dropped_steps, result.restarts, result.torn
        elif len(history):
            dropped = sum(one.dropped for one in now.workers)
            restarts = sum(one.restarts for one in workers)
        if bits is not None and counts is not None and not self.scored_at:
            beside = beside_counts(bits, counts)
        machines = now.machines if result is None else result.machines
        memory = np.nanmax(history.column("memory_bytes"), initial=0.0)

        def spelled(value: Any, spell: Callable[[Any], str] = str) -> str:
            return "-" if value is None else spell(value)

        rows = {
            "status": self.state,
            "error": about.error and printable_lines(about.error)[:MOST_TEXT],
            "training time": spelled(seconds, format_duration),
            "first step after": spelled(now.first_step_s, format_duration),
            "steps": spelled(last("step"), lambda n: f"{n:,.0f}"),
            "tokens": spelled(tokens, format_count),
            "tokens/s": spelled(tokens and seconds and tokens / seconds, format_count),
            "train bits per byte": number(last("train_bits_per_byte")),
            "held-out bits per byte": number(bits) + self.scored_at,
            "of held-out text": self.evaluated_text or None,
            "larger held-out score": larger and f"{number(larger[0])} of {larger[1]}",
            "beside counts": beside,
            "lost updates": rate(last("lost_update_rate")),
            "strategy": self.strategy,
            "workers": ", ".join(one.backend for one in workers) or "-",
            **{f"machine {one.name}": str(one) for one in machines},
            "workers restarted": spelled(restarts),
            "steps dropped": spelled(dropped),
            "batches torn": spelled(torn),
            "largest memory of all workers": spelled(memory or None, format_bytes),
            "parameters": spelled(about.parameters, format_count),
            "machine": spelled(about.machine),
            "chip": spelled(about.chip),
            "cores": spelled(about.cores),
            "memory": spelled(about.memory_bytes, format_bytes),
            "mlxhog": spelled(about.mlxhog),
            "kernels": spelled(about.kernels),
            "Metal": label(about.gpu_write or "", about.kernels or "") or None,
        }
        return {name: value for name, value in rows.items() if value is not None}

    def changed(self) -> dict[str, object]:
        """The options of this version that differ from their defaults, in YAML's spelling."""
        known = specs_of(TrainConfig, self.config)
        return {
            name: value
            for name, value in self.config.items()
            if name in known
            and name not in _ASIDE
            and str(value) != str(known[name].spell(known[name].default))
        }

    def options_in_words(self) -> dict[str, str]:
        """Every option of the run in readable form: rounded, with its unit."""
        known, automatic = specs_of(TrainConfig, self.config), self.run.automatic()
        return {
            name: format_value(value, known[name].unit if name in known else "").removesuffix(
                f" {name}"  # steps 100, tokens 2,000
            )
            + " (auto)" * (name in automatic)
            for name, value in self.config.items()
        }

    def commands(self) -> dict[str, str]:
        """Command lines, by their purpose."""
        run, automatic = shlex.quote(str(self.run.directory)), self.run.automatic()
        known = specs_of(TrainConfig, self.config)
        more = " --time 10m" * (self.state == "done")  # its budget is used up
        flags = [
            shlex.join([known[name].flag, str(value)])
            for name, value in self.changed().items()
            if name not in automatic  # the new command chooses these itself
        ]
        return {
            "repeat it with the file of its options": f"mlxhog train -c {run}/config.yaml",
            "the same, spelled out": " ".join(["mlxhog train", *flags]),
            "train it further": f"mlxhog train --resume {run}{more}",
            "write text with it": f'mlxhog generate {run} --prompt "The"',
            "this page again": f"mlxhog report {run}",
        }


def different_texts(records: Sequence[RunRecord]) -> list[str]:
    """Return a warning if held-out numbers of runs are of different texts."""
    scored = [each for each in records if each.last("val_bits_per_byte") is not None]
    if len({each.part.get("text", each.run.name) for each in scored}) < 2:
        return []
    texts = ", ".join(
        f"{each.run.name} ({each.evaluated_text or 'not recorded'}, "
        f"data {words(each.config.get('data', '-'))})"
        for each in scored
    )
    return [f"held-out numbers of different text cannot be compared: {texts}"]
