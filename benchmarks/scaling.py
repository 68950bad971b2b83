"""Serial against lock-free workers, 1 to 16 of them: time to a loss, and gradients.

    python benchmarks/scaling.py          PyTorch, two workers
    python benchmarks/scaling.py --full   MLX too, 1 to 16 workers

One serial worker and 2 or more lock-free ones (each with one thread), Muon with its defaults, which
are shared moments, looking ahead and one step size for any number of workers (`staleness.py`
searches it for each), train the same xLSTM on the same text; the time counts until the lowest
held-out loss that both trainings of a pair reach. More workers than cores show what staleness costs
in gradients, not a speedup. That loss lies in the middle of serial's cosine and at the end of the
others', which costs them gradients: `staleness.py` compares runs that end at the loss.
"""

import math
from dataclasses import asdict
from statistics import median

from harness.claims import Twin, counted
from harness.estimates import Mean, Ratio
from harness.frame import run
from harness.interleaved import take_turns
from harness.machine import cores
from training.recording import SIZES, TINY, Bench, enough_cores, workers

TIE = 0.02  # bits per byte by which final losses may differ and still be called identical
MUON = {"optimizer": "muon", "schedule": "cosine"}
AGAIN = -2
"""The A/A arm: two workers, in place of their number."""


class Cell:
    """The trainings of one backend."""

    def __init__(self, name, bench, chosen):
        self.name = name
        self.counts = chosen.pick(tiny=(1, 2), quick=(1, 2), full=(1, 2, 4, 8, 16))
        tokens = chosen.pick(tiny=12_000, quick=80_000, full=200_000)

        def train(arm, seed):
            n = abs(arm)
            strategy = "serial" if n == 1 else "hogwild"
            return bench.train(
                f"{name}, {strategy}, {n}", seed=seed, tokens=tokens, strategy=strategy,
                workers=workers(n, f"{name}:cpu"), **MUON,
            )  # fmt: skip

        self.trainings = take_turns(chosen.seeds, (*self.counts, AGAIN), train)

    def pairs(self, axis, arm, base=1):
        """What base took to the lowest loss that both reach, over what an arm took, by seed.

        A target of each pair: a loss that 16 stale workers reach, too, serial training passes in
        its first looks, where two workers are no measure of two workers.
        """
        pairs = zip(self.trainings[base], self.trainings[arm], strict=True)
        return [pair_ratio(axis, one, own) for one, own in pairs]

    def ratio(self, axis, arm):
        """How many times sooner, or with how many times fewer gradients, than serial."""
        values = self.pairs(axis, arm)
        return Ratio.of(values, [1.0] * len(values))

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
            "serial's gradients / these": self.ratio("steps", n).spelt(),
            "speedup": self.ratio("seconds", n).spelt(),
        }


def pair_ratio(axis, one, other):
    """What one training took to the lowest loss that both reach, over what the other took."""
    target = max(min(one.bits), min(other.bits))
    took, others = (own.first(getattr(own, axis), target) for own in (one, other))
    return took / others if others > 0 else math.nan


def measure(findings, chosen):
    """Train with every number of workers."""
    bench = Bench(chosen.pick(tiny=TINY, quick=SIZES, full=SIZES), looks=5 if chosen.quick else 10)
    cells = [Cell(name, bench, chosen) for name in ("torch", "mlx")[: 1 if chosen.quick else 2]]
    findings.table(cell.row(n) for cell in cells for n in cell.counts)
    compare(findings, cells)
    every = [one for cell in cells for own in cell.trainings.values() for one in own]
    findings.exact("lost updates", max(one.lost_update_rate for one in every), 0)
    sooner = cells[0].pairs("seconds", AGAIN, base=2)
    findings.twins.append(Twin.of(f"2 workers, {cells[0].name}", sooner, [1.0] * len(sooner)))
    findings.results |= {
        "settings": {**bench.settings, **MUON},
        "trainings": {
            cell.name: {f"{n}": list(map(asdict, own)) for n, own in cell.trainings.items()}
            for cell in cells
        },
    }


def compare(findings, cells):
    """The document's claims."""
    for cell in cells:
        for n in cell.counts[1:]:
            if enough_cores(n):  # 16 are to be 8 times sooner
                name = f"{cell.name}: {n} workers, times sooner than serial"
                findings.document(counted(name, cell.ratio("seconds", n), ">=", n / 2))
            name = f"{cell.name}: final loss, {n} workers less serial, bits per byte"
            ends = ([one.end for one in cell.trainings[k]] for k in (n, 1))
            apart = Mean.of_differences(*ends)
            findings.document(counted(name, apart, "within", TIE, least=-TIE))


if __name__ == "__main__":
    run(__doc__, measure, packages=("torch", "mlx"), quiet=True, seeds=(3, 3))
