"""Constant steps, 1/k and exponential back-off: at the best step size, and at wrong ones."""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from statistics import fmean
from typing import NamedTuple

import numpy as np
from experiment.figures import INKS, curves, label_lines, new_panels
from experiment.record import Compared, Experiment, Outcome, Scale, other_seed, run, say
from experiment.searches import descend, is_recorded, recorded, write_recorded
from harness.claims import Claim, Twin
from harness.estimates import Mean
from harness.machine import cores, smallest
from training.recording import end_bits, model_file

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

    def options(self, gradients, usual):
        """The options of `TrainConfig` and of a MAD `Protocol`."""
        if self.schedule not in FALLING:
            return {"schedule": usual if self.schedule == USUAL else self.schedule, "lr": self.lr}
        steps = max(1, round(self.share * gradients))
        return {"schedule": FALLING[self.schedule], "lr": self.lr, "backoff_steps": steps}


class Trained(NamedTuple):
    """How a training went: its loss, and of least squares log10 of the excess after each epoch."""

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

    def train(self, rule, seed):
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

    def curvature(self, seed):
        """Strong convexity and smoothness of the mean loss of an example."""
        return _least_squares(self, seed)[2]

    def to_json(self):
        """What a second person needs."""
        return asdict(self)


def _log10(excess):
    """Logarithm of an excess; `WORST` where it diverged."""
    if not math.isfinite(excess):
        return WORST
    return min(WORST, math.log10(max(excess, 1e-12)))


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
    dense = np.zeros((n, d))
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

    def train(self, rule, seed):
        """Held-out bits per byte."""
        options = {
            "model": model_file(hidden_size=self.width, num_hidden_layers=self.blocks),
            "batch_size": self.batch, "seq_len": self.seq_len, "steps": self.gradients,
            "optimizer": "adamw", "seed": seed, **rule.options(self.gradients, "cosine"),
            **({} if rule.schedule in FALLING else {"warmup": 0.0}),
        }  # fmt: skip
        return Trained(end_bits(self.held_out, **options))

    def to_json(self):
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

    def train(self, rule, seed):
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

    def to_json(self):
        """What a second person needs."""
        return {**asdict(self), "values": dict(self.values), "optimizer": "adamw, clip 1"}


def train(training, rule, seed):
    """One training, for a pool of processes."""
    return training.train(rule, seed)


def search_rule(loss_of, schedule, lr, share, seeds):
    """Triples (K's share, step size, mean loss), from a first guess until every side is worse.

    Both are doubled and halved: K, and for each K the step size.

    Args:
        loss_of: of a training under a rule, with a seed.
        schedule: of `SCHEDULES`.
        lr: step size to begin with.
        share: of the gradients to begin with; kept at 0 where the schedule has no K.
        seeds: of each pair's trainings.
    """
    losses = {}
    rates = {}  # K's share -> its best step size

    def loss(share, lr):
        if (share, lr) not in losses:
            losses[share, lr] = fmean(loss_of(Rule(schedule, lr, share), seed) for seed in seeds)
        return losses[share, lr]

    def best(share):
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


def search(training, *arguments):
    """`search_rule` of a training, for a pool of processes."""
    return search_rule(lambda rule, seed: training.train(rule, seed).loss, *arguments)


def best_settings(searched):
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
    values = [curve[k - 1] for k in at]
    return float(np.polyfit(np.log10(at), values, 1)[0])


# -- the experiment -----------------------------------------------------------------------------

ABOUT = Experiment(
    name="backoff",
    title="Exponential back-off beside 1/k and constant steps",
    source="document 001, Robust 1/k Rates and Stepsize Selection",
    about=(
        "Back-off takes the first step size for K gradients, .37 of it for K/.37, and so on; 1/k "
        "is lr / (1 + k/K). Beside them constant steps and what the program does elsewhere: the "
        "paper's .9 per twentieth of the run on least squares, half a cosine on models. Each has "
        "the step size, and the K, that a search found best at this number of gradients (--tune). "
        "Then each training is repeated with a step size 4 times larger and one 4 times smaller, "
        "as if the curvature were misjudged, and the same K. All differences are taken seed by "
        "seed, with 95 % intervals of their mean (Student's t)."
    ),
    packages=("torch",),
)
OVER = 4.0
"""How many times c is overestimated; the curvature is misjudged by as much either way."""

FIRST = {
    "serial": (0.03, 1 / 64),
    "hogwild": (0.03, 1 / 64),
    "xlstm": (4e-3, 1 / 2),
    "mad": (2e-3, 1 / 2),
}
"""Step size, and K as a share of the gradients, that the search begins with."""

TUNING_SEEDS = (101, 102)
TITLES = {
    "serial": "least squares, serial",
    "hogwild": "least squares, 2 lock-free workers",
    "xlstm": "xLSTM, bits per byte",
    "mad": "MAD block, test error",
}
CONVEX, MODELS = ("serial", "hogwild"), ("xlstm", "mad")
RATE = 0.9
"""An excess that falls as k^-.9 or faster counts as falling as 1/k."""

Losses = Mapping[str, Mapping[float, Sequence[Trained]]]
"""Schedule -> factor -> a training of each seed."""


def problems(scale):
    """What is trained in a mode."""
    rows, epochs = scale.pick(tiny=(200, 12), quick=(5000, 256), full=(5000, 256))
    squares = LeastSquares(
        rows=rows,
        features=scale.pick(tiny=20, quick=500, full=500),
        per_row=10,
        condition=50.0,
        epochs=epochs,
    )
    rows_of_copying = (
        ("seq_len", 40),
        ("tokens_to_copy", 4),
        ("train_rows", scale.pick(tiny=64, quick=1600, full=1600)),
        ("test_rows", scale.pick(tiny=16, quick=1024, full=1024)),
    )
    return {
        "serial": squares,
        "hogwild": replace(squares, workers=2),
        "xlstm": scale.pick(
            tiny=Language(32, 1, gradients=8, batch=2, seq_len=32, held_out=1024),
            quick=Language(64, 2, gradients=400, batch=2, seq_len=128, held_out=8192),
            full=Language(64, 2, gradients=400, batch=2, seq_len=128, held_out=8192),
        ),
        "mad": Candidate(
            task="selective-copying",
            values=rows_of_copying,
            layers="mlstm(h4) swiglu",
            dim=scale.pick(tiny=16, quick=64, full=64),
            gradients=scale.pick(tiny=8, quick=200, full=200),
            batch=32,
        ),
    }


def factors(scale):
    """By which the curvature is misjudged: the step size is divided by them."""
    return (1.0, OVER) if scale.mode == "tiny" else (1 / OVER, 1.0, OVER)


def best_of(scale):
    """Problem -> schedule -> recorded settings; arbitrary ones where numbers mean nothing."""
    if scale.mode == "tiny":
        some = {s: {"lr": 1e-2, "share": 0.25 * (s in FALLING), "bracket": ""} for s in SCHEDULES}
        return dict.fromkeys(TITLES, some)
    best = recorded(ABOUT.name)
    return best


def pool():
    """A process on every core, two at most; with --tiny none."""
    if smallest(True, False):
        return nullcontext()
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(min(2, len(cores())), mp_context=spawn)


# -- measure --------------------------------------------------------------------------------------


def result(scale):
    """Train everything and compare."""
    trainings, seeds, misjudged = problems(scale), scale.seeds, factors(scale)
    rules = {
        problem: {name: Rule(name, one["lr"], one["share"]) for name, one in by.items()}
        for problem, by in best_of(scale).items()
    }
    losses = {}
    twins = []
    with pool() as workers:
        for name, training in trainings.items():
            one_by_one = name == "hogwild"  # it needs the cores itself
            losses[name], again = measure(
                training, rules[name], seeds, misjudged, None if one_by_one else workers
            )
            twins.append(Twin.of(f"back-off, {TITLES[name]}", tuned(losses[name], BACKOFF), again))
            say(f"{TITLES[name]}: {(4 * len(misjudged) + 1) * len(seeds)} trainings")
    convex = trainings["serial"]
    assert isinstance(convex, LeastSquares)
    low, high = convex.curvature(seeds[0])
    backoff = rules["serial"][BACKOFF]
    stage = backoff.share * convex.epochs * convex.rows  # gradients, K
    slopes = {
        name: rates(losses[name], stage_ends(rules[name][BACKOFF], convex.epochs))
        for name in CONVEX
    }
    return Outcome(
        compared=compared(losses, slopes),
        table=[row for name in TITLES for row in rows(name, losses[name], rules[name])],
        claims=falls(slopes, BACKOFF, 1.0),
        settings={
            "factors": " ".join(f"{factor:g}" for factor in misjudged),
            "curvature": {
                "c": round(low, 6),
                "L": round(high, 6),
                "K lr c / ln(2/.37)": round(stage * backoff.lr * low / math.log(2 / 0.37), 3),
            },
            **{name: training.to_json() for name, training in trainings.items()},
            "brackets": {
                f"{problem} {schedule}": one["bracket"]
                for problem, by in best_of(scale).items()
                for schedule, one in by.items()
            },
        },
        results={
            "losses": {
                name: {s: {f"{f:g}": tuned(each, s, f) for f in misjudged} for s in SCHEDULES}
                for name, each in losses.items()
            },
            "exponents": {
                name: {
                    f"{schedule}, {factor:g}": values for (schedule, factor), values in by.items()
                }
                for name, by in slopes.items()
            },
            "curves": {
                schedule: [round(value, 4) for value in by[1.0][0].curve]
                for schedule, by in losses["serial"].items()
            },
            "differences": {name: differences(losses[name]) for name in TITLES},
        },
        twins=twins,
    )


def measure(training, rules, seeds, misjudged, workers):
    """Train under every schedule, with every factor and seed, and back-off twice (A/A).

    Args:
        training: the problem.
        rules: its schedules at their best settings.
        seeds: of the trainings.
        misjudged: factors by which the curvature is misjudged.
        workers: that train side by side; None is in this process.
    """
    jobs = {
        (name, factor, seed): Rule(name, rule.lr / factor, rule.share)
        for seed in seeds
        for name, rule in rules.items()
        for factor in misjudged
    }
    jobs |= {(BACKOFF, 1.0, other_seed(seed)): rules[BACKOFF] for seed in seeds}
    if workers is None:
        trained = {key: train(training, rule, key[2]) for key, rule in jobs.items()}
    else:
        futures = {key: workers.submit(train, training, rule, key[2]) for key, rule in jobs.items()}
        trained = {key: future.result() for key, future in futures.items()}
    of_rules = {
        name: {factor: [trained[name, factor, seed] for seed in seeds] for factor in misjudged}
        for name in rules
    }
    return of_rules, [trained[BACKOFF, 1.0, other_seed(seed)].loss for seed in seeds]


def rates(losses, ends):
    """Exponent of the excess, of each seed, by its values at the ends of back-off's stages.

    In between the excess of back-off falls in stairs, whose parts would say nothing of the rate.
    """
    return {
        (schedule, factor): [slope(one.curve, ends) for one in losses[schedule][factor]]
        for schedule in (INVERSE, BACKOFF)
        for factor in (1.0, OVER)
    }


# -- compare --------------------------------------------------------------------------------------


def tuned(losses, schedule, factor=1.0):
    """Losses of the seeds with a step size that is wrong by a factor."""
    return [one.loss for one in losses[schedule][factor]]


def over_factors(combine, losses, schedule):
    """For each seed one number of its losses with all factors."""
    by_factor = [tuned(losses, schedule, factor) for factor in losses[schedule]]
    return [combine(values) for values in zip(*by_factor, strict=True)]


MEASURES = {
    "tuned": tuned,
    "worst": partial(over_factors, max),
    "average": partial(over_factors, fmean),
}
"""From the losses of a schedule to a number for each seed."""


def beside(losses, other, measure):
    """Back-off less another schedule, seed by seed; below 0 where back-off is better."""
    ours, theirs = (MEASURES[measure](losses, name) for name in (BACKOFF, other))
    return Mean.of_differences(ours, theirs)


def differences(losses):
    """Back-off beside every other schedule."""
    return {
        measure: {other: beside(losses, other, measure) for other in SCHEDULES if other != BACKOFF}
        for measure in MEASURES
    }


def falls(slopes, schedule, factor):
    """The excess falls as 1/k, on both convex problems."""
    return [
        Claim.of(
            f"exponent of the excess, {schedule}, curvature x {factor:g}, {TITLES[name]}",
            Mean.of(slopes[name][schedule, factor]),
            "<=",
            -RATE,
            timing=False,
        )
        for name in CONVEX
    ]


def compared(losses, slopes):
    """The document's claims beside what was measured."""

    def claimed(claim, rests_on, end):
        return Compared.of(claim, *rests_on, measured=f"{spelt(rests_on)}. {end}")

    def spelt(numbers):
        return "; ".join(f"{one.name} {one.measured}" for one in numbers)

    def against(other, measure, names):
        return [
            Claim.of(
                f"back-off less {other}, {measure}, {TITLES[name]}",
                beside(losses[name], other, measure),
                "<=",
                0.0,
                timing=False,
            )
            for name in names
        ]

    rivals = (CONSTANT, USUAL)
    worst = [one for other in rivals for one in against(other, "worst", MODELS)]
    return [
        claimed(
            "Constant stepsize + exponential backoff achieves a 1/k rate.",
            falls(slopes, BACKOFF, 1.0),
            "By the ends of stages in the last nine tenths of the run; beside it "
            f"{spelt(falls(slopes, INVERSE, 1.0))}. Below -{RATE:g} counts as 1/k.",
        ),
        claimed(
            "Faster in practice than 1/k (larger steps early on).",
            against(INVERSE, "tuned", list(TITLES)),
            "Both at their best step size: log10 of the excess on least squares, and losses.",
        ),
        claimed(
            "More robust than 1/k to curvature misestimation.",
            against(INVERSE, "worst", list(TITLES)),
            "The step size is the worst of some from a quarter of its best to 4 times it. A run "
            "that diverges counts as 1, so a difference to 1/k that does is a bound.",
        ),
        claimed(
            "No exponential slowdown if c is overestimated: still 1/k.",
            falls(slopes, BACKOFF, OVER),
            f"c four times too large; beside it {spelt(falls(slopes, INVERSE, OVER))}.",
        ),
        claimed(
            "For xLSTM: use constant stepsize with exponential backoff.",
            [one for other in rivals for one in against(other, "tuned", MODELS)],
            f"At the best step size of each. Where it is worst: {spelt(worst)}.",
        ),
    ]


def rows(name, losses, rules):
    """Rows of the table: mean losses over seeds by factor."""
    return [
        {
            "problem": TITLES[name],
            "schedule": {USUAL: "times .9" if name in CONVEX else "cosine"}.get(schedule, schedule),
            "step size": rule.lr,
            "K / gradients": rule.share or "",
            **{
                f"curvature x {factor:g}": round(fmean(tuned(losses, schedule, factor)), 4)
                for factor in losses[schedule]
            },
            "worst": round(fmean(MEASURES["worst"](losses, schedule)), 4),
        }
        for schedule, rule in rules.items()
    ]


# -- draw -----------------------------------------------------------------------------------------


def draw(outcome):
    """The excess over the run, and losses by how the curvature was misjudged."""
    axes_of = {"serial": "log10 of the excess", "xlstm": "bits per byte", "mad": "test error"}
    figure, (course, *panels) = new_panels(
        ("twentieths of a run", "log10 of the excess", "Least squares, best step sizes"),
        *(("curvature misjudged by", label, TITLES[name]) for name, label in axes_of.items()),
    )
    by_schedule = outcome.results["curves"].items()
    curves(course, {name: (np.linspace(0, 20, len(y) + 1)[1:], y) for name, y in by_schedule})
    course.set_xscale("log")
    for axes, name in zip(panels, axes_of, strict=True):
        for ink, (schedule, by) in zip(INKS, outcome.results["losses"][name].items(), strict=False):
            misjudged, values = [float(factor) for factor in by], np.array(list(by.values()))
            means = values.mean(axis=1)
            spread = [means - values.min(axis=1), values.max(axis=1) - means]
            axes.errorbar(
                misjudged, means, yerr=spread, fmt="o-", capsize=2, color=ink, label=schedule
            )
        axes.set_xscale("log", base=2)
        axes.set_xticks(misjudged, [f"{factor:g}" for factor in misjudged])
    label_lines(*panels)
    return figure


# -- search ---------------------------------------------------------------------------------------


def tune():
    """Find step size and K of every schedule on every problem, at the size of --quick, seed 0.

    A schedule with recorded settings is not searched again; delete them for a new search.
    """
    best = recorded(ABOUT.name) if is_recorded(ABOUT.name) else {}
    with pool() as workers:
        for problem, training in problems(Scale("quick")).items():
            lr, share = FIRST[problem]
            known = best.setdefault(problem, {})
            todo = {
                schedule: (training, schedule, lr, share, TUNING_SEEDS)
                for schedule in SCHEDULES
                if schedule not in known
            }
            if problem == "hogwild":  # it needs the cores itself
                searched = {name: search(*arguments) for name, arguments in todo.items()}
            else:
                futures = {name: workers.submit(search, *each) for name, each in todo.items()}
                searched = {name: future.result() for name, future in futures.items()}
            known |= {name: best_settings(trials) for name, trials in searched.items()}
            write_recorded(ABOUT.name, best)
            for schedule, one in known.items():
                say(f"{TITLES[problem]}, {schedule}: {one}")


if __name__ == "__main__":
    raise SystemExit(run(ABOUT, result, draw, tune=tune))
