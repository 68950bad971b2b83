"""What staleness costs in gradients: exact staleness, simulated by one process.

    python benchmarks/staleness.py          d 64 x 3, staleness 1 and 3: minutes
    python benchmarks/staleness.py --full   d 128 x 4 as well, up to 31: half an hour
    python benchmarks/staleness.py --tune   search the learning rates of both: 25 minutes

One process takes every gradient at parameters that are exactly tau updates old (`--strategy sim`),
as tau + 1 workers that apply in turn do. All trainings compute 1,200 gradients and end there, by a
cosine schedule; every one has its own learning rate. The cost of staleness is the number of
gradients over those that serial Muon needs for the same loss, in trainings that end earlier. Muon
has moments of all workers, takes gradients where the parameters will be, and has a momentum of its
own from 4 workers on. Averaged gradients (sync) stand beside it. What staleness costs shrinks with
the length of a training, so a limit belongs to a budget and a model: after 300 gradients of d 128 x
4 with weight prediction cost 1.14 at staleness 1 and 1.88 at 3. Counting gradients, a busy machine
changes nothing.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from harness.claims import Control, counted
from harness.estimates import Mean, Ratio
from harness.frame import other_seed, run
from harness.interleaved import on_cores
from harness.tuning import around, settings, tune
from training.recording import MINI, SIZES, TINY, Bench, count_parameters, model_file, workers

from mlxhog.research.bounds import apply

SERIAL, AHEAD, AVERAGED = "Muon serial", "Muon in turn, weight prediction", "Muon averaged"
COUNTS = {AHEAD: (2, 4, 8, 16, 32), AVERAGED: (2, 4)}
"""Workers of --full, real or simulated: the staleness is one less."""
BACKEND = "mlx:cpu"  # starts soonest
MOST = {1: 1.10, 3: 1.25, 7: 1.6}
"""What staleness may cost, after `GRADIENTS`."""
SHARES = (0.015625, 0.03125, 0.0625, 0.125, 0.25, 0.5, 0.75, 1.0, 1.25)
"""Of the gradients: where serial trainings end."""
GRADIENTS = 1200
CLAIMED = 20
"""The document's least staleness up to which the cost is linear."""
LINEAR = 2.0
"""Largest ratio of two slopes of a line."""
SMALL, LARGE = "xlstm d 64, 3 blocks", "xlstm d 128, 4 blocks"
MODELS = {SMALL: (MINI, 2), LARGE: (SIZES, 1), "tiny": (TINY, 2)}
"""Sizes and sequences of a gradient."""


def first_rate(name, count):
    """The middle of the axis of learning rates."""
    return 3e-3 * min(count, 4) if name == AVERAGED else 3e-3 if count < 8 else 2e-3


def models(chosen):
    """The models of a mode; the first has the limits of our own."""
    return chosen.pick(tiny=("tiny",), quick=(SMALL,), full=(SMALL, LARGE))


def arms(chosen, model):
    """The arms of a model in a mode, beside the curve of serial Muon."""
    if chosen.quick:
        return [(AHEAD, 2)] if chosen.tiny else [(AHEAD, 2), (AHEAD, 4), (AVERAGED, 2)]
    rules = COUNTS if model == SMALL else (AHEAD,)
    return [(name, count) for name in rules for count in COUNTS[name]]


def options(name, count):
    """Options of `TrainConfig`; momentum as the study of `--predict last` found it."""
    muon = {"optimizer": "muon", "schedule": "cosine", "workers": BACKEND}
    if count == 1:
        return {**muon, "strategy": "serial"}
    if name == AVERAGED:
        return {**muon, "strategy": "sync", "beta1": 0.75, "workers": workers(count, BACKEND)}
    momentum = {"beta1": 0.95, "nesterov": 0.15} if count >= 4 else {}
    ahead = {"moments": "shared", "predict": "last", "sim_staleness": f"fixed:{count - 1}"}
    return {**muon, "strategy": "sim", **ahead, **momentum}


class Job(NamedTuple):
    """One training; what it ends with depends on nothing else, so several run side by side.

    Attributes:
        arm: rule and workers.
        model: its name.
        seed: of the training.
        gradients: that it computes.
        lr: its learning rate.
    """

    arm: tuple[str, int]
    model: str
    seed: int
    gradients: int
    lr: float


@lru_cache
def bench_of(model):
    sizes, batch = MODELS[model]
    validation = 1024 if model == "tiny" else 65_536
    return Bench(sizes, batch=batch, looks=2, val_subset_tokens=validation)


def train(arm, model, seed, gradients, lr):
    """Validation bits per byte after all gradients of a `Job`."""
    bench, (name, count) = bench_of(model), arm
    return bench.train(
        f"{name}, {count}, {gradients}, lr {lr:.2g}", seed=seed, lr=lr,
        tokens=gradients * bench.per_step, **options(name, count),
    ).end  # fmt: skip


def jobs_of(chosen, n):
    """Every training of a mode: arms and serial trainings of several lengths, with each seed.

    All repeat bit for bit, so the A/A arm is a serial one with other seeds.
    """
    needed = [f"{model}, {name}, {k}" for model in models(chosen)
              for name, k in [(SERIAL, 1), *arms(chosen, model)]]  # fmt: skip
    known = {} if chosen.tiny else settings("staleness", needed)
    shares = chosen.pick(tiny=(0.5, 1.0), quick=(0.7, 1.0), full=SHARES)

    def job(arm, model, seed, gradients=n):
        lr = known.get(f"{model}, {arm[0]}, {arm[1]}", {"lr": first_rate(*arm)})["lr"]
        return Job(arm, model, seed, gradients, lr)

    jobs = []
    for seed in chosen.seeds:
        for model in models(chosen):
            jobs += [job((SERIAL, 1), model, seed, round(n * share)) for share in shares]
            jobs += [job(arm, model, seed) for arm in arms(chosen, model)]
            jobs.append(job((SERIAL, 1), model, other_seed(seed)))
    return jobs


def measure(findings, chosen):
    """Train every arm with every seed, and compare with serial trainings of the same seed."""
    n = chosen.pick(tiny=40, quick=GRADIENTS, full=GRADIENTS)
    jobs = jobs_of(chosen, n)
    ends = dict(zip(jobs, on_cores(train, jobs), strict=True))
    measured = [Measured(model, chosen.seeds, n, ends) for model in models(chosen)]
    findings.table(row for one in measured for row in one.rows())
    findings.document(*(claim for one in measured for claim in one.graceful()))
    first = measured[0]
    findings.claims += [
        counted(
            f"staleness {lag}, weight prediction / serial, gradients, {n:,} of {first.model}",
            first.cost((AHEAD, lag + 1)), "<=", most,
        )
        for lag, most in MOST.items()
        if (AHEAD, lag + 1) in first.bits and not chosen.tiny
    ]  # fmt: skip
    findings.controls += [one.control for one in measured]
    findings.results |= {
        "settings": {"gradients": n, "models": MODELS},
        "serial": {f"{seed}": curve for seed, curve in first.curves.items()},
        "bits_per_byte": {f"{name}, {k}": v for (name, k), v in first.bits.items()},
        "costs": [
            {"model": one.model, "rule": name, "workers": count, "costs": costs}
            for one in measured
            for (name, count), costs in one.costs.items()
        ],
    }


class Measured:
    """The trainings of one model.

    Attributes:
        curves: of each seed, gradients and bits per byte where serial trainings end.
        bits: of each arm, by seed.
        costs: gradients of each arm, as multiples of those of serial Muon for the same loss.
        control: serial trainings beside those with other seeds.
    """

    def __init__(self, model, seeds, n, ends):
        self.model, self.curves, self.bits = model, {}, {}
        self.parameters = count_parameters(model_file(**MODELS[model][0]))
        for job, bits in ends.items():
            if job.model == model and job.arm == (SERIAL, 1):
                self.curves.setdefault(job.seed, []).append((job.gradients, bits))
            elif job.model == model:
                self.bits.setdefault(job.arm, []).append(bits)
        again = [dict(self.curves.pop(other_seed(seed)))[n] for seed in seeds]
        own = [dict(self.curves[seed])[n] for seed in seeds]
        self.control = Control.of(f"{SERIAL}, other seeds, {model}", own, again)
        self.costs = {
            arm: [times_serial(self.curves[seed], n, bits)
                  for seed, bits in zip(seeds, of_seeds, strict=True)]
            for arm, of_seeds in self.bits.items()
        }  # fmt: skip
        self.most = max(count for name, count in self.bits if name == AHEAD)

    def cost(self, arm):
        """What an arm costs, over seeds."""
        return Ratio.of(self.costs[arm], [1.0] * len(self.costs[arm]))

    def slopes(self, count):
        """What each unit of staleness costs, as a share of a serial run, by seed."""
        return [(cost - 1.0) / (count - 1) for cost in self.costs[AHEAD, count]]

    def rows(self):
        """One row per arm."""
        return [
            {"model": self.model, "rule": name, "workers": count,
             "bits per byte": Mean.of(self.bits[name, count]).spelt(".3f"),
             "gradients / serial Muon": self.cost((name, count)).spelt(".3f"),
             "penalty of Proposition 4.1": self.proposition(count)}
            for name, count in self.bits
        ]  # fmt: skip

    def proposition(self, count):
        """Gradients by Proposition 4.1 over serial's, if it applied: rho = Delta = 1."""
        known = {"tau": count - 1, "omega": self.parameters, "rho": 1.0, "delta": 1.0}
        return float(apply("proposition 4.1", {}, **known)["values"]["penalty"])

    def graceful(self):
        """A unit of staleness costs less than a serial run, and as much as it did at half of it;
        and all of it less than Proposition 4.1 allows, which no training here could reach.

        Only a staleness as large as the document's decides; a smaller one is a number without an
        interval.
        """
        slopes = self.slopes(self.most)
        known = self.most > CLAIMED and all(map(math.isfinite, slopes))
        unit = Mean.of(slopes) if known else Mean(float(np.mean(slopes)), n=len(slopes))
        name = f"{self.model}: each unit of staleness {self.most - 1}, in serial runs"
        claims = [counted(name, unit, "<=", 1.0)]
        name = f"{self.model}: gradients at staleness {self.most - 1} over serial's"
        cost = self.cost((AHEAD, self.most))
        claims.append(counted(name, cost, "<=", self.proposition(self.most)))
        if self.most > CLAIMED:
            bend = Ratio.of(slopes, self.slopes(self.most // 2))
            name = f"{self.model}: the same / each unit of staleness {self.most // 2 - 1}"
            claims.append(counted(name, bend, "<=", LINEAR))
        return claims


def times_serial(curve, n, bits):
    """How many times the gradients of serial trainings a loss took.

    Infinite if it is above that of the shortest one; at least what the longest one took.
    """
    losses, lengths = zip(*sorted((loss, k) for k, loss in curve), strict=True)
    if not bits <= losses[-1]:
        return math.inf
    return n / math.exp(float(np.interp(bits, losses, np.log(lengths))))


def tuning(chosen):
    """Search every arm's learning rate: the lowest loss after the gradients of both modes."""
    names = {
        f"{model}, {name}, {k}": ((name, k), model)
        for model in models(chosen)
        for name, k in [(SERIAL, 1), *arms(chosen, model)]
    }
    axes = {at: {"lr": around(first_rate(*arm), 1.5, 9)} for at, (arm, _) in names.items()}
    tune("staleness", axes, lambda at, point: train(*names[at], 0, GRADIENTS, **point))


if __name__ == "__main__":
    run(__doc__, measure, actions={"tune": tuning}, packages=("mlx",), seeds=(3, 5))
