"""`mlxhog simulate`: every strategy on one set of workers, side by side."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from mlxhog.errors import DataError
from mlxhog.files.quantities import format_bytes
from mlxhog.report.table import Section
from mlxhog.theory.simulator import Deadlock, Event, Prediction, descend, simulate
from mlxhog.theory.simulator.inputs import (
    DEADLOCKING,
    TRAINING,
    SimulateConfig,
    chosen,
    events_of,
    workers_of,
)
from mlxhog.theory.simulator.links import FLOAT_BYTES, ClusterRounds, LinkUse, sent_bytes
from mlxhog.theory.simulator.objectives import Learner, Objective, Quadratic, SparseLogistic
from mlxhog.theory.simulator.schemes import OuterLoop, Scheme, Sync
from mlxhog.theory.simulator.workers import Worker

TARGET = 0.01
"""Share of the first excess at which a toy training ends."""

RATES = tuple(2.0**-k for k in range(9))
"""Step sizes that a toy training tries, as multiples of the problem's largest."""


# -- the comparison --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PredictedStrategy:
    """One strategy on the workers.

    Attributes:
        name: of the strategy.
        prediction: of its speed; None if it deadlocks.
        deadlock: description of the deadlock; None without one.
        target_s: seconds to the toy problem's target, at the best step size; None without a toy
            problem, infinite if no step size reaches it.
        sent_per_s: bytes that each machine sends in a second; None on one machine.
        rounds: of cluster; None for the others.
    """

    name: str
    prediction: Prediction | None = None
    deadlock: str | None = None
    target_s: float | None = None
    sent_per_s: float | None = None
    rounds: LinkUse | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        values = {} if self.prediction is None else self.prediction.to_json()
        reached = self.target_s is None or math.isfinite(self.target_s)
        return {
            "strategy": self.name,
            **values,
            "deadlock": self.deadlock,
            "target_s": self.target_s if reached else None,
            "sent_bytes_per_s": self.sent_per_s,
            "rounds": None if self.rounds is None else asdict(self.rounds),
        }


@dataclass(frozen=True, kw_only=True)
class WhatIf:
    """All strategies, on the same workers.

    Attributes:
        config: the options.
        workers: the costs of their steps.
        source: of these costs.
        rows: the strategies, in the order of the options.
    """

    config: SimulateConfig
    workers: Sequence[Worker]
    source: str
    rows: Sequence[PredictedStrategy]

    @property
    def answer(self) -> str:
        """One sentence."""
        running = {row.name: row.prediction for row in self.rows if row.prediction is not None}
        if not running:
            return "every strategy of --strategies deadlocks"
        rate = {name: one.gradients_per_s for name, one in running.items()}
        timed = {r.name: r.target_s for r in self.rows if r.target_s and math.isfinite(r.target_s)}
        if timed:
            first = min(timed, key=lambda name: timed[name])
            others = {name: s for name, s in timed.items() if name != first}
            text = f"{first} reaches the target first, after {timed[first]:.3g} s"
            if others:
                second = min(others, key=lambda name: others[name])
                text += f"; {second} takes {others[second] / timed[first]:.2f} times as long"
            return text
        best = max(rate, key=lambda name: rate[name])
        waiting = {name: one.waiting_share for name, one in running.items()}
        text = f"{best} computes most: {rate[best]:.4g} gradients/s"
        if "sync" in rate and best != "sync":
            text += f", {rate[best] / rate['sync']:.2f} times sync"
            if self.config.machines == 1:  # else they wait for the link as well
                text += f", whose workers wait {waiting['sync']:.0%} of their time"
        return text

    def to_json(self) -> dict[str, Any]:
        """Return what `simulate --json` prints."""
        return {"answer": self.answer, "strategies": [row.to_json() for row in self.rows]}

    def sections(self) -> Iterator[Section]:
        """Arrange the comparison for `mlxhog.report.table.show`, 80 columns wide."""
        yield Section(textwrap.fill(self.answer, 80))
        timed = any(row.target_s is not None for row in self.rows)
        header = ["strategy", "gradients/s", "of ideal", "staleness", "largest", "idle", "wasted"]
        linked = self.config.machines > 1
        header += ["target"] if timed else []
        header += ["sent/s"] if linked else []
        best = sum(1 / worker.step_s for worker in self.workers)
        rows, notes = [], []
        for row in self.rows:
            one = row.prediction
            if one is None:
                rows.append((row.name, *["stops"] + ["-"] * (len(header) - 2)))
                notes.append(f"{row.name}: {row.deadlock}")
                continue
            cells = (
                f"{one.gradients_per_s:.4g}",
                f"{one.gradients_per_s / best:.0%}",
                f"{one.staleness.mean:.2f}",
                str(one.staleness.max),
                f"{one.waiting_share:.0%}",
                f"{one.wasted_share:.0%}",
            )
            ends = [_target(row)] if timed else []
            ends += [format_bytes(row.sent_per_s or 0.0)] if linked else []
            rows.append((row.name, *cells, *ends))
            if row.rounds is not None:
                notes.append(_rounds_note(row.rounds))
        yield Section("", header, rows, notes)
        yield Section("", notes=[textwrap.fill(note, 80) for note in self._notes(timed)])

    def _notes(self, timed: bool) -> Iterator[str]:
        steps = [1e3 * worker.step_s for worker in self.workers]
        low, high = min(steps), max(steps)
        same = low == high
        yield (
            f"predicted, not measured: {len(steps)} workers, a step takes "
            + (f"{low:.4g} ms" if same else f"{low:.4g} to {high:.4g} ms")
            + f" ({self.source})"
        )
        yield "of ideal: over gradients/s of workers that never wait and share nothing"
        yield "staleness: updates by others between read and write; idle: waiting for others"
        if self.config.machines > 1:
            yield (
                f"sent/s: bytes of each of {self.config.machines} machines ({self.config.link}); "
                f"parameters have {format_bytes(FLOAT_BYTES * self.config.params)}"
            )
        if timed:
            yield f"target: time to {TARGET:.0%} of the first excess, {self.config.objective}"


def _rounds_note(use: LinkUse) -> str:
    text = f"cluster: {use.rounds} rounds, {use.share:.0%} of the time on the link"
    if use.failed:
        text += f"; {use.failed} given up, work kept"
    return text


def _target(row: PredictedStrategy) -> str:
    if row.target_s is None:
        return "-"
    return f"{row.target_s:.4g} s" if math.isfinite(row.target_s) else "never"


def compare(
    config: SimulateConfig, workers: Sequence[Worker] | None = None, source: str = ""
) -> WhatIf:
    """Simulate every strategy of the options.

    Args:
        config: the options.
        workers: in place of those of the options; the same number.
        source: of these workers.

    Raises:
        ConfigError, DataError: the options contradict each other.
    """
    there = workers_of(config, workers)
    events = events_of(config)
    return WhatIf(
        config=config,
        workers=there,
        source=source or config.times,
        rows=[_row(name, config, there, events) for name in chosen(config)],
    )


def _row(
    name: str, config: SimulateConfig, workers: Sequence[Worker], events: Sequence[Event]
) -> PredictedStrategy:
    scheme = {**TRAINING, **DEADLOCKING}[name](config)
    if name == "serial":
        workers = [replace(min(workers, key=lambda worker: worker.step_s), exchange_s=0.0)]
        events = ()
    if name in DEADLOCKING:  # a worker that waits for ever shows when the others have finished
        each = math.ceil(2 * config.updates / len(workers))
        workers = [replace(worker, steps=each) for worker in workers]
    try:
        together = len(workers) if name.startswith("sync") else 1
        prediction = simulate(
            workers,
            scheme,
            updates=max(1, config.updates // together),
            warm_up=0 if events or isinstance(scheme, ClusterRounds) else None,
            cores=config.cores,
            seed=config.seed,
            events=events,
        )
        if isinstance(scheme, ClusterRounds):
            late = max((outage.at_s for outage in scheme.outages), default=0.0)
            if late >= prediction.seconds:
                raise DataError(
                    f"a machine is to be unplugged at {late:g} s, and {config.updates} updates "
                    f"take {prediction.seconds:.3g} s; simulate more updates"
                )
        target_s = None
        if config.objective != "none":
            target_s = best_time(workers, scheme, objective_of(config), config, events)
    except Deadlock as deadlock:
        return PredictedStrategy(name=name, deadlock=str(deadlock))
    return PredictedStrategy(
        name=name,
        prediction=prediction,
        target_s=target_s,
        sent_per_s=sent_per_s(scheme, prediction, config) if name != "serial" else 0.0,
        rounds=scheme.use(prediction.seconds) if isinstance(scheme, ClusterRounds) else None,
    )


def sent_per_s(scheme: Scheme, prediction: Prediction, config: SimulateConfig) -> float | None:
    """Bytes that each machine sends in a second; None on one machine."""
    if config.link is None:
        return None
    once = sent_bytes(FLOAT_BYTES * config.params, config.machines)
    match scheme:
        case ClusterRounds():
            return scheme.use(prediction.seconds).bytes_per_s
        case Sync():
            return prediction.updates_per_s * once
        case OuterLoop():
            replicas = scheme.replicas or config.workers
            per_merge = replicas * scheme.period if scheme.period else math.inf
            return prediction.gradients_per_s / per_merge * once
    return prediction.gradients_per_s / config.machines * FLOAT_BYTES * config.params


# -- toy problems ----------------------------------------------------------------------------------


def objective_of(config: SimulateConfig) -> Objective:
    """The problem that `objective` names."""
    if config.objective == "logistic":
        return SparseLogistic(examples=2000, features=200, nonzeros=5, seed=config.seed)
    return Quadratic(tuple(0.1 * 10 ** (k / 19) for k in range(20)), noise=0.3)


def best_time(
    workers: Sequence[Worker],
    scheme: Scheme,
    objective: Objective,
    config: SimulateConfig,
    events: Sequence[Event] = (),
) -> float:
    """Seconds until a toy problem is solved to `TARGET`, at the best step size of `RATES`.

    Args:
        workers: at least one.
        scheme: how they train together.
        objective: the problem.
        config: the most updates, the cores, and the seed.
        events: deaths and joins.
    """
    first = objective.excess(objective.start())
    seconds = math.inf
    for rate in RATES:
        learner = Learner(objective, lr=rate, seed=config.seed, target=TARGET * first)
        machine = descend(
            workers,
            scheme,
            learner,
            updates=config.updates,
            cores=config.cores,
            seed=config.seed,
            events=events,
        )
        if learner.reached is not None:
            seconds = min(seconds, learner.reached[0])
        if seconds < machine.state.now / 4:
            break  # smaller steps only take longer
    return seconds
