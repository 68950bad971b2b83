"""The cost of staleness in gradients: exact staleness, simulated by one process.

    python benchmarks/experiments/staleness.py          d 64 x 3, staleness 1 and 3: minutes
    python benchmarks/experiments/staleness.py --full   d 128 x 4 as well, up to 31: half an hour
    python benchmarks/experiments/staleness.py --tune   search the step sizes of both: 25 minutes

All compute 1,200 gradients, d 64 x 3 of 512 tokens, d 128 x 4 of 256. What staleness costs shrinks
with the length of a training, so a limit belongs to a budget and a model: after 300 gradients of
d 128 x 4 looking ahead cost 1.14 at staleness 1 and 1.88 at 3.
"""

from __future__ import annotations

import math
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from statistics import median

import numpy as np
from experiment.figures import curves, inks, new_panels
from experiment.language import Bench, Setup, setup, workers
from experiment.record import Compared, Experiment, Outcome, Scale, other_seed, run
from experiment.runs import Runs
from experiment.searches import Trials, descend, recorded
from harness.claims import Claim, Twin
from harness.estimates import Mean, Ratio
from harness.machine import cores
from training.recording import count_parameters, model_file

from mlxhog.theory.bounds import Facts, apply

ABOUT = Experiment(
    name="staleness",
    title="What staleness costs in gradients",
    source="document 001, Test 4",
    about=(
        "One process takes every gradient at parameters that are exactly tau updates old "
        "(`--strategy sim`), as tau + 1 workers that apply in turn do. All trainings compute "
        "equally many gradients and end there, by a cosine schedule; every one has its own step "
        "size, found by a search. The cost of staleness is the number of gradients over those that "
        "serial Muon needs for the same loss, in trainings that end earlier. Muon and AdamW have "
        "the same cures: moments of all workers, and gradients taken where the parameters will be; "
        "Muon has a momentum of its own from four workers on. Serial trainings that end earlier "
        "take the step size of the longest. Averaged gradients (sync) and two lock-free workers "
        "stand beside them. Counting gradients, a busy machine changes nothing."
    ),
    packages=("mlx",),
    full_seeds=3,
)
MUON = {"optimizer": "muon"}
ADAMW = {"optimizer": "adamw"}
CURED = {"moments": "shared", "predict": "last"}
ARMS = {
    "Muon in turn, looking ahead": {**MUON, **CURED, "strategy": "sim"},
    "AdamW in turn, looking ahead": {**ADAMW, **CURED, "strategy": "sim"},
    "Muon in turn, own moments": {**MUON, "strategy": "sim"},
    "AdamW in turn": {**ADAMW, "strategy": "sim"},
    "Muon in turn, shared moments": {**MUON, "moments": "shared", "strategy": "sim"},
    "AdamW in turn, shared moments": {**ADAMW, "moments": "shared", "strategy": "sim"},
    "Muon averaged": {**MUON, "strategy": "sync"},
    "Muon lock-free, looking ahead": {**MUON, **CURED, "strategy": "hogwild"},
}
SERIAL, SERIAL_ADAMW = "Muon serial", "AdamW serial"
BEST, BEST_ADAMW = "Muon in turn, looking ahead", "AdamW in turn, looking ahead"
LOCK_FREE, AVERAGED = "Muon lock-free, looking ahead", "Muon averaged"
COUNTS = {
    BEST: (2, 4, 8, 16, 32),
    BEST_ADAMW: (2, 8, 32),
    "Muon in turn, own moments": (4,),
    "AdamW in turn": (4,),
    "Muon in turn, shared moments": (4,),
    "AdamW in turn, shared moments": (4,),
    AVERAGED: (2, 4),
    LOCK_FREE: (2,),
}
"""Workers of --full, real or simulated: the staleness is one less. The larger model has the rules
with both cures only: what one of them does is seen at the smaller one."""
BACKEND = "mlx:cpu"  # starts soonest
MOST = {1: 1.10, 3: 1.25, 7: 1.6}
"""What staleness may cost the best rule, after `GRADIENTS`."""
SHARES = (0.015625, 0.03125, 0.0625, 0.125, 0.25, 0.5, 0.75, 1.0, 1.25)
FEW_SHARES = (0.7, 1.0)
"""Of the gradients: where serial trainings end."""
GRADIENTS = 1200
MINI = {"hidden_size": 64, "num_hidden_layers": 3}
FACTOR = 1.5
CLAIMED = 20
"""The document's least staleness up to which the cost is linear."""
LINEAR = 2.0
"""Largest ratio of two slopes of a line."""

Arm = tuple[str, int]
"""Rule, workers."""


def first_rate(name, count):
    """Where the search for a step size begins."""
    if "AdamW" in name:
        return 3e-3 / math.sqrt(count)
    if name == AVERAGED:
        return 3e-3 * min(count, 4)
    return 3e-3 if count < 8 or name == SERIAL else 2e-3


def momentum(name, count):
    """Momentum by rule and number of workers, as the study of `--predict last` found it."""
    if name == AVERAGED:
        return {"beta1": 0.9 if count == 1 else 0.75}
    return {"beta1": 0.95, "nesterov": 0.15} if "Muon" in name and count >= 4 else {}


def arms(scale, model):
    """The arms of a model in a mode, beside the curve of serial Muon."""
    if scale.mode == "tiny":
        return [(BEST, 2), (BEST_ADAMW, 2)]
    if scale.mode == "quick":
        return [(BEST, 2), (BEST, 4), (AVERAGED, 2)]
    rules = COUNTS if models(scale)[model].sizes == MINI else (BEST, BEST_ADAMW)
    return [(SERIAL_ADAMW, 1), *((name, count) for name in rules for count in COUNTS[name])]


def options(name, count):
    """Options of `TrainConfig`."""
    if count == 1:
        rule = ADAMW if name == SERIAL_ADAMW else MUON
        return {**rule, "strategy": "serial", "workers": BACKEND, "schedule": "cosine"}
    rule = {**ARMS[name], **momentum(name, count), "schedule": "cosine"}
    if rule["strategy"] == "sim":
        return {**rule, "sim_staleness": f"fixed:{count - 1}", "workers": BACKEND}
    return {**rule, "workers": workers(count, BACKEND)}


def models(scale):
    """Setups of a mode, by the name of their model; the first has the limits of our own."""
    held_out = 1024 if scale.mode == "tiny" else 65_536
    mini = Setup(MINI)
    some = scale.pick(
        tiny=(setup(scale),), quick=(mini,), full=(mini, replace(setup(scale), batch=1))
    )
    every = [replace(one, looks=2, eval_tokens=held_out) for one in some]
    return {one.to_json()["model"]: one for one in every}


def settings(scale):
    """Gradients, and the recorded step sizes by model and arm; none where numbers mean nothing.

    Raises:
        SystemExit: nothing was searched for an arm.
    """
    if scale.mode == "tiny":
        return {"gradients": 40, "lr": {}}
    rates = recorded(ABOUT.name).get("lr", {})
    missing = [
        f"{name}, {count} ({model})"
        for model in models(scale)
        for name, count in [(SERIAL, 1), *arms(scale, model)]
        if f"{name}, {count}" not in rates.get(model, {})
    ]
    if missing:
        raise SystemExit(
            f"no step size was searched for --{scale.mode} of {'; '.join(missing)}; run "
            f"python benchmarks/experiments/{ABOUT.name}.py --tune"
        )
    return {"gradients": GRADIENTS, "lr": {model: rates[model] for model in models(scale)}}


@dataclass(frozen=True)
class Job:
    """One training, for a pool of processes; what it ends with depends on nothing else.

    Attributes:
        arm: rule and workers.
        model: its name.
        seed: of the training.
        gradients: that it computes.
        lr: its step size.
        again: whether it is the second of two equal ones (A/A), or such with another seed.
    """

    arm: Arm
    model: str
    seed: int
    gradients: int
    lr: float
    again: bool = False


@lru_cache
def _bench(mode, model):
    return Bench(models(Scale(mode))[model])


def train(mode, job):
    """Held-out bits per byte after all gradients, and the staleness that was seen."""
    bench, (name, count) = _bench(mode, job.model), job.arm
    one = bench.train(
        f"{name}, {count}, {job.gradients}, lr {job.lr:.2g}",
        seed=job.seed,
        tokens=job.gradients * bench.setup.batch * bench.setup.seq_len,
        lr=job.lr,
        **options(name, count),
    )
    return {"bits": one.end, "staleness": one.staleness}


def pool():
    """A process on every core, two at most."""
    return ProcessPoolExecutor(min(2, len(cores())), multiprocessing.get_context("spawn"))


def result(scale):
    """Train every arm with every seed, and compare with serial trainings of the same seed."""
    chosen, runs = settings(scale), Runs(ABOUT, scale, timed=False)
    shares = scale.pick(tiny=(0.5, 1.0), quick=FEW_SHARES, full=SHARES)
    n = chosen["gradients"]

    def job(arm, model, seed, gradients=n, again=False):
        name, count = arm
        lr = chosen["lr"].get(model, {}).get(f"{name}, {count}", first_rate(name, count))
        return Job(arm, model, seed, gradients, lr, again)

    jobs = []
    for seed in scale.seeds:
        for model in models(scale):
            jobs += [job((SERIAL, 1), model, seed, round(n * share)) for share in shares]
            jobs += [job(arm, model, seed) for arm in arms(scale, model)]
            if (LOCK_FREE, 2) in arms(scale, model):
                jobs.append(job((LOCK_FREE, 2), model, seed, again=True))
            else:
                jobs.append(job((SERIAL, 1), model, other_seed(seed), again=True))
    with pool() as processes:
        waiting = {
            one: processes.submit(train, scale.mode, one)
            for one in jobs
            if one.arm != (LOCK_FREE, 2) and not runs.knows(vars(one)) and scale.mode != "tiny"
        }
        trained = {one: runs.of(vars(one), waiting[one].result) for one in waiting}
    # What is known, and lock-free workers, which have the cores alone.
    ends = {
        one: trained.get(one) or runs.of(vars(one), partial(train, scale.mode, one)) for one in jobs
    }
    measured = [Measured(model, scale, n, ends) for model in models(scale)]
    return outcome(scale, measured, chosen)


class Measured:
    """The trainings of one model.

    Attributes:
        curves: of each seed, gradients and bits per byte where serial trainings end.
        bits: of each arm, by seed.
        costs: gradients of each arm, as multiples of those of serial Muon for the same loss.
        again: bits of the A/A arm: the lock-free one a second time, as all others repeat bit for
            bit; where it is not trained, serial ones with other seeds.
    """

    def __init__(self, model, scale, n, ends):
        """Sort what came of the trainings."""
        own = {job: end for job, end in ends.items() if job.model == model}
        self.model, self.n = model, n
        self.parameters = count_parameters(model_file(**models(scale)[model].sizes))
        self.curves = {
            seed: [
                (job.gradients, float(end["bits"]))
                for job, end in own.items()
                if (job.arm, job.seed, job.again) == ((SERIAL, 1), seed, False)
            ]
            for seed in scale.seeds
        }
        self.bits = {}
        self.staleness = {}
        self.again = []
        for job, end in own.items():
            if job.again:
                self.again.append(float(end["bits"]))
            elif job.arm != (SERIAL, 1):
                self.bits.setdefault(job.arm, []).append(float(end["bits"]))
                self.staleness.setdefault(job.arm, []).append(float(end["staleness"]))
        self.costs = {
            arm: [
                times_serial(self.curves[seed], n, bits)
                for seed, bits in zip(scale.seeds, of_seeds, strict=True)
            ]
            for arm, of_seeds in self.bits.items()
        }

    def cost(self, arm):
        """What an arm costs, over seeds."""
        return Ratio.of(self.costs[arm], [1.0] * len(self.costs[arm]))

    def twin(self):
        """An arm beside itself."""
        if (LOCK_FREE, 2) in self.bits:
            return Twin.of(f"{LOCK_FREE}, {self.model}", self.bits[LOCK_FREE, 2], self.again)
        ends = [dict(curve)[self.n] for curve in self.curves.values()]
        return Twin.of(f"{SERIAL}, other seeds, {self.model}", ends, self.again)

    def slopes(self, name, count):
        """What each unit of staleness costs, as a share of a serial run, by seed."""
        return [(cost - 1.0) / (count - 1) for cost in self.costs[name, count]]

    def rows(self, lr):
        """One row per arm."""
        return [
            {
                "model": self.model,
                "rule": name,
                "workers": count,
                "staleness": round(median(self.staleness[name, count]), 2),
                "bits per byte": Mean.of(self.bits[name, count]).spelt(".3f"),
                "gradients / serial Muon": self.cost((name, count)).spelt(".3f"),
                "step size": lr.get(f"{name}, {count}", first_rate(name, count)),
                "penalty of Proposition 4.1": proposition(count - 1, self.parameters),
            }
            for name, count in self.bits
        ]

    def of(self, rule):
        """The numbers of workers that a rule was trained with."""
        return [count for name, count in self.bits if name == rule]


def proposition(tau, n_params):
    """Gradients by Proposition 4.1 as multiples of serial's, if it applied: rho = Delta = 1."""
    facts = Facts(strongly_convex=False, smooth=True, bounded_gradients=False, sgd=False, delta=1.0)
    bound = apply("penalty", facts, tau=tau, omega=n_params, rho=1.0, delta=1.0)
    return float(bound.values["penalty"])


def times_serial(curve, n, bits):
    """How many times the gradients of serial trainings a loss took.

    Infinite if it is above that of the shortest one; at least what the longest one took.
    """
    losses, lengths = zip(*sorted((loss, k) for k, loss in curve), strict=True)
    if not bits <= losses[-1]:
        return math.inf
    return n / math.exp(float(np.interp(bits, losses, np.log(lengths))))


def outcome(scale, measured, chosen):
    """Compare with serial Muon, seed by seed."""
    return Outcome(
        compared=[
            Compared.of(
                "graceful degradation, linear up to tau of about 20-30",
                *(claim for one in measured for claim in _graceful(one)),
            ),
            Compared.described(
                "compare to the prediction of Proposition 4.1",
                "; ".join(map(_beside_proposition, measured)),
            ),
        ],
        table=[row for one in measured for row in one.rows(chosen["lr"].get(one.model, {}))],
        claims=[] if scale.mode == "tiny" else _limits(measured[0]),
        settings={
            "gradients": chosen["gradients"],
            "tokens of a gradient": {
                name: one.batch * one.seq_len for name, one in models(scale).items()
            },
            "schedule": "cosine to a tenth of lr, warm-up over 3 %",
            "models": {one.model: f"{one.parameters:,} parameters" for one in measured},
        },
        results={
            "serial": {f"{seed}": curve for seed, curve in measured[0].curves.items()},
            "bits_per_byte": {f"{name}, {k}": v for (name, k), v in measured[0].bits.items()},
            "costs": [
                {"model": one.model, "rule": name, "workers": count, "costs": costs}
                for one in measured
                for (name, count), costs in one.costs.items()
            ],
        },
        twins=[one.twin() for one in measured],
    )


def _limits(one):
    """What staleness may cost the best rule."""
    return [
        Claim.of(
            f"staleness {lag}, looking ahead / serial, gradients, {one.n:,} of {one.model}",
            one.cost((BEST, lag + 1)),
            "<=",
            most,
            timing=False,
        )
        for lag, most in MOST.items()
        if (BEST, lag + 1) in one.bits
    ]


def _graceful(one):
    """A unit of staleness costs less than a serial run, and as much as it did at half of it.

    Only a staleness as large as the document's decides; a smaller one is a number without an
    interval.
    """
    most = max(one.of(BEST))
    slopes, name = one.slopes(BEST, most), f"each unit of staleness {most - 1}, in serial runs"
    decides = most > CLAIMED
    has_unit = decides and all(map(math.isfinite, slopes))
    unit = Mean.of(slopes) if has_unit else Mean(float(np.mean(slopes)), math.nan, len(slopes))
    claims = [Claim.of(f"{one.model}: {name}", unit, "<=", 1.0, timing=False)]
    if decides:
        bend = Ratio.of(slopes, one.slopes(BEST, most // 2))
        name = f"the same / each unit of staleness {most // 2 - 1}"
        claims.append(Claim.of(f"{one.model}: {name}", bend, "<=", LINEAR, timing=False))
    return claims


def _beside_proposition(one):
    """A number and a bound that no training here could reach."""
    most = max(one.of(BEST))
    return (
        f"{one.model}: staleness {most - 1} costs {one.cost((BEST, most)).spelt()} times the "
        f"gradients; with rho = Delta = 1 the proposition allows "
        f"{proposition(most - 1, one.parameters):.2g} times"
    )


def draw(outcome):
    """Gradients against staleness, every seed, and their mean by rule; one panel for each model."""
    points = outcome.results["costs"]
    names = list(dict.fromkeys(one["model"] for one in points))
    y = "gradients, multiples of serial Muon's"
    figure, panels = new_panels(*(("staleness", y, name) for name in names))
    for axes, model in zip(panels, names, strict=True):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        costs = {}
        for one in points:
            if one["model"] == model:
                costs.setdefault(one["rule"], {})[one["workers"] - 1] = one["costs"]
        colors = inks(costs)
        for rule, of_rule in costs.items():
            for tau, values in of_rule.items():
                axes.plot([tau] * len(values), values, ".", color=colors[rule], alpha=0.5)
        means = {
            rule: [Ratio.of(values, [1.0] * len(values)).value for values in of_rule.values()]
            for rule, of_rule in costs.items()
        }
        curves(axes, {rule: (list(costs[rule]), own) for rule, own in means.items()})
    return figure


def tune():
    """Find every arm's step size: the lowest loss after the gradients of --quick and of --full.

    What an earlier search has tried is not tried again. Two searches run side by side.
    """
    trials = Trials(ABOUT.name)
    rates = trials.settings.setdefault("lr", {})
    with pool() as processes, ThreadPoolExecutor(2) as searches:
        for mode in ("quick", "full"):
            for model in models(Scale(mode)):
                known = rates.setdefault(model, {})
                every = [(SERIAL, 1), *arms(Scale(mode), model)]
                best = searches.map(
                    partial(_best_rate, processes, trials, mode, model, known), every
                )
                known |= {f"{name}, {k}": rate for (name, k), rate in zip(every, best, strict=True)}
                trials.write()


def _best_rate(processes, trials, mode, model, known, arm):
    what = {"model": model, "rule": arm[0], "workers": arm[1], "gradients": GRADIENTS}

    def score(lr):
        job = Job(arm, model, 0, GRADIENTS, lr)
        return trials.score(
            {**what, "lr": lr}, lambda: processes.submit(train, mode, job).result()["bits"]
        )

    return descend(score, known.get(f"{arm[0]}, {arm[1]}", first_rate(*arm)), FACTOR)


if __name__ == "__main__":
    raise SystemExit(run(ABOUT, result, draw, tune=tune))
