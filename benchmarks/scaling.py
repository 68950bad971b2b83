"""Serial against lock-free workers, 1 to 16 of them: time to a loss, and gradients.

    python benchmarks/scaling.py          PyTorch, two workers
    python benchmarks/scaling.py --full   MLX too, 1 to 16 workers

One serial worker and 2 or more lock-free ones (each with one thread), Muon with its defaults, which
are shared moments, looking ahead and one step size for any number of workers (`staleness.py`
searches it for each), train the same xLSTM on the same text; the time counts until the lowest
held-out loss that both trainings of a pair reach. More workers than cores show what staleness costs
in gradients, not a speedup. That loss lies in the middle of serial's cosine and at the end of the
others', which costs them gradients: `staleness.py` compares runs that end at the loss. Beside two
workers stands what the simulator says of them by the costs of the serial training.
"""

import math
from dataclasses import asdict
from statistics import median

import numpy as np
from harness.claims import Twin, counted
from harness.estimates import Mean, Ratio
from harness.frame import MODES, flags, measured
from harness.interleaved import take_turns
from harness.machine import cores
from training.recording import SIZES, TINY, Bench, enough_cores, workers

from mlxhog.theory.simulator import schemes, simulate
from mlxhog.theory.simulator.machine import Worker
from mlxhog.theory.simulator.times import times_of

TIE = 0.02  # bits per byte by which final losses may differ and still be called identical
MUON = {"optimizer": "muon", "schedule": "cosine"}
SIMULATED = 3000  # updates of a prediction
WITHIN = 1.15
"""What a prediction for two workers here may differ from what they do."""
AGAIN = -2
"""The A/A arm: two workers, in place of their number."""


class Cell:
    """The trainings of one backend, and what they predict."""

    def __init__(self, name, bench, chosen):
        self.name, self.bench, self.backend = name, bench, f"{name}:cpu"
        self.counts = chosen.pick(tiny=(1, 2), quick=(1, 2), full=(1, 2, 4, 8, 16))
        tokens = chosen.pick(tiny=12_000, quick=80_000, full=200_000)

        def train(arm, seed):
            n = abs(arm)
            return bench.train(
                f"{name}, " + ("serial" if n == 1 else f"hogwild, {n} workers"), seed=seed,
                tokens=tokens, workers=workers(n, self.backend),
                strategy="serial" if n == 1 else "hogwild", **MUON,
            )  # fmt: skip

        self.trainings = take_turns(chosen.seeds, (*self.counts, AGAIN), train)

    def pairs(self, axis, arm, base=1):
        """What base took to the lowest loss that both reach, over what an arm took, by seed.

        A target of each pair: a loss that 16 stale workers reach, too, serial training passes in
        its first looks, where two workers are no measure of two workers.
        """
        pairs = zip(self.trainings[base], self.trainings[arm], strict=True)
        return [pair_ratio(axis, one, own) for one, own in pairs]

    def ratio(self, axis, arm, base=1):
        """How many times sooner, or with how many times fewer gradients."""
        values = self.pairs(axis, arm, base)
        return Ratio.of(values, [1.0] * len(values))

    def cost(self, arm):
        """How many times the gradients of serial it takes to the loss."""
        return Ratio.of([1.0] * len(self.trainings[arm]), self.pairs("steps", arm))

    def row(self, n):
        """A row of the table."""
        own, alone = ([one.tokens_per_s for one in self.trainings[k]] for k in (n, 1))
        return {
            "cell": self.name,
            "workers": n,
            "kind": "measured" if enough_cores(n) else f"measured on {len(cores())} cores",
            "throughput / serial": Ratio.of(own, alone).spelt(),
            "staleness": round(median(one.staleness for one in self.trainings[n]), 2),
            "bits per byte": Mean.of(one.end for one in self.trainings[n]).spelt(".3f"),
            "gradients / serial": self.cost(n).spelt(),
            "speedup": self.ratio("seconds", n).spelt(),
        }

    def predicted(self, k):
        """Tokens per second of two workers, and how much sooner they are, by seed k's costs."""
        serial = self.trainings[1][k]
        worker = Worker(
            name=self.backend,
            compute=times_of("constant", serial.costs_s["compute"]),
            read_s=serial.costs_s["read"],
            apply_s=serial.costs_s["apply"],
        )
        updates = {0.0: 1.0} | {
            max(0.01 * n, own[k].staleness): pair_ratio("steps", own[k], serial)
            for n, own in self.trainings.items()
            if n > 1
        }

        def here(n):
            return simulate([worker] * n, schemes.Hogwild(), updates=SIMULATED, cores=len(cores()))

        alone, two = here(1), here(2)
        speedup = seconds_to_loss(alone, updates) / seconds_to_loss(two, updates)
        return two.gradients_per_s * self.bench.per_step, speedup


def pair_ratio(axis, one, other):
    """What one training took to the lowest loss that both reach, over what the other took."""
    target = max(min(one.bits), min(other.bits))
    took, others = (own.first(getattr(own, axis), target) for own in (one, other))
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


def measure(findings, chosen):
    """Train with every number of workers, then predict."""
    bench = Bench(chosen.pick(tiny=TINY, quick=SIZES, full=SIZES), looks=5 if chosen.quick else 10)
    cells = [Cell(name, bench, chosen) for name in ("torch", "mlx")[: 1 if chosen.quick else 2]]
    first = cells[0]
    findings.table(cell.row(n) for cell in cells for n in cell.counts)
    compare(findings, cells)
    predictions = [first.predicted(k) for k in range(len(chosen.seeds))]
    rates = [one.tokens_per_s for one in first.trainings[2]]
    for what, own, others in zip(
        ("tokens per second", "speedup"), zip(*predictions, strict=True),
        (rates, first.pairs("seconds", 2)), strict=True,
    ):  # fmt: skip
        name = f"2 workers here, {what}, predicted / measured"
        findings.within(name, Ratio.of(own, others), 1 / WITHIN, WITHIN)
    every = [one for cell in cells for own in cell.trainings.values() for one in own]
    findings.exact("lost updates", max(one.lost_update_rate for one in every), 0)
    sooner = first.pairs("seconds", AGAIN, base=2)
    findings.twins.append(Twin.of(f"2 workers, {first.name}", sooner, [1.0] * len(sooner)))
    findings.results |= {
        "settings": {**bench.settings, **MUON},
        "trainings": {
            cell.name: {f"{n}": list(map(asdict, own)) for n, own in cell.trainings.items()}
            for cell in cells
        },
    }


def compare(findings, cells):
    """The document's claims."""
    claim, most = "8-10x speedup with 16 workers", max(filter(enough_cores, cells[0].counts))
    text = "; ".join(
        f"{cell.name}: {n} workers {cell.ratio('seconds', n)}"
        for cell in cells
        for n in cell.counts
        if 1 < n <= most
    )
    here = f"Times sooner at a loss than serial: {text}. This machine has {len(cores())} cores."
    least = [
        counted(f"{cell.name}: 16 workers, times sooner", cell.ratio("seconds", 16), ">=", 8.0)
        for cell in cells
        if enough_cores(16)
    ]
    findings.compare(claim, *least, measured="" if least else here)
    apart = [
        counted(
            f"{cell.name}: final loss, {n} workers less serial, bits per byte",
            Mean.of_differences(*([t.end for t in cell.trainings[k]] for k in (n, 1))),
            "within", TIE, least=-TIE,
        )
        for cell in cells
        for n in cell.counts[1:]
    ]  # fmt: skip
    findings.compare("final loss identical to serial", *apart)


def main():
    """Read the flags, and measure."""
    chosen = flags(__doc__, **MODES).parse_args()
    return measured("scaling", chosen, measure, packages=("torch", "mlx"), quiet=True, seeds=(3, 3))


if __name__ == "__main__":
    raise SystemExit(main())
