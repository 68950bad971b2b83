"""Constant steps, 1/k and exponential back-off: at the best step size, and at wrong ones.

    python benchmarks/backoff.py          three seeds
    python benchmarks/backoff.py --full   five
    python benchmarks/backoff.py --tune   search step size and K of every schedule

Back-off takes the first step size for K gradients, .37 of it for K/.37, and so on; 1/k is
lr / (1 + k/K). Beside them constant steps and what the program does elsewhere: the paper's .9 per
twentieth of the run on least squares, half a cosine on models. Each has the step size, and the K,
that a search found best at this number of gradients. Then each training is repeated with a step
size 4 times larger and one 4 times smaller, as if the curvature were misjudged, and the same K. All
differences are taken seed by seed.
"""

import math
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from statistics import fmean

import numpy as np
from harness.claims import counted
from harness.estimates import Mean
from harness.frame import MODES, flags, measured, other_seed
from harness.interleaved import on_cores
from harness.tuning import around, settings, tune
from training.recording import end_bits, model_file

from mlxhog.classic.config import ClassicConfig
from mlxhog.classic.datasets import SparseRows
from mlxhog.classic.problem import Defaults
from mlxhog.classic.problems.linear import SparseLinear
from mlxhog.classic.run import train as solve
from mlxhog.config.schedules import BETA, backoff_start
from mlxhog.mad.options import PUBLISHED, Protocol
from mlxhog.mad.run import RunConfig
from mlxhog.mad.tasks import resolve
from mlxhog.mad.training.candidate import train as train_candidate
from mlxhog.models.mad.sequence import parse

CONSTANT, INVERSE, BACKOFF, USUAL = "constant", "1/k", "back-off", "usual"
SCHEDULES = (CONSTANT, INVERSE, BACKOFF, USUAL)
"""`USUAL` is what the program does elsewhere."""
FALLING = {INVERSE: "inverse", BACKOFF: "backoff"}
WORST = 1.0  # log10 of the excess beyond which a run counts as diverged: ten times the start's
TUNED_ON = 101


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

    def options(self, gradients, usual):
        """The options of `TrainConfig` and of a MAD `Protocol`."""
        if self.schedule not in FALLING:
            return {"schedule": usual if self.schedule == USUAL else self.schedule, "lr": self.lr}
        steps = max(1, round(self.share * gradients))
        return {"schedule": FALLING[self.schedule], "lr": self.lr, "backoff_steps": steps}


def schedule_axes(lr, share=0.25):
    """What the search tries of a schedule; one without a K gives the same for every share."""
    return {"lr": around(lr, 2.0, 9), "share": around(share, 2.0, 7)}


# -- what is trained ------------------------------------------------------------------------------


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
        problem, least, _ = _least_squares(self, seed)
        options = {"scheme": "serial"}
        if self.workers > 1:
            options = {"scheme": "hogwild", "workers": self.workers, "write": "lossless"}
        if rule.schedule in FALLING:
            options["backoff_epochs"] = max(1, round(rule.share * self.epochs))
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

    def curvature(self, seed):
        """Strong convexity and smoothness of the mean loss of an example."""
        return _least_squares(self, seed)[2]


def _log10(excess):
    """Logarithm of an excess; `WORST` where it diverged."""
    return min(WORST, math.log10(max(excess, 1e-12))) if math.isfinite(excess) else WORST


@lru_cache(maxsize=2)
def _least_squares(size, seed):
    """The problem, its least objective, and the extreme eigenvalues of A'A / rows."""
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
    square, targets = dense.T @ dense, rows.labels.astype(np.float64)
    optimum = np.linalg.solve(square, dense.T @ targets)
    least = 0.5 * float(np.square(dense @ optimum - targets).sum())
    eigenvalues = np.linalg.eigvalsh(square / n)
    return problem, least, (float(eigenvalues[0]), float(eigenvalues[-1]))


@dataclass(frozen=True)
class Language:
    """A model like `tiny` on the corpus sotu, trained by AdamW without a warm-up."""

    width: int
    blocks: int
    gradients: int
    seq_len: int
    held_out: int
    batch: int = 2

    def train(self, rule, seed):
        """Held-out bits per byte."""
        options = {
            "model": model_file(hidden_size=self.width, num_hidden_layers=self.blocks),
            "batch_size": self.batch, "seq_len": self.seq_len, "steps": self.gradients,
            "optimizer": "adamw", "seed": seed, **rule.options(self.gradients, "cosine"),
            **({} if rule.schedule in FALLING else {"warmup": 0.0}),
        }  # fmt: skip
        return [end_bits(self.held_out, **options)]


@dataclass(frozen=True)
class Candidate:
    """One mixer and one channel mixer on selective copying of MAD, trained by AdamW."""

    dim: int
    gradients: int
    train_rows: int
    test_rows: int
    batch: int = 32
    layers: str = "mlstm(h4) swiglu"

    def train(self, rule, seed):
        """Share of the scored test positions that are wrong."""
        rows = {"train_rows": self.train_rows, "test_rows": self.test_rows}
        protocol = Protocol(
            optimizer=PUBLISHED, batch_size=self.batch, steps=self.gradients,
            eval_every=self.gradients, stop_accuracy=2.0, clip=1.0,
            **rule.options(self.gradients, "cosine"),
        )  # fmt: skip
        task = "selective-copying"
        values = resolve(task, {"seq_len": 40, "tokens_to_copy": 4, **rows})
        config = RunConfig(
            task=task, settings=vars(values), layers=parse(self.layers), dim=self.dim,
            protocol=protocol, seed=seed,
        )  # fmt: skip
        return [1.0 - train_candidate(config).acc_token]


def stage_ends(rule, epochs):
    """Epochs after which back-off has ended a stage, in the last nine tenths of a run."""
    steps = max(1, round(rule.share * epochs))
    ends, end = [], steps
    while end <= epochs:
        ends.append(end)
        end = math.ceil(backoff_start(1 + len(ends), steps=steps, beta=BETA))
    return [end for end in ends if end >= epochs / 10]


def slope(curve, at):
    """Exponent p of an excess that falls as k^p, by its values after some epochs k, from 1."""
    return float(np.polyfit(np.log10(at), [curve[k - 1] for k in at], 1)[0])


# -- the experiment -------------------------------------------------------------------------------

OVER = 4.0
"""How many times c is overestimated; the curvature is misjudged by as much either way."""
FIRST = {
    "serial": (0.03, 1 / 64),
    "hogwild": (0.03, 1 / 64),
    "xlstm": (4e-3, 0.5),
    "mad": (2e-3, 0.5),
}
"""The middles of the axes: step size, and K as a share of the gradients."""
TITLES = {
    "serial": "least squares, serial",
    "hogwild": "least squares, 2 lock-free workers",
    "xlstm": "xLSTM, bits per byte",
    "mad": "MAD block, test error",
}
CONVEX, MODELS = ("serial", "hogwild"), ("xlstm", "mad")
RATE = 0.9
"""An excess that falls as k^-.9 or faster counts as falling as 1/k."""


def problems(chosen):
    """What is trained in a mode."""
    squares, language, candidate = (
        (LeastSquares(200, 20, 12), Language(32, 1, 8, 32, 1024), Candidate(16, 8, 64, 16))
        if chosen.tiny
        else (LeastSquares(5000, 500, 256), Language(64, 2, 400, 128, 8192),
              Candidate(64, 200, 1600, 1024))
    )  # fmt: skip
    names = zip(TITLES, (squares, replace(squares, workers=2), language, candidate), strict=True)
    return dict(names)


def rules_of(chosen):
    """Problem -> schedule -> its rule at the recorded settings; any with --tiny."""
    names = [f"{problem}, {schedule}" for problem in TITLES for schedule in SCHEDULES]
    known = {} if chosen.tiny else settings("backoff", names)
    return {
        problem: {
            name: Rule(name, **known.get(f"{problem}, {name}", {"lr": 1e-2, "share": 0.25}))
            for name in SCHEDULES
        }
        for problem in TITLES
    }


def trained(job):
    """One training, for a pool of processes."""
    training, rule, seed = job
    return training.train(rule, seed)


def train_all(name, training, rules, seeds, misjudged):
    """Curves by schedule, factor and seed, and those of back-off with other seeds (A/A)."""
    jobs = {
        (schedule, factor, seed): (training, replace(rule, lr=rule.lr / factor), seed)
        for schedule, rule in rules.items()
        for factor in misjudged
        for seed in seeds
    }
    others = map(other_seed, seeds)
    jobs |= {(BACKOFF, 1.0, seed): (training, rules[BACKOFF], seed) for seed in others}
    # Lock-free workers need the cores themselves.
    ends = map(trained, jobs.values()) if name == "hogwild" else on_cores(trained, jobs.values())
    return dict(zip(jobs, ends, strict=True))


class Losses:
    """The trainings of a problem: what they ended with, by schedule, factor and seed."""

    def __init__(self, curves, seeds, misjudged):
        self.curves, self.seeds, self.misjudged = curves, seeds, misjudged

    def of(self, schedule, factor=1.0):
        """Losses of the seeds with a step size that is wrong by a factor."""
        return [self.curves[schedule, factor, seed][-1] for seed in self.seeds]

    def over_factors(self, combine, schedule):
        """For each seed one number of its losses with all factors."""
        by_factor = (self.of(schedule, factor) for factor in self.misjudged)
        return [combine(own) for own in zip(*by_factor, strict=True)]

    def beside(self, other, combine=None):
        """Back-off less another schedule, seed by seed; below 0 where back-off is better."""
        pick = self.of if combine is None else partial(self.over_factors, combine)
        return Mean.of_differences(pick(BACKOFF), pick(other))

    def exponents(self, schedule, factor, ends):
        """Of the excess, by its values at the ends of back-off's stages.

        In between it falls in stairs, whose parts would say nothing of the rate.
        """
        return [slope(self.curves[schedule, factor, seed], ends) for seed in self.seeds]


def measure(findings, chosen):
    """Train everything and compare."""
    trainings, rules = problems(chosen), rules_of(chosen)
    misjudged = (1.0, OVER) if chosen.tiny else (1 / OVER, 1.0, OVER)
    losses, ends = {}, {}
    for name, training in trainings.items():
        curves = train_all(name, training, rules[name], chosen.seeds, misjudged)
        losses[name] = one = Losses(curves, chosen.seeds, misjudged)
        again = [curves[BACKOFF, 1.0, other_seed(seed)][-1] for seed in chosen.seeds]
        findings.same(f"back-off, {TITLES[name]}", one.of(BACKOFF), again)
        if name in CONVEX:
            ends[name] = stage_ends(rules[name][BACKOFF], training.epochs)
    findings.table(
        {"problem": TITLES[name], "schedule": schedule, "step size": rule.lr, "K": rule.share,
         **{f"curvature x {f:g}": round(fmean(losses[name].of(schedule, f)), 4) for f in misjudged}}
        for name in TITLES
        for schedule, rule in rules[name].items()
    )  # fmt: skip
    compare(findings, losses, ends)
    c, smooth = trainings["serial"].curvature(chosen.seeds[0])
    findings.results |= {
        "settings": {**{name: asdict(one) for name, one in trainings.items()},
                     "curvature": {"c": round(c, 6), "L": round(smooth, 6)}},
        "losses": {
            name: {s: {f"{f:g}": one.of(s, f) for f in misjudged} for s in SCHEDULES}
            for name, one in losses.items()
        },
    }  # fmt: skip


def compare(findings, losses, ends):
    """The document's claims beside what was measured."""

    def falls(schedule, factor):
        """The excess falls as 1/k, on both convex problems."""
        return [
            counted(
                f"exponent of the excess, {schedule}, curvature x {factor:g}, {TITLES[name]}",
                Mean.of(losses[name].exponents(schedule, factor, ends[name])), "<=", -RATE,
            )
            for name in CONVEX
        ]  # fmt: skip

    def against(others, word, combine, names):
        return [
            counted(f"back-off less {other}, {word}, {TITLES[name]}",
                    losses[name].beside(other, combine), "<=", 0.0)
            for other in others
            for name in names
        ]  # fmt: skip

    def spelt(numbers, end):
        return "; ".join(f"{one.name}: {one.measured}" for one in numbers) + f". {end}"

    rate, over = falls(BACKOFF, 1.0), falls(BACKOFF, OVER)
    findings.claims += rate
    findings.compare(
        "Constant stepsize + exponential backoff achieves a 1/k rate.", *rate,
        measured=spelt(rate, f"Beside it {spelt(falls(INVERSE, 1.0), '')}By the ends of stages."),
    )  # fmt: skip
    findings.compare(
        "Faster in practice than 1/k (larger steps early on).",
        *against([INVERSE], "tuned", None, TITLES),
    )
    # A run that diverges counts as 1, so a difference to 1/k that does is a bound.
    findings.compare(
        "More robust than 1/k to curvature misestimation.",
        *against([INVERSE], "worst", max, TITLES),
    )
    findings.compare(
        "No exponential slowdown if c is overestimated: still 1/k.", *over,
        measured=spelt(over, f"c four times too large; beside: {spelt(falls(INVERSE, OVER), '')}"),
    )  # fmt: skip
    findings.compare(
        "For xLSTM: use constant stepsize with exponential backoff.",
        *against((CONSTANT, USUAL), "tuned", None, MODELS),
    )


def tuning(chosen):
    """Find step size and K of every schedule on every problem, at the size of --quick."""
    trainings = problems(chosen)
    arms = {f"{problem}, {name}": (problem, name) for problem in TITLES for name in SCHEDULES}

    def loss(arm, point):
        problem, name = arms[arm]
        return trainings[problem].train(Rule(name, **point), TUNED_ON)[-1]

    tune(
        "backoff", {arm: schedule_axes(*FIRST[problem]) for arm, (problem, _) in arms.items()}, loss
    )


def main():
    """Measure, or search."""
    chosen = flags(__doc__, **MODES, tune="search step size and K").parse_args()
    if chosen.tune:
        return tuning(chosen)
    return measured("backoff", chosen, measure, packages=("torch",), seeds=(3, 5))


if __name__ == "__main__":
    raise SystemExit(main())
