"""What staleness costs in gradients: exact staleness, simulated by one process.

    python benchmarks/staleness.py          d 64 x 3, staleness 1 and 3: minutes
    python benchmarks/staleness.py --full   d 128 x 4 as well, up to 31: half an hour
    python benchmarks/staleness.py --tune   search the step sizes of both: 25 minutes

One process takes every gradient at parameters that are exactly tau updates old (`--strategy sim`),
as tau + 1 workers that apply in turn do. All trainings compute 1,200 gradients and end there, by a
cosine schedule; every one has its own step size. The cost of staleness is the number of gradients
over those that serial Muon needs for the same loss, in trainings that end earlier. Muon and AdamW
have the same cures: moments of all workers, and gradients taken where the parameters will be; Muon
has a momentum of its own from four workers on. Averaged gradients (sync) and two lock-free workers
stand beside them. What staleness costs shrinks with the length of a training, so a limit belongs to
a budget and a model: after 300 gradients of d 128 x 4 looking ahead cost 1.14 at staleness 1 and
1.88 at 3. Counting gradients, a busy machine changes nothing.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import median

import numpy as np
from harness.claims import Twin, counted
from harness.estimates import Mean, Ratio
from harness.frame import MODES, flags, measured, other_seed
from harness.interleaved import on_cores
from harness.tuning import around, settings, tune
from training.recording import MINI, SIZES, TINY, Bench, count_parameters, model_file, workers

from mlxhog.theory.bounds import apply

MUON, ADAMW = {"optimizer": "muon"}, {"optimizer": "adamw"}
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
BEST, BEST_ADAMW, *_, AVERAGED, LOCK_FREE = ARMS
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
CLAIMED = 20
"""The document's least staleness up to which the cost is linear."""
LINEAR = 2.0
"""Largest ratio of two slopes of a line."""
SMALL, LARGE = "xlstm d 64, 3 blocks", "xlstm d 128, 4 blocks"
MODELS = {SMALL: (MINI, 2), LARGE: (SIZES, 1), "tiny": (TINY, 2)}
"""Sizes and sequences of a gradient."""


def momentum(name, count):
    """Momentum by rule and number of workers, as the study of `--predict last` found it."""
    if name == AVERAGED:
        return {"beta1": 0.75}
    return {"beta1": 0.95, "nesterov": 0.15} if "Muon" in name and count >= 4 else {}


def first_rate(name, count):
    """The middle of the axis of step sizes."""
    if "AdamW" in name:
        return 3e-3 / math.sqrt(count)
    if name == AVERAGED:
        return 3e-3 * min(count, 4)
    return 3e-3 if count < 8 or name == SERIAL else 2e-3


def models(chosen):
    """The models of a mode; the first has the limits of our own."""
    return chosen.pick(tiny=("tiny",), quick=(SMALL,), full=(SMALL, LARGE))


def arms(chosen, model):
    """The arms of a model in a mode, beside the curve of serial Muon."""
    if chosen.mode == "tiny":
        return [(BEST, 2), (BEST_ADAMW, 2)]
    if chosen.mode == "quick":
        return [(BEST, 2), (BEST, 4), (AVERAGED, 2)]
    rules = COUNTS if model == SMALL else (BEST, BEST_ADAMW)
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


@dataclass(frozen=True)
class Job:
    """One training; what it ends with depends on nothing else, so several run side by side.

    Attributes:
        arm: rule and workers.
        model: its name.
        seed: of the training.
        gradients: that it computes.
        lr: its step size.
        again: whether it is the second of two equal ones (A/A), or such with another seed.
    """

    arm: tuple[str, int]
    model: str
    seed: int
    gradients: int
    lr: float
    again: bool = False


@lru_cache
def bench_of(model):
    sizes, batch = MODELS[model]
    held_out = 1024 if model == "tiny" else 65_536
    return Bench(sizes, batch=batch, looks=2, eval_tokens=held_out)


def train(job):
    """Held-out bits per byte after all gradients, and the staleness that was seen."""
    bench, (name, count) = bench_of(job.model), job.arm
    one = bench.train(
        f"{name}, {count}, {job.gradients}, lr {job.lr:.2g}", seed=job.seed, lr=job.lr,
        tokens=job.gradients * bench.per_step, **options(name, count),
    )  # fmt: skip
    return one.end, one.staleness


def jobs_of(chosen, n):
    """Every training of a mode: arms and serial trainings of several lengths, with each seed."""
    needed = [f"{model}, {name}, {k}" for model in models(chosen)
              for name, k in [(SERIAL, 1), *arms(chosen, model)]]  # fmt: skip
    known = {} if chosen.tiny else settings("staleness", needed)
    shares = chosen.pick(tiny=(0.5, 1.0), quick=FEW_SHARES, full=SHARES)

    def job(arm, model, seed, gradients=n, again=False):
        lr = known.get(f"{model}, {arm[0]}, {arm[1]}", {"lr": first_rate(*arm)})["lr"]
        return Job(arm, model, seed, gradients, lr, again)

    jobs = []
    for seed in chosen.seeds:
        for model in models(chosen):
            own = arms(chosen, model)
            jobs += [job((SERIAL, 1), model, seed, round(n * share)) for share in shares]
            jobs += [job(arm, model, seed) for arm in own]
            free = (LOCK_FREE, 2) in own
            twin = ((LOCK_FREE, 2), seed) if free else ((SERIAL, 1), other_seed(seed))
            jobs.append(job(twin[0], model, twin[1], again=True))
    return jobs


def measure(findings, chosen):
    """Train every arm with every seed, and compare with serial trainings of the same seed."""
    n = chosen.pick(tiny=40, quick=GRADIENTS, full=GRADIENTS)
    jobs = jobs_of(chosen, n)
    alone = [job for job in jobs if job.arm != (LOCK_FREE, 2)]
    ends = dict(zip(alone, on_cores(train, alone), strict=True))
    ends |= {job: train(job) for job in jobs if job not in ends}  # lock-free, so without others
    measured = [Measured(model, chosen, n, ends) for model in models(chosen)]
    findings.table(row for one in measured for row in one.rows())
    findings.compare(
        "graceful degradation, linear up to tau of about 20-30",
        *(claim for one in measured for claim in one.graceful()),
    )
    beside = "; ".join(one.beside_proposition() for one in measured)
    findings.describe("compare to the prediction of Proposition 4.1", beside)
    first = measured[0]
    findings.claims += [
        counted(
            f"staleness {lag}, looking ahead / serial, gradients, {n:,} of {first.model}",
            first.cost((BEST, lag + 1)), "<=", most,
        )
        for lag, most in MOST.items()
        if (BEST, lag + 1) in first.bits and not chosen.tiny
    ]  # fmt: skip
    findings.twins += [one.twin() for one in measured]
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
        again: bits of the A/A arm: the lock-free one a second time, as all others repeat bit for
            bit; where it is not trained, serial ones with other seeds.
    """

    def __init__(self, model, chosen, n, ends):
        own = {job: end for job, end in ends.items() if job.model == model}
        self.model, self.n = model, n
        self.parameters = count_parameters(model_file(**MODELS[model][0]))
        self.curves, self.bits, self.staleness, self.again = {}, {}, {}, []
        for job, (bits, staleness) in own.items():
            if job.again:
                self.again.append(bits)
            elif job.arm == (SERIAL, 1):
                self.curves.setdefault(job.seed, []).append((job.gradients, bits))
            else:
                self.bits.setdefault(job.arm, []).append(bits)
                self.staleness.setdefault(job.arm, []).append(staleness)
        self.costs = {
            arm: [times_serial(self.curves[seed], n, bits)
                  for seed, bits in zip(chosen.seeds, of_seeds, strict=True)]
            for arm, of_seeds in self.bits.items()
        }  # fmt: skip

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

    def rows(self):
        """One row per arm."""
        return [
            {
                "model": self.model,
                "rule": name,
                "workers": count,
                "staleness": round(median(self.staleness[name, count]), 2),
                "bits per byte": Mean.of(self.bits[name, count]).spelt(".3f"),
                "gradients / serial Muon": self.cost((name, count)).spelt(".3f"),
                "penalty of Proposition 4.1": proposition(count - 1, self.parameters),
            }
            for name, count in self.bits
        ]

    def most(self):
        """The most workers of the best rule."""
        return max(count for name, count in self.bits if name == BEST)

    def graceful(self):
        """A unit of staleness costs less than a serial run, and as much as it did at half of it.

        Only a staleness as large as the document's decides; a smaller one is a number without an
        interval.
        """
        most = self.most()
        slopes, name = self.slopes(BEST, most), f"each unit of staleness {most - 1}, in serial runs"
        decides = most > CLAIMED
        known = decides and all(map(math.isfinite, slopes))
        unit = Mean.of(slopes) if known else Mean(float(np.mean(slopes)), n=len(slopes))
        claims = [counted(f"{self.model}: {name}", unit, "<=", 1.0)]
        if decides:
            bend = Ratio.of(slopes, self.slopes(BEST, most // 2))
            name = f"the same / each unit of staleness {most // 2 - 1}"
            claims.append(counted(f"{self.model}: {name}", bend, "<=", LINEAR))
        return claims

    def beside_proposition(self):
        """A number and a bound that no training here could reach."""
        most = self.most()
        return (
            f"{self.model}: staleness {most - 1} costs {self.cost((BEST, most)).spelt()} times the "
            f"gradients; with rho = Delta = 1 the proposition allows "
            f"{proposition(most - 1, self.parameters):.2g} times"
        )


def proposition(tau, n_params):
    """Gradients by Proposition 4.1 as multiples of serial's, if it applied: rho = Delta = 1."""
    bound = apply("proposition 4.1", {}, tau=tau, omega=n_params, rho=1.0, delta=1.0)
    return float(bound["values"]["penalty"])


def times_serial(curve, n, bits):
    """How many times the gradients of serial trainings a loss took.

    Infinite if it is above that of the shortest one; at least what the longest one took.
    """
    losses, lengths = zip(*sorted((loss, k) for k, loss in curve), strict=True)
    if not bits <= losses[-1]:
        return math.inf
    return n / math.exp(float(np.interp(bits, losses, np.log(lengths))))


def tuning(chosen):
    """Find every arm's step size: the lowest loss after the gradients of both modes."""
    chosen.mode = "full"
    names = {
        f"{model}, {name}, {k}": ((name, k), model)
        for model in models(chosen)
        for name, k in [(SERIAL, 1), *arms(chosen, model)]
    }
    axes = {at: {"lr": around(first_rate(*arm), 1.5, 9)} for at, (arm, _) in names.items()}
    tune("staleness", axes, lambda at, point: train(Job(*names[at], 0, GRADIENTS, **point))[0])


def main():
    """Measure, or search."""
    chosen = flags(__doc__, **MODES, tune="search the step sizes").parse_args()
    if chosen.tune:
        return tuning(chosen)
    return measured("staleness", chosen, measure, packages=("mlx",), seeds=(3, 3))


if __name__ == "__main__":
    raise SystemExit(main())
