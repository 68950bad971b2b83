"""What is going on in a run, put together from the arena: rings, worker table, counters, probe."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mlxhog import updates
from mlxhog.arena import Arena
from mlxhog.arena.process import monotonic_ns
from mlxhog.arena.workers import State
from mlxhog.budget import Budget
from mlxhog.data.heldout import bits_per_byte
from mlxhog.metrics import Progress, WorkerReport
from mlxhog.mix import WorkerSpec
from mlxhog.records import Kind, Ring

WINDOW_S = 5.0  # throughput and loss are averages over this much time


class _Step(NamedTuple):
    """What is kept of a step for the averages."""

    t_ns: int
    tokens: int
    n_bytes: int
    loss: float


class Monitor:
    """The supervisor's reader of everything workers report. Reads only, so it disturbs no one."""

    def __init__(
        self,
        arena: Arena,
        mix: Sequence[WorkerSpec],
        budget: Budget,
        *,
        gpu_write: str = "cpu",
        kernels: str = "reference",
    ) -> None:
        """Attach to the rings of all workers of a mix; the last two label what they report."""
        self.arena, self.mix, self.budget = arena, mix, budget
        self.gpu_write, self.kernels = gpu_write, kernels
        self._rings = [Ring(arena.segment(f"ring.{k + 1}")) for k in range(len(mix))]
        self._recent: list[deque[_Step]] = [deque() for _ in mix]
        self._final: dict[int, dict[int, tuple[float, int]]] = {}
        self.val_bits_per_byte: float | None = None
        self.loss: float | None = None
        self.train_bits_per_byte: float | None = None
        self.ended_ns: int | None = None
        self.samples = 0
        self._staleness: list[Counter[int]] = [Counter() for _ in mix]

    def drain(self) -> None:
        """Take in what workers have recorded since the last call."""
        now = monotonic_ns()
        of_workers = zip(self._rings, self._recent, self._staleness, strict=True)
        for ring, recent, staleness in of_workers:
            for record in ring.drain():
                if record["kind"] == Kind.STEP:
                    staleness[int(record["staleness"])] += 1
                    recent.append(
                        _Step(
                            t_ns=int(record["t_ns"]),
                            tokens=int(record["tokens"]),
                            n_bytes=int(record["n_bytes"]),
                            loss=float(record["loss"]),
                        )
                    )
                elif record["kind"] == Kind.SAMPLE:
                    self.samples += 1
                elif record["round"]:
                    chunks = self._final.setdefault(int(record["round"]), {})
                    chunks[int(record["chunk"])] = (float(record["nats"]), int(record["n_bytes"]))
                elif record["n_bytes"]:
                    self.val_bits_per_byte = bits_per_byte(
                        float(record["nats"]), int(record["n_bytes"])
                    )
            while recent and recent[0].t_ns < now - WINDOW_S * 1e9:
                recent.popleft()
        steps = [step for recent in self._recent for step in recent if math.isfinite(step.loss)]
        if steps:
            self.loss = float(np.mean([step.loss for step in steps]))
        if n_bytes := sum(step.n_bytes for step in steps):
            nats = sum(step.loss * step.tokens for step in steps)
            self.train_bits_per_byte = bits_per_byte(nats, n_bytes)

    def final_chunks(self, round_: int) -> int:
        """Chunks of a final evaluation that have been reported."""
        return len(self._final.get(round_, {}))

    def final_bits_per_byte(self, round_: int) -> float:
        """Bits per byte over all chunks of a final evaluation."""
        chunks = self._final[round_].values()
        return bits_per_byte(sum(nats for nats, _ in chunks), sum(n for _, n in chunks))

    def seconds(self) -> float:
        """Training time so far; stands still once `ended_ns` is set."""
        start = self.arena.counters.load("start_ns")
        return ((self.ended_ns or monotonic_ns()) - start) / 1e9 if start else 0.0

    def lost_update_rate(self) -> float | None:
        """Share of probe increments that never arrived; None before the first step."""
        adds = sum(self.arena.workers.entry(k + 1).probe_adds for k in range(len(self.mix)))
        return updates.lost_update_rate(self.arena.probe, adds) if adds else None

    def staleness(self) -> dict[int, int]:
        """Steps by how many updates others made between their reads and writes, ascending."""
        return _ascending(sum(self._staleness, Counter()))

    def dropped_steps(self) -> int:
        """Steps dropped because their gradient was not finite."""
        return sum(self.arena.workers.entry(k + 1).dropped for k in range(len(self.mix)))

    def worker_reports(self) -> tuple[WorkerReport, ...]:
        """One report per worker slot."""
        reports = []
        for k, (spec, recent) in enumerate(zip(self.mix, self._recent, strict=True)):
            entry = self.arena.workers.entry(k + 1)
            applied = entry.steps - entry.dropped
            reports.append(
                WorkerReport(
                    slot=k + 1,
                    backend=spec.backend,
                    pid=entry.pid,
                    state=State(entry.state).name.lower(),
                    steps=entry.steps,
                    tokens=entry.tokens,
                    tokens_per_s=_rate(recent),
                    mean_staleness=entry.staleness_sum / applied if applied else 0.0,
                    max_staleness=entry.staleness_max,
                    dropped=entry.dropped,
                    memory_bytes=entry.rss_bytes,
                    staleness=_ascending(self._staleness[k]),
                )
            )
        return tuple(reports)

    def progress(self, *, sample: str | None = None, message: str | None = None) -> Progress:
        """The whole picture, for the terminal and for metrics.jsonl."""
        counters, seconds = self.arena.counters, self.seconds()
        steps, tokens = counters.load("steps"), counters.load("tokens")
        fraction = self.budget.fraction(steps=steps, tokens=tokens, seconds=seconds)
        reports = self.worker_reports()
        return Progress(
            step=steps,
            tokens=tokens,
            elapsed_s=seconds,
            budget_fraction=fraction,
            eta_s=seconds * (1 - fraction) / fraction if fraction > 0 else None,
            loss=self.loss,
            train_bits_per_byte=self.train_bits_per_byte,
            val_bits_per_byte=self.val_bits_per_byte,
            tokens_per_s=sum(report.tokens_per_s for report in reports),
            lost_update_rate=self.lost_update_rate(),
            memory_bytes=sum(report.memory_bytes for report in reports),
            workers=reports,
            gpu_write=self.gpu_write,
            kernels=self.kernels,
            staleness=self.staleness(),
            sample=sample,
            message=message,
        )


def _ascending(counts: Counter[int]) -> dict[int, int]:
    return dict(sorted(counts.items()))


def _rate(recent: deque[_Step]) -> float:
    """Tokens per second between the first and the last record of the window."""
    if len(recent) < 2:
        return 0.0
    tokens = sum(step.tokens for step in recent) - recent[0].tokens
    return tokens / max((recent[-1].t_ns - recent[0].t_ns) / 1e9, 1e-9)
