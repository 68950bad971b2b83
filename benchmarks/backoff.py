"""Constant steps, 1/k and exponential back-off beside the schedules that are used elsewhere.

    python benchmarks/backoff.py          three seeds
    python benchmarks/backoff.py --full   more seeds; AdamW as well for lock-free workers
    python benchmarks/backoff.py --tune   search step size and K of every schedule

backoff              least squares, serial and lock-free, where the best step size and one that is 4
                     times smaller, as if the curvature were overestimated, show at which rate the
                     excess falls; and an xLSTM by one worker with AdamW
lock_free_schedules  an xLSTM by two lock-free workers

Back-off takes the first step size for K gradients, .37 of it for K/.37, and so on; 1/k is
lr / (1 + k/K). Each schedule has the step size, and the K, that a search found best at this number
of gradients, and no warm-up. All differences are taken seed by seed. Gradients are counted, not
seconds, so a busy machine changes no loss.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import fmean
from typing import Any

import numpy as np
from harness.claims import counted
from harness.estimates import Mean
from harness.frame import other_seed, run
from harness.interleaved import on_cores
from harness.tuning import around, settings, tune
from training.recording import end_bits, model_file, workers

from mlxhog.classic.config import ClassicConfig
from mlxhog.classic.datasets import SparseRows
from mlxhog.classic.problem import Defaults
from mlxhog.classic.problems.linear import SparseLinear
from mlxhog.classic.run import train as solve
from mlxhog.config.schedules import BETA, backoff_start

CONSTANT, INVERSE, BACKOFF, USUAL = "constant", "1/k", "back-off", "usual"
"""The last is .9 per twentieth of a run on least squares, half a cosine on models."""
SCHEDULES = (CONSTANT, INVERSE, BACKOFF, USUAL)
OF_LOCK_FREE = (CONSTANT, INVERSE, BACKOFF, "cosine", "wsd")
FALLING = {INVERSE: "inverse", BACKOFF: "backoff"}
WORST = 1.0  # log10 of the excess beyond which a run counts as diverged: ten times the start's
TUNED_ON = 101
OVER = 4.0
"""How many times c is overestimated."""
RATE = 0.9
"""An excess that falls as k^-.9 or faster counts as falling as 1/k."""


@dataclass(frozen=True)
class Rule:
    """A schedule with its settings.

    Attributes:
        schedule: of `SCHEDULES`, or another of `TrainConfig`.
        lr: largest step size.
        share: of the run's gradients that have the first step size of back-off, or after which
            that of 1/k is half; of no meaning for others.
    """

    schedule: str
    lr: float
    share: float = 0.0

    def first_steps(self, gradients):
        """K."""
        return max(1, round(self.share * gradients))


@dataclass(frozen=True)
class LeastSquares:
    """Rows with few features set, whose variances fall from 1 to 1 / condition; noisy targets.

    Attributes:
        rows: examples; an epoch draws as many, with replacement, as the theory has it.
        features: coordinates of x, of which a row has `per_row`.
        epochs: times that the step size may change.
        workers: 1 is serial SGD, more are lock-free (lossless writes).
    """

    rows: int
    features: int
    epochs: int
    workers: int = 1
    per_row: int = 10
    condition: float = 50.0

    def train(self, rule, seed):
        """log10 of the excess f(x) - f* over that of x = 0, after each epoch."""
        problem, least = _least_squares(replace(self, workers=1), seed)
        options = {"scheme": "serial"}
        if self.workers > 1:
            options = {"scheme": "hogwild", "workers": self.workers, "write": "lossless"}
        if rule.schedule in FALLING:
            options["backoff_epochs"] = rule.first_steps(self.epochs)
        else:
            options["beta"] = 1.0 if rule.schedule == CONSTANT else 0.9 ** (20 / self.epochs)
        config = ClassicConfig(
            lr=rule.lr, schedule=FALLING.get(rule.schedule, "geometric"), epochs=self.epochs,
            sampling="replacement", seed=seed, **options,
        )  # fmt: skip
        result = solve(problem, config)
        start = result.initial["objective"] - least
        curve = [_log10((epoch.objective - least) / start) for epoch in result.epochs]
        return curve if result.status == "done" else [*curve, WORST]


def _log10(excess):
    """Logarithm of an excess; `WORST` where it diverged."""
    return min(WORST, math.log10(max(excess, 1e-12))) if math.isfinite(excess) else WORST


@lru_cache(maxsize=2)
def _least_squares(size, seed):
    """The problem and its least objective."""
    rng = np.random.default_rng((seed, 0xB0FF))
    n, d, k = size.rows, size.features, size.per_row
    indices = np.sort(rng.random((n, d)).argpartition(k, axis=1)[:, :k], axis=1)
    scales = np.geomspace(1.0, size.condition**-0.5, d)
    values = rng.standard_normal((n, k)) * scales[indices]
    x = rng.standard_normal(d)
    labels = (values * x[indices]).sum(axis=1) + rng.standard_normal(n)
    rows = SparseRows(
        indptr=np.arange(n + 1) * k, indices=indices.ravel().astype(np.int32),
        values=values.ravel().astype(np.float32), labels=labels.astype(np.float32),
        n_features=d, label_kind="numbers",
    )  # fmt: skip
    problem = SparseLinear(
        name="least-squares", about="generated", train=rows, test=None, loss="squares", lam=0.0,
        defaults=Defaults(lr=0.01, beta=0.9, epochs=20, writes=("lossless", "racy")),
    )  # fmt: skip
    dense = np.zeros((n, d))
    np.put_along_axis(dense, indices, values.astype(np.float32), axis=1)
    targets = rows.labels.astype(np.float64)
    optimum = np.linalg.lstsq(dense, targets, rcond=None)[0]
    return problem, 0.5 * float(np.square(dense @ optimum - targets).sum())


@dataclass(frozen=True)
class Language:
    """A model like `tiny` on the corpus sotu.

    Attributes:
        width, blocks: of the model.
        gradients: of a training.
        seq_len, held_out: tokens of a sequence, and of the evaluation.
        options: of `TrainConfig`.
        workers: 1, or so many lock-free ones.
    """

    width: int
    blocks: int
    gradients: int
    seq_len: int
    held_out: int
    options: Mapping[str, Any]
    workers: int = 1

    def train(self, rule, seed):
        """Held-out bits per byte."""
        how = {"schedule": "cosine" if rule.schedule == USUAL else rule.schedule, "warmup": 0.0}
        if rule.schedule in FALLING:
            steps = rule.first_steps(self.gradients)
            how = {"schedule": FALLING[rule.schedule], "backoff_steps": steps}
        if self.workers > 1:
            how |= {"strategy": "hogwild", "workers": workers(self.workers)}
        model = model_file(hidden_size=self.width, num_hidden_layers=self.blocks)
        return [end_bits(
            self.held_out, model=model, batch_size=2, seq_len=self.seq_len, steps=self.gradients,
            seed=seed, lr=rule.lr, **how, **self.options,
        )]  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """What is trained.

    Attributes:
        title: in tables and claims.
        training: of a rule and a seed.
        schedules: that are compared.
        lr, share: the middles of the axes of a search.
        factors: by which the curvature is overestimated.
    """

    title: str
    training: LeastSquares | Language
    schedules: tuple[str, ...]
    lr: float
    share: float
    factors: tuple[float, ...] = (1.0,)

    @property
    def beside_others(self):
        """Whether trainings may run side by side; lock-free workers need the cores themselves."""
        return self.training.workers == 1


def problems(part, chosen):
    """Name -> problem of a part in a mode."""
    if part == "backoff":
        squares = LeastSquares(200, 20, 12) if chosen.tiny else LeastSquares(5000, 500, 256)
        sizes = (32, 1, 8, 32, 1024) if chosen.tiny else (64, 2, 400, 128, 8192)
        language = Language(*sizes, {"optimizer": "adamw"})
        convex = (SCHEDULES, 0.03, 1 / 64, (1.0, OVER))
        two = replace(squares, workers=2)
        return {
            "serial": Problem("least squares, serial", squares, *convex),
            "hogwild": Problem("least squares, 2 lock-free workers", two, *convex),
            "xlstm": Problem("xLSTM", language, SCHEDULES, 4e-3, 0.5),
        }
    sizes = (32, 1, 40, 32, 1024) if chosen.tiny else (64, 3, 600, 256, 16_384)
    schedules = OF_LOCK_FREE[1:3] if chosen.tiny else OF_LOCK_FREE
    rates = {"muon": 4e-3} if chosen.quick else {"muon": 4e-3, "adamw": 2e-3}
    return {
        rule: Problem(rule, Language(*sizes, {"optimizer": rule}, workers=2), schedules, lr, 0.25)
        for rule, lr in rates.items()
    }


def rules_of(part, chosen):
    """Problem -> schedule -> its rule at the recorded settings; any with --tiny."""
    own = problems(part, chosen)
    names = [f"{name}, {schedule}" for name, one in own.items() for schedule in one.schedules]
    any_one = dict.fromkeys(names, {"lr": 1e-2, "share": 0.25})
    known = any_one if chosen.tiny else settings(part, names)
    return {
        name: {
            schedule: Rule(schedule, **known[f"{name}, {schedule}"]) for schedule in one.schedules
        }
        for name, one in own.items()
    }


def trained(job):
    """One training, for a pool of processes."""
    training, rule, seed = job
    return training.train(rule, seed)


class Curves:
    """The trainings of a problem, by schedule, factor and seed, and back-off with other seeds."""

    def __init__(self, problem, rules, seeds):
        self.title, self.seeds, self.rules = problem.title, seeds, rules
        jobs = {
            (schedule, factor, seed): (problem.training, replace(rule, lr=rule.lr / factor), seed)
            for schedule, rule in rules.items()
            for factor in problem.factors
            for seed in seeds
        }
        others = map(other_seed, seeds)
        jobs |= {(BACKOFF, 1.0, s): (problem.training, rules[BACKOFF], s) for s in others}
        run = on_cores if problem.beside_others else lambda *how: list(map(*how))
        self.curves = dict(zip(jobs, run(trained, jobs.values()), strict=True))

    def ends(self, schedule, factor=1.0, seed_of=int):
        """What the trainings ended with, by seed."""
        return [self.curves[schedule, factor, seed_of(seed)][-1] for seed in self.seeds]

    def ahead(self, *rivals):
        """That back-off is ahead of rivals; of none where its K lies beyond the training's end."""
        return [
            counted(
                f"{self.title}: {rival} less back-off, bits per byte",
                Mean.of_differences(self.ends(rival), self.ends(BACKOFF)), ">=", 0.0,
            )
            for rival in rivals
            if rival in self.rules and self.rules[BACKOFF].share < 1.0
        ]  # fmt: skip

    def exponent(self, schedule, factor, epochs):
        """That the excess falls as 1/k: its exponent, by the ends of back-off's stages.

        In between it falls in stairs, whose parts would say nothing of the rate.
        """
        at = stage_ends(self.rules[BACKOFF], epochs)
        curves = (self.curves[schedule, factor, seed] for seed in self.seeds)
        slopes = [np.polyfit(np.log10(at), [curve[k - 1] for k in at], 1)[0] for curve in curves]
        name = f"exponent of the excess, {schedule}, curvature x {factor:g}, {self.title}"
        return counted(name, Mean.of(slopes), "<=", -RATE)


def stage_ends(rule, epochs):
    """Epochs after which back-off has ended a stage, in the last nine tenths of a run."""
    steps = rule.first_steps(epochs)
    ends, end = [], steps
    while end <= epochs:
        ends.append(end)
        end = math.ceil(backoff_start(1 + len(ends), steps=steps, beta=BETA))
    return [end for end in ends if end >= epochs / 10]


def trainings(part, findings, chosen):
    """Train every problem of a part under every schedule."""
    own, rules = problems(part, chosen), rules_of(part, chosen)
    every = {name: Curves(one, rules[name], chosen.seeds) for name, one in own.items()}
    for name, one in every.items():
        again = one.ends(BACKOFF, seed_of=other_seed)
        findings.same(f"back-off, {one.title}", one.ends(BACKOFF), again)
        findings.table(
            {"problem": one.title, "schedule": schedule, "step size": rule.lr, "K": rule.share,
             **{f"end, lr / {f:g}": round(fmean(one.ends(schedule, f)), 4)
                for f in own[name].factors}}
            for schedule, rule in rules[name].items()
        )  # fmt: skip
    findings.results["losses"] = {
        name: {
            schedule: {f"{f:g}": one.ends(schedule, f) for f in own[name].factors}
            for schedule in rules[name]
        }
        for name, one in every.items()
    }
    return own, every


def backoff(findings, chosen):
    """The rates on least squares, and what an xLSTM ends with."""
    own, every = trainings("backoff", findings, chosen)
    for factor, words in (
        (1.0, "Constant stepsize + exponential backoff achieves a 1/k rate."),
        (OVER, "No exponential slowdown if c is overestimated: still 1/k."),
    ):
        rates, beside = (
            [every[name].exponent(schedule, factor, own[name].training.epochs)
             for name in ("serial", "hogwild")]
            for schedule in (BACKOFF, INVERSE)
        )  # fmt: skip
        text = "; ".join(f"{one.name}: {one.measured}" for one in (*rates, *beside))
        findings.compare(words, *rates, measured=text)
    words = "For xLSTM: use constant stepsize with exponential backoff."
    findings.compare(words, *every["xlstm"].ahead(CONSTANT, USUAL))


def lock_free_schedules(findings, chosen):
    """What an xLSTM ends with by lock-free workers."""
    _, every = trainings("lock_free_schedules", findings, chosen)
    for words, rivals in (
        ("Faster in practice than 1/k (larger steps early on).", (INVERSE,)),
        ("For xLSTM: use constant stepsize with exponential backoff.", (CONSTANT, "cosine", "wsd")),
    ):
        claims = [claim for one in every.values() for claim in one.ahead(*rivals)]
        findings.compare(words, *claims)


PARTS = {one.__name__: one for one in (backoff, lock_free_schedules)}


def tuning(chosen):
    """Search step size and K of every schedule, K of those without it, too."""
    for part in chosen.only or PARTS:
        arms = {
            f"{name}, {schedule}": (one, schedule)
            for name, one in problems(part, chosen).items()
            for schedule in one.schedules
        }
        axes = {
            arm: {"lr": around(one.lr, 2.0, 9), "share": around(one.share, 2.0, 7)}
            for arm, (one, _) in arms.items()
        }

        def loss(arm, point, arms=arms):
            problem, schedule = arms[arm]
            return problem.training.train(Rule(schedule, **point), TUNED_ON)[-1]

        tune(part, axes, loss)


if __name__ == "__main__":
    run(__doc__, PARTS, actions={"tune": tuning}, packages=("torch",), seeds=(3, 8))
