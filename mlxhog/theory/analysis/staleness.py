"""Staleness: the number of updates by others that an update was late; the worth of a late gradient.

Staleness counts updates by others between a worker's read and its write. With P workers that always
have a gradient in flight its mean over all updates is P - 1 at any speeds: each update falls
between the read and the write of the P - 1 others. Its largest value has no such limit.

The theory's tau is a lag in updates. It is a property of a run, not of a model, and it is not the
number of workers: it comes from a run of the user, or from a short one for this purpose.

Theorems bound the worth of a late gradient by the curvature in the worst direction. Here it is
measured in the child of `sampling.py`: the gradient of a batch before and after k updates of other
batches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.arena.child import Lane
from mlxhog.arena.layout import PROBE_FLOATS
from mlxhog.checkpoint.run import Run
from mlxhog.config import optimizers
from mlxhog.config.config import TrainConfig
from mlxhog.errors import RunError, message_of
from mlxhog.theory.analysis.sampling import GradientSource, Subject, Ticket, source
from mlxhog.theory.simulator import Staleness, of_histogram

Float32 = NDArray[np.float32]


# -- staleness of a run ----------------------------------------------------------------------------

QUANTILES = (0.5, 0.9, 0.99)


@dataclass(frozen=True, kw_only=True)
class ObservedStaleness:
    """Observed staleness: updates by others between a step's read and its write.

    Attributes:
        source: "run" or "probe".
        workers: number of workers.
        write: as the option of that name.
        steps: number of observed steps.
        mean: over the steps.
        largest: of any step.
        histogram: staleness -> steps.
        lost_update_rate: share of lost increments; None if not measured.
        tokens_per_s: of all workers together; None if unknown.
        by_worker: the distribution of each; slow workers are later than fast ones.
    """

    source: str
    workers: int
    write: str
    steps: int
    mean: float
    largest: int
    histogram: Mapping[int, int]
    lost_update_rate: float | None
    tokens_per_s: float | None
    by_worker: tuple[Staleness, ...] = ()

    @property
    def increments(self) -> int:
        """Number of counted increments: each step adds 1 to every probe."""
        return self.steps * PROBE_FLOATS

    def quantile(self, share: float) -> int | None:
        """Return the least staleness that `share` of the steps do not exceed; None if unknown.

        Raises:
            ValueError: `share` is not between 0 and 1.
        """
        if not 0 <= share <= 1:
            raise ValueError(f"a quantile is for a share between 0 and 1, got {share}")
        if not self.histogram:
            return None
        lags = sorted(self.histogram)
        below = np.cumsum([self.histogram[lag] for lag in lags])
        return lags[int(np.searchsorted(below, share * below[-1] - 1e-9))]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "source": self.source,
            "workers": self.workers,
            "write": self.write,
            "steps": self.steps,
            "mean": self.mean,
            **{f"p{100 * share:g}": self.quantile(share) for share in QUANTILES},
            "max": self.largest,
            "histogram": {str(lag): steps for lag, steps in self.histogram.items()},
            "lost_update_rate": self.lost_update_rate,
            "increments": self.increments,
            "tokens_per_s": self.tokens_per_s,
            "by_worker": [asdict(one) for one in self.by_worker],
        }


def of_run(run: Run, write: str) -> ObservedStaleness | None:
    """Read the staleness of all commands that trained a run; None if it took no step.

    Args:
        run: the run.
        write: as the option of that name.

    Raises:
        RunError: its metrics are damaged.
    """
    lines = _commands(run)
    try:
        return _summarize(lines, write) if lines else None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise RunError(
            f"{run.metrics_path} holds a line that is not the progress of a training run "
            f"({message_of(error)})"
        ) from error


def _summarize(lines: list[dict[str, Any]], write: str) -> ObservedStaleness:
    histogram: Counter[int] = Counter()
    by_worker: dict[tuple[int, str], Counter[int]] = {}
    rates, largest = [], 0
    for line in lines:
        for lag, count in line["staleness"].items():
            histogram[int(lag)] += int(count)
        for worker in line["workers"]:
            own = by_worker.setdefault((worker["slot"], worker["backend"]), Counter())
            own.update({int(lag): n for lag, n in worker["staleness"].items()})
            largest = max(largest, worker["max_staleness"])
        steps_of_line = sum(worker["steps"] for worker in line["workers"])
        rates.append((steps_of_line, line["lost_update_rate"]))
    known = [(steps_of_line, rate) for steps_of_line, rate in rates if rate is not None]
    weight = sum(steps_of_line for steps_of_line, _ in known)
    return ObservedStaleness(
        source="run",
        workers=len(lines[-1]["workers"]),
        write=write,
        steps=sum(histogram.values()),
        mean=mean_of(histogram) if histogram else 0.0,
        largest=max([largest, *histogram]),
        histogram=dict(sorted(histogram.items())),
        lost_update_rate=sum(n * rate for n, rate in known) / weight if weight else None,
        tokens_per_s=lines[-1].get("tokens_per_s"),
        by_worker=summaries(by_worker),
    )


def _commands(run: Run) -> list[dict[str, Any]]:
    """Return the last line of each command of the run; workers count anew with each command."""
    last: list[dict[str, Any]] = []
    for line in run.read_metrics():
        if not line.get("step"):
            continue
        if not all(isinstance(line.get(name, 0), int | float) for name in ("step", "elapsed_s")):
            raise RunError(f"{run.metrics_path} holds a step or a time that is not a number")
        if last and _same_command(last[-1], line):
            last.pop()
        last.append(line)
    return last


def _same_command(before: Mapping[str, Any], line: Mapping[str, Any]) -> bool:
    pids = before.get("supervisor_pid"), line.get("supervisor_pid")
    return (
        pids[0] == pids[1]
        and line["step"] >= before["step"]
        and line.get("elapsed_s", 0.0) >= before.get("elapsed_s", 0.0)
    )


def mean_of(histogram: Mapping[int, int]) -> float:
    """Return the mean staleness of a histogram with a step or more."""
    return sum(lag * steps for lag, steps in histogram.items()) / sum(histogram.values())


def summaries(histograms: Mapping[tuple[int, str], Mapping[int, int]]) -> tuple[Staleness, ...]:
    """Summarise each worker's histogram, by (slot, backend), but those without steps."""
    return tuple(
        of_histogram(f"{slot} {backend}", own)
        for (slot, backend), own in sorted(histograms.items())
        if own
    )


# -- the worth of a late gradient ------------------------------------------------------------------

LAGS = (1, 2, 4, 8)


@dataclass(frozen=True)
class StaleGradient:
    """Difference of a gradient that is some updates old from a fresh one.

    Attributes:
        lag: updates by others since the parameters were read.
        cosine: between the old and the fresh gradient of the same batch, mean over batches.
        change: length of their difference over that of the fresh one, mean over batches.
        table_cosine: as `cosine`, of the gradients of tables of n-grams; None without tables.
        table_change: as `change`, of these.
    """

    lag: int
    cosine: float
    change: float
    table_cosine: float | None = None
    table_change: float | None = None


class OptimizerMovement:
    """The movement of an optimizer's updates, without weight decay; one call per update.

    AdamW stands for every adaptive rule: its updates are about as large.
    Source: Loshchilov and Hutter 2019, arXiv:1711.05101; momentum as torch.optim.SGD has it.
    """

    def __init__(self, config: TrainConfig, size: int) -> None:
        """Begin with moments of zero.

        Args:
            config: the optimizer's settings.
            size: elements of a gradient.
        """
        self.config, self._steps = config, 0
        self._rule = optimizers.of(config)
        if self._rule.is_adaptive:
            self._rule = optimizers.like(optimizers.AdamW, self._rule)
        self._first = np.zeros(size, np.float32)
        self._second = np.zeros(size if self._rule.is_adaptive else 0, np.float32)

    def learn(self, grad: Float32) -> Float32:
        """Update the moments, and return the direction of the update, for a step of `-lr`."""
        config, rule = self.config, self._rule
        norm = float(np.linalg.norm(grad))
        if config.clip and norm > config.clip:
            grad = grad * np.float32(config.clip / norm)
        self._steps += 1
        if isinstance(rule, optimizers.Momentum):
            self._first = np.float32(rule.momentum) * self._first + grad
            return self._first.copy()
        if not isinstance(rule, optimizers.AdamW):
            return grad.copy()
        beta1, beta2 = rule.decay1, rule.beta2
        self._first += np.float32(1 - beta1) * (grad - self._first)
        self._second += np.float32(1 - beta2) * (grad * grad - self._second)
        first = self._first / np.float32(1 - beta1**self._steps)
        second = self._second / np.float32(1 - beta2**self._steps)
        direction: Float32 = first / (np.sqrt(second) + np.float32(rule.eps))
        return direction


def compare_stale_gradients(
    lane: Lane,
    subject: Subject,
    watched: Sequence[Ticket],
    others: Sequence[Ticket],
    before: Sequence[Ticket],
    config: TrainConfig,
) -> tuple[StaleGradient, ...]:
    """Compare old gradients with fresh ones; the parameters are put back afterwards.

    Args:
        lane: of the child.
        subject: which gradients.
        watched: batches whose gradients are compared.
        others: batches of the updates in between, at least the largest of `LAGS`.
        before: batches in the optimizer's state; none at the beginning of training.
        config: the optimizer, with the full step size.
    """
    ours = source(lane, subject)
    params_before, tables_before = ours.backend.inbox.copy(), ours.tables.flat.copy()
    movement = OptimizerMovement(config, ours.flat.size)
    for ticket in before:
        ours.gradient(ticket)
        movement.learn(ours.flat)
    old = []
    for ticket in watched:
        ours.gradient(ticket)
        old.append((ours.flat.copy(), _of_tables(ours)))
    results = []
    for done, ticket in enumerate(others[: LAGS[-1]], start=1):
        ours.gradient(ticket)
        ours.tables.step(ours.table_rows, lr=config.ngram_lr)
        ours.move(movement.learn(ours.flat), -config.top_lr)
        if done in LAGS:
            pairs, of_tables = [], []
            for one, (first, rows) in zip(watched, old, strict=True):
                ours.gradient(one)
                pairs.append(cosine_and_change(first, ours.flat))
                of_tables.append(cosine_and_change(rows, _of_tables(ours)))
            means = [float(mean) for mean in np.mean(pairs, axis=0)]
            if ours.tables.slots:
                means += [float(mean) for mean in np.mean(of_tables, axis=0)]
            results.append(StaleGradient(done, *means))
    ours.backend.inbox[:], ours.tables.flat[:] = params_before, tables_before
    ours.backend.refresh()
    return tuple(results)


def _of_tables(ours: GradientSource) -> Float32:
    """The last gradient's rows of all tables; those of a batch are always the same rows."""
    return np.concatenate(
        [np.empty(0, np.float32), *(rows.values.reshape(-1) for rows in ours.table_rows.values())]
    )


def cosine_and_change(old: Float32, fresh: Float32) -> tuple[float, float]:
    """Return the cosine of two gradients, and the length of their difference over the second's."""
    lengths = float(np.linalg.norm(old)), float(np.linalg.norm(fresh))
    if not all(lengths):
        same = lengths[0] == lengths[1]
        return float(same), float(not same)
    cosine = float(np.dot(old / lengths[0], fresh / lengths[1]))
    return min(1.0, cosine), float(np.linalg.norm(fresh - old)) / lengths[1]
