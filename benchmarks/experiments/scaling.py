"""Serial against lock-free workers: time to a loss.

python benchmarks/experiments/scaling.py          PyTorch, d 128 x 4, two workers
python benchmarks/experiments/scaling.py --full   MLX too, 1 to 16 workers
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

import numpy as np
from experiment.figures import INKS, label_lines, new_panels
from experiment.language import Bench, Setup, Training, enough_cores, setup, workers
from experiment.record import UNTOLD, Compared, Experiment, Outcome, run
from experiment.runs import Runs
from harness.claims import Claim, Twin
from harness.estimates import Mean, Ratio
from harness.interleaved import take_turns
from harness.machine import cores
from training.recording import count_parameters, model_file

from mlxhog.theory.simulator import schemes, simulate
from mlxhog.theory.simulator.times import times_of
from mlxhog.theory.simulator.workers import Worker

ABOUT = Experiment(
    name="scaling",
    title="Serial against Hogwild with 1 to 16 workers",
    source="document 001, Test 1",
    about=(
        "One serial worker and 2 or more lock-free ones (each with one thread), Muon with its "
        "defaults, which are shared moments, looking ahead and one step size for any number of "
        "workers (staleness searches it for each), train the same xLSTM on the same text; the time "
        "counts until the lowest held-out loss that both trainings of a pair reach. More workers "
        "than cores show what staleness costs in gradients, not a speedup. That loss lies in the "
        "middle of serial's cosine and at the end of the others', which costs them gradients: "
        "staleness compares runs that end at the loss."
    ),
    packages=("torch", "mlx"),
    full_seeds=3,
)
TIE = 0.02  # bits per byte by which final losses may differ and still be called identical
MUON = {"optimizer": "muon", "schedule": "cosine"}
SIMULATED = 3000  # updates of a prediction
WITHIN = 1.15
"""What a prediction for two workers here may differ from what they do."""
AGAIN = -2
"""The A/A arm: two workers, in place of their number."""


@dataclass(frozen=True)
class Cell:
    """One model with one backend.

    Attributes:
        name: for people.
        setup: of all its trainings.
        backend: of all workers.
        workers: numbers of them, 1 and 2 first.
        tokens: of each training.
    """

    name: str
    setup: Setup
    backend: str
    workers: tuple[int, ...]
    tokens: int


def settings(scale):
    """The models, backends and numbers of workers of a mode."""
    common, torch, mlx = setup(scale), "torch:cpu", "mlx:cpu"
    if scale.quick:
        tokens = scale.pick(tiny=12_000, quick=80_000, full=0)
        return (Cell("torch", common, torch, (1, 2), tokens),)
    every = (1, 2, 4, 8, 16)
    return (
        Cell("torch", common, torch, every, 200_000),
        Cell("mlx", common, mlx, every, 200_000),
    )


def result(scale):
    """Train with every number of workers, then predict."""
    runs = Runs(ABOUT, scale)
    measured = {cell.name: Measured(cell, scale, runs) for cell in settings(scale)}
    first = next(iter(measured.values()))
    return Outcome(
        compared=_compared(list(measured.values())),
        table=[row for one in measured.values() for row in one.rows()],
        claims=[*first.claims(), _lost(measured.values())],
        settings={
            **first.cell.setup.to_json(),
            **MUON,
            "parameters": first.parameters,
        },
        results={
            "points": {name: one.points() for name, one in measured.items()},
            "predictions": [one.to_json() for one in first.predictions],
            "trainings": {
                name: {f"{n}": [t.to_json() for t in own] for n, own in one.trainings.items()}
                for name, one in measured.items()
            },
        },
        twins=[Twin.of(f"2 workers, {first.cell.name}", *first.twin())],
        others_load=runs.others_load,
    )


class Measured:
    """The trainings of a cell, and what they predict.

    Attributes:
        trainings: by number of workers, one for each seed.
        predictions: of each seed.
    """

    def __init__(self, cell, scale, runs):
        """Train what was not trained before."""
        self.cell, bench = cell, Bench(cell.setup)
        self.parameters = count_parameters(model_file(**cell.setup.sizes))
        arms = (*cell.workers, AGAIN)

        def train(arm, seed):
            n = abs(arm)
            which = {"cell": cell.name, "arm": arm, "seed": seed, "tokens": cell.tokens}

            def trained():
                one = bench.train(
                    f"{cell.name}, " + ("serial" if n == 1 else f"hogwild, {n} workers"),
                    seed=seed,
                    tokens=cell.tokens,
                    workers=workers(n, cell.backend),
                    strategy="serial" if n == 1 else "hogwild",
                    **MUON,
                )
                return one.to_json()

            return Training.of_json(runs.of(which, trained))

        self.trainings = take_turns(scale.seeds, arms, train)
        every = zip(*self.trainings.values(), strict=True)
        self.predictions = [
            SeedPrediction.of(cell, dict(zip(arms, of_seed, strict=True))) for of_seed in every
        ]

    def times_sooner(self, arm, base=1):
        """Seconds of another arm over its own, to the loss that both reach, by seed."""
        pairs = zip(self.trainings[base], self.trainings[arm], strict=True)
        return [pair_ratio(Training.seconds_to, one, own) for one, own in pairs]

    def speedup(self, arm):
        """How many times sooner than serial."""
        sooner = self.times_sooner(arm)
        return Ratio.of(sooner, [1.0] * len(sooner))

    def cost(self, arm):
        """How many times the gradients of serial it takes to the loss."""
        pairs = zip(self.trainings[arm], self.trainings[1], strict=True)
        costs = [pair_ratio(Training.steps_to, own, serial) for own, serial in pairs]
        return Ratio.of(costs, [1.0] * len(costs))

    def points(self):
        """Both ratios of every number of workers."""
        return {
            f"{n}": {"seconds": self.speedup(n).to_json(), "gradients": self.cost(n).to_json()}
            for n in self.cell.workers
        }

    def twin(self):
        """How many times sooner two workers are the second time, beside no difference."""
        sooner = self.times_sooner(AGAIN, base=2)
        return sooner, [1.0] * len(sooner)

    def rows(self):
        """One row per number of workers."""
        return [self._row(n) for n in self.cell.workers]

    def _row(self, n):
        own = self.trainings[n]
        speed = Ratio.of(
            [one.tokens_per_s for one in own], [one.tokens_per_s for one in self.trainings[1]]
        )
        return {
            "cell": self.cell.name,
            "workers": n,
            "kind": "measured" if enough_cores(n) else f"measured on {len(cores())} cores",
            "throughput / serial": speed.spelt(),
            "staleness": round(median(one.staleness for one in own), 2),
            "bits per byte": Mean.of(one.end for one in own).spelt(".3f"),
            "gradients / serial": self.cost(n).spelt(),
            "speedup": self.speedup(n).value,
            "interval": self.speedup(n).spelt(),
        }

    def claims(self):
        """The prediction for two workers here, beside what they do."""
        two = self.times_sooner(2)
        rates = [one.tokens_per_s for one in self.trainings[2]]
        return [
            Claim.of(
                f"2 workers here, {what}, predicted / measured",
                Ratio.of([getattr(one, number) for one in self.predictions], measured),
                "within",
                WITHIN,
                least=1 / WITHIN,
            )
            for what, number, measured in (
                ("tokens per second", "two_tokens_per_s", rates),
                ("speedup", "two_speedup", two),
            )
        ]


def pair_ratio(to, one, other):
    """What one training took to the lowest loss that both reach, over what the other took.

    A target of each pair: a loss that 16 stale workers reach, too, serial training passes in its
    first looks, where two workers are no measure of two workers.
    """
    target = max(min(one.bits), min(other.bits))
    took, others = to(one, target), to(other, target)
    return took / others if others > 0 else math.nan


def seconds_to_loss(prediction, updates_at):
    """Seconds of the updates to a loss, at the predicted staleness.

    Updates are interpolated between measured staleness values; beyond the largest they are on the
    straight line through the last two.
    """
    at, updates = np.array(sorted(updates_at.items()), np.float64).T
    staleness = prediction.staleness.mean
    needed = float(np.interp(staleness, at, updates))
    if staleness > at[-1] and len(at) > 1:
        slope = (updates[-1] - updates[-2]) / (at[-1] - at[-2])
        needed = float(updates[-1] + slope * (staleness - at[-1]))
    return needed / prediction.updates_per_s


@dataclass(frozen=True)
class SeedPrediction:
    """What the simulator says of one seed's costs.

    Attributes:
        costs_s: seconds of a serial step's parts.
        updates: gradients to the loss, by staleness, as multiples of serial's.
        two_tokens_per_s: of two workers on this machine.
        two_speedup: of the same, to the loss.
    """

    costs_s: Mapping[str, float]
    updates: Mapping[float, float]
    two_tokens_per_s: float
    two_speedup: float

    @classmethod
    def of(cls, cell, trained):
        """Simulate with the costs of the serial training."""
        serial = trained[1]
        worker = Worker(
            name=cell.backend,
            compute=times_of("constant", serial.costs_s["compute"]),
            read_s=serial.costs_s["read"],
            apply_s=serial.costs_s["apply"],
        )
        updates = {
            max(0.01 * n, one.staleness) if n > 1 else 0.0: pair_ratio(
                Training.steps_to, one, serial
            )
            for n, one in trained.items()
            if n > 0
        }

        def here(n):
            return simulate([worker] * n, schemes.Hogwild(), updates=SIMULATED, cores=len(cores()))

        one_here, two = here(1), here(2)
        per_step = cell.setup.batch * cell.setup.seq_len
        return cls(
            serial.costs_s,
            updates,
            two.gradients_per_s * per_step,
            seconds_to_loss(one_here, updates) / seconds_to_loss(two, updates),
        )

    def to_json(self):
        """All of it; keys of objects are text."""
        updates = {f"{key:g}": value for key, value in self.updates.items()}
        return {**vars(self), "costs_s": dict(self.costs_s), "updates": updates}


# -- compare --------------------------------------------------------------------------------------


def _lost(measured):
    rates = [
        one.lost_update_rate for each in measured for own in each.trainings.values() for one in own
    ]
    return Claim("lost updates", max(rates), "==", 0, timing=False)


def _compared(measured):
    first, claim = measured[0], "8-10x speedup with 16 workers"
    most = max(n for n in first.cell.workers if enough_cores(n))
    text = "; ".join(
        f"{one.cell.name}: {n} workers {one.speedup(n)}"
        for one in measured
        for n in one.cell.workers
        if 1 < n <= most
    )
    if enough_cores(16):
        least = [
            Claim.of(f"{one.cell.name}: 16 workers, times sooner", one.speedup(16), ">=", 8.0)
            for one in measured
        ]
        speedup = Compared.of(claim, *least)
    else:
        speedup = Compared(
            claim,
            f"Times sooner at a loss than serial: {text}. This machine has {len(cores())} cores.",
            UNTOLD,
        )
    apart = [
        Claim.of(
            f"{one.cell.name}: final loss, {n} workers less serial, bits per byte",
            Mean.of_differences(
                [t.end for t in one.trainings[n]], [t.end for t in one.trainings[1]]
            ),
            "within",
            TIE,
            least=-TIE,
            timing=False,
        )
        for one in measured
        for n in one.cell.workers[1:]
    ]
    return [speedup, Compared.of("final loss identical to serial", *apart)]


def draw(outcome):
    """Speedup and gradients against workers, with intervals where there are several seeds."""
    figure, (left, right) = new_panels(
        ("workers", "times sooner than serial", "Time to a loss"),
        ("workers", "gradients, multiples of serial's", "Gradients to a loss"),
    )
    for ink, (name, points) in zip(INKS, outcome.results["points"].items(), strict=False):
        for axes, number in ((left, "seconds"), (right, "gradients")):
            ratios = [one[number] for one in points.values()]
            values = [one["value"] for one in ratios]
            ends = [
                [abs(one["value"] - one[end]) if math.isfinite(one[end]) else 0.0 for one in ratios]
                for end in ("low", "high")
            ]
            at = [int(n) for n in points]
            axes.errorbar(at, values, yerr=ends, fmt="o-", color=ink, label=name, capsize=2)
    left.axhspan(8, 10, xmin=0.6, color=INKS[5], alpha=0.25)
    left.annotate("the document, 16 workers", (16, 9), ha="right", fontsize=7, color=INKS[5])
    label_lines(left, right)
    return figure


if __name__ == "__main__":
    raise SystemExit(run(ABOUT, result, draw))
