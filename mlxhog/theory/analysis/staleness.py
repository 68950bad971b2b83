"""Staleness: how many updates by others an update was late, and the worth of a late gradient.

Staleness is the number of updates by others between a worker's read and its write. With P workers
that always have a gradient in flight its mean over all updates is P - 1, whatever their speeds:
each update falls between the read and the write of the P - 1 others. Its largest value has no such
limit.

The theory's tau is a lag in updates. It is no property of a model, and not the number of workers
either: it is read off a run that happened, one of the user's or a short one made for the purpose.

Theorems bound the worth of a late gradient by curvature in the worst direction. Here it is
measured: take the gradient of a batch, let k updates of other batches go by, and take it again.
That runs in the child of `sampling.py`.
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
from mlxhog.theory.analysis.sampling import Subject, Ticket, source
from mlxhog.theory.simulator import Staleness, of_histogram

Float32 = NDArray[np.float32]


# -- staleness of a run that happened --------------------------------------------------------------

QUANTILES = (0.5, 0.9, 0.99)


@dataclass(frozen=True, kw_only=True)
class ObservedStaleness:
    """Staleness that was observed: updates by others between a step's read and its write.

    Attributes:
        source: "run" or "probe".
        workers: how many there were.
        write: how they added their steps.
        steps: how many were observed.
        mean: over the steps.
        largest: of any step.
        histogram: staleness -> steps; empty for a run recorded before there was one.
        lost_update_rate: share of increments that never arrived; None where nobody looked.
        tokens_per_s: of all workers together; None where it is not known.
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
        """Increments that the lost ones are counted among: each step adds 1 to every probe."""
        return self.steps * PROBE_FLOATS

    def quantile(self, share: float) -> int | None:
        """The smallest staleness that `share` of the steps do not exceed; None without a histogram.

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
    """Read what a run recorded of all commands that trained it; None where it took no step.

    Args:
        run: the run.
        write: how its workers add their steps.

    Raises:
        RunError: its metrics are damaged.
    """
    lines = _commands(run)
    try:
        return _summarize(lines, write) if lines else None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise RunError(
            f"{run.metrics_path} holds a line that is no progress of a training run "
            f"({message_of(error)})"
        ) from error


def _summarize(lines: list[dict[str, Any]], write: str) -> ObservedStaleness:
    histogram: Counter[int] = Counter()
    by_worker: dict[tuple[int, str], Counter[int]] = {}
    steps, total, rates = 0, 0.0, []
    largest = 0
    for line in lines:
        for lag, count in line.get("staleness", {}).items():
            histogram[int(lag)] += int(count)
        for worker in line["workers"]:
            if "staleness" in worker:
                own = by_worker.setdefault((worker["slot"], worker["backend"]), Counter())
                own.update({int(lag): n for lag, n in worker["staleness"].items()})
            applied = worker["steps"] - worker["dropped"]
            steps += applied
            total += applied * worker["mean_staleness"]
            largest = max(largest, worker["max_staleness"])
        steps_of_line = sum(worker["steps"] for worker in line["workers"])
        rates.append((steps_of_line, line["lost_update_rate"]))
    known = [(steps_of_line, rate) for steps_of_line, rate in rates if rate is not None]
    weight = sum(steps_of_line for steps_of_line, _ in known)
    return ObservedStaleness(
        source="run",
        workers=len(lines[-1]["workers"]),
        write=write,
        steps=sum(histogram.values()) or steps,
        mean=mean_of(histogram) if histogram else total / steps if steps else 0.0,
        largest=max([largest, *histogram]),
        histogram=dict(sorted(histogram.items())),
        lost_update_rate=sum(n * rate for n, rate in known) / weight if weight else None,
        tokens_per_s=lines[-1].get("tokens_per_s"),
        by_worker=summaries(by_worker),
    )


def _commands(run: Run) -> list[dict[str, Any]]:
    """The last line of each command that trained the run: workers count anew with every one."""
    last: list[dict[str, Any]] = []
    for line in run.read_metrics():
        if not line.get("step"):
            continue
        if not all(isinstance(line.get(name, 0), int | float) for name in ("step", "elapsed_s")):
            raise RunError(f"{run.metrics_path} holds a step or a time that is no number")
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
    """Mean staleness of a histogram that holds a step or more."""
    return sum(lag * steps for lag, steps in histogram.items()) / sum(histogram.values())


def summaries(histograms: Mapping[tuple[int, str], Mapping[int, int]]) -> tuple[Staleness, ...]:
    """Summarise each worker's histogram, by (slot, backend); a worker without steps has none."""
    return tuple(
        of_histogram(f"{slot} {backend}", own)
        for (slot, backend), own in sorted(histograms.items())
        if own
    )


# -- the worth of a late gradient ------------------------------------------------------------------

LAGS = (1, 2, 4, 8)


@dataclass(frozen=True)
class StaleGradient:
    """How gradients differ that are some updates old.

    Attributes:
        lag: updates by others since the parameters were read.
        cosine: between the old and the fresh gradient of the same batch, mean over batches.
        change: length of their difference over that of the fresh one, likewise.
    """

    lag: int
    cosine: float
    change: float


class OptimizerMovement:
    """The movement of an optimizer's updates, without weight decay; one call per update.

    Every adaptive rule is taken for AdamW, whose elements are about as large.
    Source: Loshchilov and Hutter 2019, arXiv:1711.05101; momentum as torch.optim.SGD has it.
    """

    def __init__(self, config: TrainConfig, size: int) -> None:
        """Begin without memory.

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
        """Take in a gradient, and return the direction of its update, for a step of `-lr`."""
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
        before: batches that the optimizer remembers; none at the beginning of training.
        config: the optimizer, whose step size is taken in full.
    """
    ours = source(lane, subject)
    params_before = ours.backend.inbox.copy()
    movement = OptimizerMovement(config, ours.flat.size)
    for ticket in before:
        ours.gradient(ticket)
        movement.learn(ours.flat)
    old = []
    for ticket in watched:
        ours.gradient(ticket)
        old.append(ours.flat.copy())
    results = []
    for done, ticket in enumerate(others[: LAGS[-1]], start=1):
        ours.gradient(ticket)
        ours.move(movement.learn(ours.flat), -config.top_lr)
        if done in LAGS:
            pairs = []
            for one, first in zip(watched, old, strict=True):
                ours.gradient(one)
                pairs.append(cosine_and_change(first, ours.flat))
            cosine, change = np.mean(pairs, axis=0)
            results.append(StaleGradient(done, float(cosine), float(change)))
    ours.backend.inbox[:] = params_before
    ours.backend.refresh()
    return tuple(results)


def cosine_and_change(old: Float32, fresh: Float32) -> tuple[float, float]:
    """Return the cosine of two gradients, and the length of their difference over the second's."""
    lengths = float(np.linalg.norm(old)), float(np.linalg.norm(fresh))
    if not all(lengths):
        same = lengths[0] == lengths[1]
        return float(same), float(not same)
    cosine = float(np.dot(old / lengths[0], fresh / lengths[1]))
    return min(1.0, cosine), float(np.linalg.norm(fresh - old)) / lengths[1]
