"""Serial training beside 2 to 16 workers, lock-free and averaging: time to a loss, and gradients.

    python benchmarks/scaling.py          two workers
    python benchmarks/scaling.py --full   2, 4, 8 and 16 workers, as many as have a core each
    python benchmarks/scaling.py --full --keep runs.jsonl   an interrupted run continues

One serial worker and n others (one thread each) train the same xLSTM, Muon with its defaults, which
are shared moments, looking ahead and one step size for any number of workers (`staleness.py`
searches it for each). The others train n times serial's text, so as long as serial where nothing
is lost; lock-free ones also its text. The time counts until the lowest held-out loss that both
trainings of a pair reach.
"""

import math
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import NamedTuple

from harness.claims import Claim, Twin, counted
from harness.estimates import Mean, Ratio
from harness.frame import run
from harness.interleaved import remembered, take_turns
from training.recording import SIZES, TINY, Bench, Training, enough_cores, workers

TIE = 0.02  # bits per byte by which final losses may differ and still be called identical
MUON = {"optimizer": "muon", "schedule": "cosine"}


class Arm(NamedTuple):
    """A strategy, its workers, how many times serial's text they train; A/A differs in `again`."""

    strategy: str
    n: int
    text: int = 1
    again: bool = False

    def __str__(self):
        more = f", {self.text} times the text" if self.text > 1 else ""
        return f"{self.strategy}, {self.n} workers{more}"


SERIAL = Arm("serial", 1)


def arms(counts):
    """Every arm, for these numbers of workers."""
    own = [Arm("hogwild", n) for n in counts]
    longer = [Arm(name, n, n) for n in counts for name in ("hogwild", "sync")]
    return [SERIAL, *own, *longer, Arm("hogwild", 2, 2, again=True)]


class Times:
    """The trainings of every arm, by seed."""

    def __init__(self, trainings):
        self.trainings = trainings

    def ratio(self, arm, base=SERIAL, axis="seconds"):
        """What base took to the lowest loss that both reach, over what an arm took, by seed.

        A target of each pair: a loss that 16 stale workers reach, too, serial training passes in
        its first looks, where two workers are no measure of two workers.
        """
        pairs = zip(self.trainings[base], self.trainings[arm], strict=True)
        values = [pair_ratio(axis, one, own) for one, own in pairs]
        return Ratio.of(values, [1.0] * len(values))

    def row(self, arm):
        """A row of the table."""
        own, alone = ([one.tokens_per_s for one in self.trainings[k]] for k in (arm, SERIAL))
        return {
            "arm": f"{arm}{', again' * arm.again}",
            "throughput / serial": Ratio.of(own, alone).spelt(),
            "staleness": round(median(one.staleness for one in self.trainings[arm]), 2),
            "bits per byte": Mean.of(one.end for one in self.trainings[arm]).spelt(".3f"),
            "serial's gradients / these": self.ratio(arm, axis="steps").spelt(),
            "speedup": self.ratio(arm).spelt(),
        }


def pair_ratio(axis, one, other):
    """What one training took to the lowest loss that both reach, over what the other took."""
    target = max(min(one.bits), min(other.bits))
    took, others = (own.first(getattr(own, axis), target) for own in (one, other))
    return took / others if others > 0 else math.nan


def measure(findings, chosen):
    """Train with every number of workers."""
    bench = Bench(chosen.pick(tiny=TINY, quick=SIZES, full=SIZES), looks=5 if chosen.quick else 10)
    counts = [n for n in (2, 4, 8, 16) if n == 2 or not chosen.quick and enough_cores(n)]
    tokens = chosen.pick(tiny=12_000, quick=80_000, full=100_000)

    def train(strategy, n, text, again, seed):
        return asdict(
            bench.train(
                str(Arm(strategy, n, text)), seed=seed, tokens=tokens * text, strategy=strategy,
                workers=workers(n, "mlx:cpu"), **MUON,
            )
        )  # fmt: skip

    once = remembered(chosen.keep, train, of=lambda kept: Training(**kept))
    trainings = take_turns(chosen.seeds, arms(counts), lambda arm, seed: once(*arm, seed))
    times = Times(trainings)
    findings.table(map(times.row, trainings))
    compare(findings, times, counts)
    every = [one for own in trainings.values() for one in own]
    findings.exact("lost updates", max(one.lost_update_rate for one in every), 0)
    twins = Arm("hogwild", 2, 2), Arm("hogwild", 2, 2, again=True)
    again = [pair_ratio("seconds", *pair) for pair in zip(*map(trainings.get, twins), strict=True)]
    findings.twins.append(Twin.of("hogwild, 2 workers", again, [1.0] * len(again)))
    findings.results |= {
        "settings": {**bench.settings, **MUON},
        "trainings": [
            {**arm._asdict(), "runs": list(map(asdict, own))} for arm, own in trainings.items()
        ],
    }


def compare(findings, times, counts):
    """The documents' claims; 16 workers are to be 8 times sooner."""
    for n in counts:
        free, rounds = Arm("hogwild", n, n), Arm("sync", n, n)
        name = f"{n} workers, times sooner than serial"
        findings.document(
            Claim.of(f"hogwild: {name}", times.ratio(free), ">=", n / 2),
            Claim.of(f"sync: {name}", times.ratio(rounds), ">=", n / 2),
            Claim.of(f"{n} workers: sync / hogwild, seconds", times.ratio(free, rounds), ">=", 1.0),
        )
        ends = ([one.end for one in times.trainings[k]] for k in (Arm("hogwild", n), SERIAL))
        name = f"final loss, {n} workers less serial, bits per byte"
        apart = Mean.of_differences(*ends)
        findings.document(counted(name, apart, "within", TIE, least=-TIE))


if __name__ == "__main__":
    run(
        __doc__, measure,
        options={
            "--keep": {
                "type": Path, "metavar": "FILE", "help": "of finished trainings; again it continues"
            },
        },
        packages=("torch", "mlx"), quiet=True, seeds=(3, 3),
    )  # fmt: skip
