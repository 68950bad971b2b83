"""Progress of a run, read from the arena: rings, worker table, counters, probe."""

import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from math import isfinite
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.arena import Arena
from mlxhog.arena.clock import Clock
from mlxhog.arena.control import RecordKind, Ring
from mlxhog.arena.process import monotonic_ns
from mlxhog.arena.workers import WorkerState
from mlxhog.base.workers import WorkerSpec
from mlxhog.config.budget import Budget
from mlxhog.data import validation_set
from mlxhog.data.prepare import Prepared
from mlxhog.data.validation_set import bits_per_byte
from mlxhog.errors import MlxhogError
from mlxhog.progress import NGRAM, TIMES, MachineReport, Progress, WorkerReport

WINDOW_S = 5.0  # throughput and loss are averages over this time
MAX_TIMES = 4096  # number of newest steps of a worker whose times are stored
PARTS = ("read_s", "compute_s", "apply_s", "wait_s")
"""Times of a step in its record; the rest since the step before is `other_s`."""


class _NobodyWaits(Exception):
    """The n-gram baseline is no longer needed."""


class _Slot:
    """The records of one worker slot that have been read."""

    def __init__(self, ring: Ring) -> None:
        self.ring = ring
        self.recent: deque[np.void] = deque()  # steps of the newest `WINDOW_S`, and at least two
        self.staleness: Counter[int] = Counter()  # number of steps by their staleness
        self.steps = 0
        self._last_ns: int | None = None  # end of the step before; None if that is not known
        # Of the newest steps, the `PARTS` and `other_s`, which a step has that follows another.
        self.times: deque[tuple[float | None, ...]] = deque(maxlen=MAX_TIMES)

    def add(self, record: np.void) -> None:
        """Add the record of a step."""
        self.recent.append(record)
        self.staleness[int(record["staleness"])] += 1
        parts, t_ns = [float(record[name]) for name in PARTS], int(record["t_ns"])
        other_s = None
        if self._last_ns is not None:
            other_s = max(0.0, (t_ns - self._last_ns) / 1e9 - sum(parts))
        self.times.append((*parts, other_s))
        self.steps, self._last_ns = self.steps + 1, t_ns

    def drain(self) -> NDArray[np.void]:
        """Read the new records; rates and times between two steps do not span lost ones."""
        lost_before, records = self.ring.n_lost, self.ring.drain()
        if self.ring.n_lost > lost_before:
            self.recent.clear()
            self._last_ns = None
        return records

    def tokens_per_s(self) -> float:
        """Recent rate; 0 if the last record is older than `WINDOW_S` and than two steps take."""
        if len(self.recent) < 2:
            return 0.0
        first, last_ns = self.recent[0], int(self.recent[-1]["t_ns"])
        spent_ns = max(last_ns - int(first["t_ns"]), 1)
        still_ns = max(WINDOW_S * 1e9, 2 * spent_ns / (len(self.recent) - 1))
        if monotonic_ns() - last_ns > still_ns:
            return 0.0
        tokens = sum(int(step["tokens"]) for step in self.recent) - int(first["tokens"])
        return tokens / (spent_ns / 1e9)

    def times_to_json(self) -> dict[str, Any]:
        """Microseconds of each gradient, in order; for the other times the median, in s."""
        columns = dict(zip((*PARTS, "other_s"), zip(*self.times, strict=True), strict=True))
        gradients = columns.pop("compute_s")
        measured = {name: [s for s in of if s is not None] for name, of in columns.items()}
        return {
            "steps": self.steps,
            "compute_us": [round(1e6 * (s or 0.0)) for s in gradients],
            **{name: median(of) if of else 0.0 for name, of in measured.items()},
        }


class Monitor:
    """The supervisor's reader of all worker reports. It only reads, so it delays no worker."""

    def __init__(
        self, arena: Arena, workers: Sequence[WorkerSpec], budget: Budget, state: Progress
    ) -> None:
        """Attach to the rings of all slots.

        Workers that join later are added to `self.workers`, by their slots. The state is what the
        arena does not tell: strategy, kernels, baselines; evaluations and losses are added to it.
        """
        self.arena, self.workers, self.budget = arena, dict(enumerate(workers, start=1)), budget
        self.clock = Clock(arena.counters, budget.seconds)
        self.state = state
        self.machines: Callable[[], tuple[MachineReport, ...]] = tuple  # of the run's cluster
        self.epoch: Callable[[], float | None] = lambda: None  # epochs of the text
        self.val_nats: list[float] = []  # of the batches of the newest evaluation
        self._ngram_thread: threading.Thread | None = None
        self._ngram_is_needless = False
        self._ngram: float | None = None  # its score
        slots = range(1, arena.layout.max_workers + 1)
        self._slots = {slot: _Slot(Ring(arena.segment(f"ring.{slot}"))) for slot in slots}
        self.start_s: float | None = None  # from the start of the command to that of training
        self._first_step_ns: int | None = None  # end of the first step
        self.over = False  # the budget is used up
        self.samples = 0
        self.on_step: Callable[[int, np.void], None] | None = None  # gets each record of a step
        self.on_score: Callable[[np.void], None] | None = None  # gets each scored batch
        self.evaluations = 0  # evaluations during training
        self.evaluating_s = 0.0  # seconds that workers spent on them

    def release(self) -> None:
        """Let go of those who read the records, and have this monitor."""
        self.on_step = self.on_score = None

    def note(self, **values: Any) -> None:
        """Change fields of the state."""
        self.state = replace(self.state, **values)

    def find_ngram_baseline(self, data: Prepared, asked_bytes: int) -> None:
        """Evaluate the n-gram baseline in a thread, while the run trains.

        It is scored on the validation subset of `asked_bytes`, as in evaluations.
        """

        def check() -> None:
            # The main thread ends before the interpreter waits for others.
            if self._ngram_is_needless or not threading.main_thread().is_alive():
                raise _NobodyWaits

        def find() -> None:
            # Then the view has no such baseline.
            with suppress(MlxhogError, OSError, MemoryError, _NobodyWaits):
                self._ngram = validation_set.ngram_score(data.train, data.val, asked_bytes, check)

        # No daemon: the interpreter may not end while native code is about to take its lock again.
        self._ngram_thread = threading.Thread(target=find, name="n-gram baseline")
        self._ngram_thread.start()

    def await_ngram_baseline(self, limit_s: float) -> None:
        """Wait a limited time for the score of `find_ngram_baseline`, if it was called."""
        if self._ngram_thread is not None:
            self._ngram_thread.join(limit_s)
        self._ngram_is_needless = True

    def drain(self) -> None:
        """Read the records that workers have written since the last call."""
        since_ns, steps = monotonic_ns() - WINDOW_S * 1e9, list[np.void]()
        for number, slot in self._slots.items():
            for record in slot.drain():
                if record["kind"] == RecordKind.STEP:
                    slot.add(record)
                    t_ns = int(record["t_ns"])
                    self._first_step_ns = min(t_ns, self._first_step_ns or t_ns)
                    if self.on_step is not None:
                        self.on_step(number, record)
                elif record["kind"] == RecordKind.SAMPLE:
                    self.samples += 1
                elif self.on_score is not None:
                    self.on_score(record)
            recent = slot.recent
            while len(recent) > 2 and recent[0]["t_ns"] < since_ns:
                recent.popleft()
            steps += [one for one in recent if one["t_ns"] >= since_ns and isfinite(one["loss"])]
        if steps:
            self.note(loss=float(np.mean([float(step["loss"]) for step in steps])))
        if n_bytes := sum(int(step["n_bytes"]) for step in steps):
            nats = sum(float(step["nats"]) for step in steps)
            self.note(train_bits_per_byte=bits_per_byte(nats, n_bytes))

    def add_evaluation(self, nats: float, n_bytes: int, tokens: int, step: int) -> None:
        """Store an evaluation on validation text: its nats, bytes and targets, and the step."""
        self.note(
            val_bits_per_byte=bits_per_byte(nats, n_bytes),
            val_step=step,
            val_loss=nats / tokens,
            val_tokens=tokens,
            val_bytes=n_bytes,
        )

    def first_step_s(self) -> float | None:
        """Seconds from the start of the command to the end of its first step; None before that."""
        if self.start_s is None or self._first_step_ns is None:
            return None
        return self.start_s + (self._first_step_ns - self.arena.counters.load("start_ns")) / 1e9

    def staleness(self) -> dict[int, int]:
        """Steps by their staleness, ascending."""
        every = sum((slot.staleness for slot in self._slots.values()), Counter[int]())
        return dict(sorted(every.items()))

    def worker_reports(self) -> tuple[WorkerReport, ...]:
        """One report per worker slot that has been in use."""
        rate = sum(entry.rate_sum for entry in self.arena.workers)
        return tuple(self._worker_report(*one, rate) for one in sorted(self.workers.items()))

    def _worker_report(self, slot: int, spec: WorkerSpec, total_rate: float) -> WorkerReport:
        entry, records = self.arena.workers.entry(slot), self._slots[slot]
        has_left = entry.state == WorkerState.FREE and entry.generation > 0
        applied = entry.steps - entry.dropped
        seconds: dict[str, Any] = {
            f"{name}_s": round(getattr(entry, f"{name}_ns") / 1e9, 3) for name in TIMES
        }
        return WorkerReport(
            slot=slot,
            backend=spec.backend,
            pid=entry.pid,
            state="left" if has_left else WorkerState(entry.state).name.lower(),
            steps=entry.steps,
            tokens=entry.tokens,
            tokens_per_s=0.0 if has_left else records.tokens_per_s(),
            mean_staleness=entry.staleness_sum / applied if applied else 0.0,
            max_staleness=entry.staleness_max,
            dropped=entry.dropped,
            memory_bytes=entry.rss_bytes,
            staleness=dict(sorted(records.staleness.items())),
            **seconds,
            rate_share=entry.rate_sum / total_rate if total_rate else None,
        )

    def step_times(self) -> list[dict[str, Any]]:
        """Times of the newest steps of every worker, in the form of `times.json`."""
        return [
            {"slot": number, "backend": self.workers[number].backend, **slot.times_to_json()}
            for number, slot in self._slots.items()
            if number in self.workers and slot.steps
        ]

    def totals(self) -> tuple[int, int, float]:
        """Steps, tokens and seconds of training of the whole run, earlier calls included."""
        counters, budget = self.arena.counters, self.budget
        return (
            budget.steps_before + counters.load("steps"),
            budget.tokens_before + counters.load("tokens"),
            budget.seconds_before + self.clock.seconds(),
        )

    def progress(self, **now: Any) -> Progress:
        """The state of the run, with fields that the caller knows: sample, message, phase."""
        count, seconds = self.arena.counters.load, self.clock.seconds()
        done = count("steps"), count("tokens") + count("tokens_elsewhere")
        fraction = self.budget.fraction(steps=done[0], tokens=done[1], seconds=seconds)
        steps, tokens, elapsed_s = self.totals()
        reports, baselines = self.worker_reports(), self.state.baselines
        return replace(
            self.state,
            step=steps,
            tokens=tokens,
            elapsed_s=elapsed_s,
            call_s=seconds,
            budget_fraction=fraction,
            eta_s=seconds * (1 - fraction) / fraction if fraction > 0 else None,
            tokens_per_s=sum(report.tokens_per_s for report in reports),
            lost_update_rate=self.arena.lost_update_rate(),
            memory_bytes=sum(report.memory_bytes for report in reports),
            workers=reports,
            staleness=self.staleness(),
            baselines=baselines if self._ngram is None else {**baselines, NGRAM: self._ngram},
            first_step_s=self.first_step_s(),
            machines=self.machines(),
            epoch=self.epoch(),
            **now,
        )
