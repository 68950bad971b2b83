"""Trainings under a schedule of step sizes, each on one core, compared after equal gradients.

Least squares on sparse rows (strongly convex, its optimum known), a byte-level xLSTM, and a MAD
candidate of one mixer and one channel mixer. A training returns one number that is smaller where it
went better, and depends on nothing but its arguments; with two lock-free workers, on their races.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from statistics import fmean
from typing import Any, Protocol

import numpy as np
from experiment.searches import descend
from numpy.typing import NDArray
from training.alone import ALONE, model_of, train_alone

from mlxhog import TrainConfig
from mlxhog.classic.config import ClassicConfig
from mlxhog.classic.datasets import SparseRows
from mlxhog.classic.problem import Defaults
from mlxhog.classic.problems.linear import SparseLinear
from mlxhog.classic.run import train as solve
from mlxhog.config.schedules import BETA, backoff_start
from mlxhog.mad.options import PUBLISHED
from mlxhog.mad.options import Protocol as MadProtocol
from mlxhog.mad.run import RunConfig
from mlxhog.mad.tasks import resolve
from mlxhog.mad.training.candidate import train as train_candidate
from mlxhog.models.mad.sequence import parse

CONSTANT, INVERSE, BACKOFF, USUAL = "constant", "1/k", "back-off", "usual"
COSINE, STABLE = "cosine", "wsd"
SCHEDULES = (CONSTANT, INVERSE, BACKOFF, USUAL)
"""`USUAL` is what the program does elsewhere: the paper's .9 per twentieth of the run on least
squares, half a cosine on models."""

FALLING = {INVERSE: "inverse", BACKOFF: "backoff"}
MOST_SHARE = 2.0  # tried for K; from 1 on back-off is a constant step size, and 1/k nearly one
WORST = 1.0  # log10 of the excess beyond which a run counts as diverged: ten times the start's


@dataclass(frozen=True)
class Rule:
    """A schedule with its settings.

    Attributes:
        schedule: of `SCHEDULES`, or another of `TrainConfig`.
        lr: largest step size.
        share: of the run's gradients that have the first step size of back-off, or after which
            that of 1/k is half; 0 for others.
    """

    schedule: str
    lr: float
    share: float = 0.0

    def options(self, gradients: int, usual: str) -> dict[str, Any]:
        """The options of `TrainConfig` and of a MAD `Protocol`."""
        if self.schedule not in FALLING:
            return {"schedule": usual if self.schedule == USUAL else self.schedule, "lr": self.lr}
        steps = max(1, round(self.share * gradients))
        return {"schedule": FALLING[self.schedule], "lr": self.lr, "backoff_steps": steps}


@dataclass(frozen=True)
class Trained:
    """How a training went.

    Attributes:
        loss: at the end; the smaller the better.
        curve: log10 of the excess after each epoch (least squares).
    """

    loss: float
    curve: tuple[float, ...] = ()


# -- least squares on sparse rows -----------------------------------------------------------------


@dataclass(frozen=True)
class LeastSquares:
    """Rows with few features set, whose variances fall from 1 to 1 / condition; noisy targets.

    Attributes:
        rows: examples; an epoch draws as many, with replacement, as the theory has it.
        features: coordinates of x.
        per_row: features that a row has.
        condition: largest variance of a feature over the smallest.
        epochs: times that the step size may change.
        workers: 1 is serial SGD, more are lock-free (lossless writes).
    """

    rows: int
    features: int
    per_row: int
    condition: float
    epochs: int
    workers: int = 1

    def train(self, rule: Rule, seed: int) -> Trained:
        """The excess f(x) - f* over that of x = 0, as log10."""
        problem, least, _ = _least_squares(self, seed)
        falling = FALLING.get(rule.schedule, "geometric")
        beta = {CONSTANT: 1.0, USUAL: 0.9 ** (20 / self.epochs)}.get(rule.schedule)
        stage = max(1, round(rule.share * self.epochs))
        lock_free = {"scheme": "hogwild", "workers": self.workers, "write": "lossless"}
        config = ClassicConfig(
            lr=rule.lr,
            schedule=falling,
            beta=beta,
            backoff_epochs=stage,
            epochs=self.epochs,
            sampling="replacement",
            seed=seed,
            **({"scheme": "serial"} if self.workers == 1 else lock_free),
        )
        result = solve(problem, config)
        start = result.initial["objective"] - least
        excess = [(epoch.objective - least) / start for epoch in result.epochs]
        curve = [_log10(value) for value in excess]
        loss = curve[-1] if result.status == "done" else WORST
        return Trained(loss, curve=tuple(curve))

    def curvature(self, seed: int) -> tuple[float, float]:
        """Strong convexity and smoothness of the mean loss of an example."""
        return _least_squares(self, seed)[2]

    def to_json(self) -> dict[str, Any]:
        """What a second person needs."""
        return asdict(self)


def _log10(excess: float) -> float:
    """Logarithm of an excess; `WORST` where it diverged."""
    if not math.isfinite(excess):
        return WORST
    return min(WORST, math.log10(max(excess, 1e-12)))


@lru_cache(maxsize=2)
def _least_squares(
    size: LeastSquares, seed: int
) -> tuple[SparseLinear, float, tuple[float, float]]:
    """The problem, its least objective, and the extreme eigenvalues of A'A / rows."""
    rng = np.random.default_rng((seed, 0xB0FF))
    n, d, k = size.rows, size.features, size.per_row
    indices = np.sort(rng.random((n, d)).argpartition(k, axis=1)[:, :k], axis=1)
    scales = np.geomspace(1.0, size.condition**-0.5, d)
    values = rng.standard_normal((n, k)) * scales[indices]
    x = rng.standard_normal(d)
    labels = (values * x[indices]).sum(axis=1) + rng.standard_normal(n)
    rows = SparseRows(
        indptr=np.arange(n + 1) * k,
        indices=indices.ravel().astype(np.int32),
        values=values.ravel().astype(np.float32),
        labels=labels.astype(np.float32),
        n_features=d,
        label_kind="numbers",
    )
    problem = SparseLinear(
        name="least-squares",
        about="generated",
        train=rows,
        test=None,
        loss="squares",
        lam=0.0,
        defaults=Defaults(lr=0.01, beta=0.9, epochs=20, writes=("lossless", "racy")),
    )
    dense: NDArray[np.float64] = np.zeros((n, d))
    np.put_along_axis(dense, indices, values.astype(np.float32), axis=1)
    square, targets = dense.T @ dense, rows.labels.astype(np.float64)
    optimum = np.linalg.solve(square, dense.T @ targets)
    least = 0.5 * float(np.square(dense @ optimum - targets).sum())
    eigenvalues = np.linalg.eigvalsh(square / n)
    return problem, least, (float(eigenvalues[0]), float(eigenvalues[-1]))


# -- a byte-level xLSTM ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Language:
    """A model like `tiny` on the corpus sotu, trained by AdamW without a warm-up.

    Attributes:
        width: hidden size.
        blocks: of the model.
        gradients: of `batch` sequences of `seq_len` bytes.
        batch: sequences.
        seq_len: bytes of a sequence.
        held_out: bytes of the evaluation.
    """

    width: int
    blocks: int
    gradients: int
    batch: int
    seq_len: int
    held_out: int

    def train(self, rule: Rule, seed: int) -> Trained:
        """Held-out bits per byte."""
        config = TrainConfig(
            model=model_of(self.width, self.blocks),
            batch_size=self.batch,
            seq_len=self.seq_len,
            steps=self.gradients,
            optimizer="adamw",
            seed=seed,
            **({} if rule.schedule in FALLING else {"warmup": 0.0}),
            **ALONE,
            **rule.options(self.gradients, "cosine"),
        )
        return Trained(train_alone(config, self.held_out))

    def to_json(self) -> dict[str, Any]:
        """What a second person needs."""
        return {**asdict(self), "corpus": "sotu", "optimizer": "adamw", "warmup": 0}


# -- a MAD candidate ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Candidate:
    """One mixer and one channel mixer on a MAD task, trained by AdamW.

    Attributes:
        task: its name.
        values: settings of the task, where they are not its baseline's.
        layers: of the candidate.
        dim: width.
        gradients: of `batch` rows.
        batch: rows.
    """

    task: str
    values: tuple[tuple[str, int], ...]
    layers: str
    dim: int
    gradients: int
    batch: int

    def train(self, rule: Rule, seed: int) -> Trained:
        """Share of the scored test positions that are wrong."""
        protocol = MadProtocol(
            optimizer=PUBLISHED,
            batch_size=self.batch,
            steps=self.gradients,
            eval_every=self.gradients,
            stop_accuracy=2.0,
            clip=1.0,
            **rule.options(self.gradients, "cosine"),
        )
        config = RunConfig(
            task=self.task,
            settings=vars(resolve(self.task, dict(self.values))),
            layers=parse(self.layers),
            dim=self.dim,
            protocol=protocol,
            seed=seed,
        )
        return Trained(1.0 - train_candidate(config).acc_token)

    def to_json(self) -> dict[str, Any]:
        """What a second person needs."""
        return {**asdict(self), "values": dict(self.values), "optimizer": "adamw, clip 1"}


Training = LeastSquares | Language | Candidate


def train(training: Training, rule: Rule, seed: int) -> Trained:
    """One training, for a pool of processes."""
    return training.train(rule, seed)


class Trains(Protocol):
    """What can be searched."""

    def train(self, rule: Rule, seed: int) -> Trained:
        """Return how a training under a rule went."""


def search(
    training: Trains, schedule: str, lr: float, share: float, seeds: Sequence[int]
) -> list[tuple[float, float, float]]:
    """Triples (K's share, step size, mean loss), from a first guess until every side is worse.

    Both are doubled and halved: K, and for each K the step size.

    Args:
        training: what is trained.
        schedule: of `SCHEDULES`.
        lr: step size to begin with.
        share: of the gradients to begin with; kept at 0 where the schedule has no K.
        seeds: of each pair's trainings.
    """
    losses: dict[tuple[float, float], float] = {}
    rates = {}  # K's share -> its best step size

    def loss(share: float, lr: float) -> float:
        if (share, lr) not in losses:
            rule = Rule(schedule, lr, share)
            losses[share, lr] = fmean(training.train(rule, seed).loss for seed in seeds)
        return losses[share, lr]

    def best(share: float) -> float:
        if share > MOST_SHARE:
            return math.inf
        if share not in rates:
            first = rates[min(rates, key=lambda tried: abs(tried - share))] if rates else lr
            rates[share] = descend(lambda rate: loss(share, rate), first)
        return loss(share, rates[share])

    if schedule in FALLING:
        descend(best, share)
    else:
        best(0.0)
    return [(share, rate, value) for (share, rate), value in sorted(losses.items())]


def best_settings(searched: Sequence[Sequence[float]]) -> dict[str, Any]:
    """The settings with the smallest loss of a search, and the losses beside them."""
    losses = {(share, lr): loss for share, lr, loss in searched}
    share, lr = min(losses, key=lambda at: (losses[at], -at[0]))
    sides = [f"{losses[share, r]:.4f} at {r:g}" for r in (lr / 2, 2 * lr)]
    others = [
        f"{min(losses[at] for at in losses if at[0] == s):.4f} with K {s:g}"
        for s in (share / 2, 2 * share)
        if share and any(at[0] == s for at in losses)
    ]
    return {
        "lr": lr,
        "share": share,
        "bracket": ", ".join([f"{losses[share, lr]:.4f} at {lr:g}", *sides, *others]),
    }


def stage_ends(rule: Rule, epochs: int) -> list[int]:
    """Epochs after which back-off has ended a stage, in the last nine tenths of a run."""
    steps = max(1, round(rule.share * epochs))
    ends, end = [], steps
    while end <= epochs:
        ends.append(end)
        end = math.ceil(backoff_start(1 + len(ends), steps=steps, beta=BETA))
    return [end for end in ends if end >= epochs / 10]


def slope(curve: Sequence[float], at: Sequence[int]) -> float:
    """Exponent p of an excess that falls as k^p, by its values after some epochs k, from 1."""
    values = [curve[k - 1] for k in at]
    return float(np.polyfit(np.log10(at), values, 1)[0])
