"""Constant steps, 1/k and exponential back-off beside the schedules that are used elsewhere.

    python benchmarks/backoff.py          three seeds
    python benchmarks/backoff.py --full   more seeds; AdamW as well for lock-free workers
    python benchmarks/backoff.py --tune   search learning rate and K of every schedule

backoff              least squares, serial and lock-free, where the best learning rate and one that
                     is 4 times smaller, as if the curvature were overestimated, show at which rate
                     the excess falls; and an xLSTM by one worker with AdamW
lock_free_schedules  an xLSTM by two lock-free workers

Back-off takes the first learning rate for K gradients, .37 of it for K/.37, and so on; 1/k is
lr / (1 + k/K). Each schedule has the learning rate, and the K, that a search found best at this
number of gradients, and no warmup. All differences are taken seed by seed. Gradients are counted,
not seconds, so a busy machine changes no loss.
"""

import math
from collections.abc import Callable
from functools import lru_cache, partial
from itertools import starmap
from operator import call
from statistics import fmean
from typing import NamedTuple

import numpy as np
from harness.claims import counted
from harness.estimates import Mean
from harness.frame import other_seed, run
from harness.interleaved import on_cores
from harness.tuning import around, settings, tune
from training.recording import end_bits, model_file, workers

from mlxhog.optim.schedules import BETA, backoff_start
from mlxhog.research.classic.config import ClassicConfig
from mlxhog.research.classic.problem import Defaults, SparseRows
from mlxhog.research.classic.problems.linear import SparseLinear
from mlxhog.research.classic.run import train as solve

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


class Rule(NamedTuple):
    """A schedule with its settings.

    Attributes:
        schedule: of `SCHEDULES`, or another of `TrainConfig`.
        lr: peak learning rate.
        share: of the run's gradients that have the first learning rate of back-off, or after which
            that of 1/k is half; of no meaning for others.
    """

    schedule: str
    lr: float
    share: float = 0.0

    def first_steps(self, gradients):
        """K."""
        return max(1, round(self.share * gradients))


class Squares(NamedTuple):
    """Rows of which ten features are set, whose variances fall from 1 to 1/50; noisy targets.

    Attributes:
        rows: examples; an epoch draws as many, with replacement, as the theory has it.
        features: coordinates of x.
        epochs: times that the learning rate may change.
    """

    rows: int
    features: int
    epochs: int

    def train(self, workers, rule, seed):
        """log10 of the excess f(x) - f* over that of x = 0, after each epoch."""
        problem, least = _min_squares(self.rows, self.features, seed)
        options = {"strategy": "serial"}
        if workers > 1:
            options = {"strategy": "hogwild", "workers": workers, "write": "lossless"}
        if rule.schedule in FALLING:
            options["backoff_epochs"] = rule.first_steps(self.epochs)
        else:
            options["beta"] = 1.0 if rule.schedule == CONSTANT else 0.9 ** (20 / self.epochs)
        config = ClassicConfig(
            lr=rule.lr, schedule=FALLING.get(rule.schedule, "geometric"), epochs=self.epochs,
            sampling="replacement", seed=seed, **options,
        )  # fmt: skip
        result = solve(problem, config)
        excess = np.array([epoch.objective for epoch in result.epochs]) - least
        shares = np.nan_to_num(excess / (result.initial["objective"] - least), nan=math.inf)
        curve = np.log10(np.clip(shares, 1e-12, 10**WORST)).tolist()
        return curve if result.status == "done" else [*curve, WORST]


@lru_cache(maxsize=2)
def _min_squares(n, d, seed, k=10, condition=50.0):
    """The problem and its least objective."""
    rng = np.random.default_rng((seed, 0xB0FF))
    indices = np.sort(rng.random((n, d)).argpartition(k, axis=1)[:, :k], axis=1)
    scales = np.geomspace(1.0, condition**-0.5, d)
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


class Language(NamedTuple):
    """A model like `tiny` on the corpus sotu: its sizes, gradients, and tokens of a sequence and
    of the evaluation."""

    width: int
    blocks: int
    gradients: int
    seq_len: int
    validation: int

    def train(self, optimizer, count, rule, seed):
        """Validation bits per byte, by one worker or by lock-free ones."""
        how = {"schedule": "cosine" if rule.schedule == USUAL else rule.schedule, "warmup": 0.0}
        if rule.schedule in FALLING:
            steps = rule.first_steps(self.gradients)
            how = {"schedule": FALLING[rule.schedule], "backoff_steps": steps}
        if count > 1:
            how |= {"strategy": "hogwild", "workers": workers(count)}
        model = model_file(hidden_size=self.width, num_hidden_layers=self.blocks)
        return [end_bits(
            self.validation, model=model, batch_size=2, seq_len=self.seq_len, steps=self.gradients,
            seed=seed, lr=rule.lr, optimizer=optimizer, **how,
        )]  # fmt: skip


class Problem(NamedTuple):
    """What is trained.

    Attributes:
        title: in tables and claims.
        train: a rule and a seed -> what the loss was, at the end or on the way.
        schedules: that are compared.
        lr, share: the middles of the axes of a search.
        alone: whether one worker trains, so that trainings may run side by side.
        factors: by which the curvature is overestimated.
    """

    title: str
    train: Callable
    schedules: tuple[str, ...]
    lr: float
    share: float
    alone: bool = True
    factors: tuple[float, ...] = (1.0,)


def squares_of(chosen):
    """The size of least squares in a mode."""
    return chosen.pick(tiny=Squares(200, 20, 12), quick=Squares(5000, 500, 256),
                       full=Squares(5000, 500, 256))  # fmt: skip


def problems(part, chosen):
    """Name -> problem of a part in a mode."""
    if part == "backoff":
        train, factors = squares_of(chosen).train, (1.0, OVER)
        language = Language(*((32, 1, 8, 32, 1024) if chosen.tiny else (64, 2, 400, 128, 8192)))
        return {
            name: Problem(title, partial(train, n), SCHEDULES, 0.03, 1 / 64, n == 1, factors)
            for name, title, n in (
                ("serial", "least squares, serial", 1),
                ("hogwild", "least squares, 2 lock-free workers", 2),
            )
        } | {"xlstm": Problem("xLSTM", partial(language.train, "adamw", 1), SCHEDULES, 4e-3, 0.5)}
    language = Language(*((32, 1, 40, 32, 1024) if chosen.tiny else (64, 3, 600, 256, 16_384)))
    schedules = OF_LOCK_FREE[1:3] if chosen.tiny else OF_LOCK_FREE
    rates = {"muon": 4e-3} if chosen.quick else {"muon": 4e-3, "adamw": 2e-3}
    return {
        rule: Problem(rule, partial(language.train, rule, 2), schedules, lr, 0.25, alone=False)
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


class Curves:
    """The trainings of a problem, by schedule, factor and seed, and back-off with other seeds."""

    def __init__(self, problem, rules, seeds):
        self.title, self.seeds, self.rules = problem.title, seeds, rules
        keys = [(schedule, factor, seed)
                for schedule in rules for factor in problem.factors for seed in seeds]  # fmt: skip
        keys += [(BACKOFF, 1.0, other_seed(seed)) for seed in seeds]
        jobs = [
            (problem.train, rules[schedule]._replace(lr=rules[schedule].lr / factor), seed)
            for schedule, factor, seed in keys
        ]
        curves = on_cores(call, jobs) if problem.alone else starmap(call, jobs)
        self.curves = dict(zip(keys, curves, strict=True))

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
            {"problem": one.title, "schedule": schedule, "learning rate": rule.lr, "K": rule.share,
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
    return every


def backoff(findings, chosen):
    """The rates on least squares, and what an xLSTM ends with."""
    every, epochs = trainings("backoff", findings, chosen), squares_of(chosen).epochs
    findings.document(*(
        every[name].exponent(schedule, OVER, epochs)
        for schedule in (BACKOFF, INVERSE)
        for name in ("serial", "hogwild")
    ))  # fmt: skip
    findings.document(*every["xlstm"].ahead(CONSTANT, USUAL))


def lock_free_schedules(findings, chosen):
    """What an xLSTM ends with by lock-free workers."""
    for one in trainings("lock_free_schedules", findings, chosen).values():
        findings.document(*one.ahead(INVERSE, CONSTANT, "cosine", "wsd"))


PARTS = {one.__name__: one for one in (backoff, lock_free_schedules)}


def tuning(chosen):
    """Search learning rate and K of every schedule, K of those without it, too."""
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
            return problem.train(Rule(schedule, **point), TUNED_ON)[-1]

        tune(part, axes, loss)


if __name__ == "__main__":
    run(__doc__, PARTS, actions={"tune": tuning}, packages=("torch",), seeds=(3, 8))
