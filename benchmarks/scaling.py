"""Serial training beside 2 to 16 workers: time to a loss, and gradients.

    python benchmarks/scaling.py          PyTorch, two lock-free workers
    python benchmarks/scaling.py --full   MLX too, 1 to 16 workers
    python benchmarks/scaling.py --full --only many_cores --keep runs.jsonl
                                          an interrupted run continues

One serial worker and n others (each with one thread) train the same xLSTM by Muon with its
defaults, which are shared moments, weight prediction and one learning rate for any number of
workers (`staleness.py` searches it for each). The time counts until the lowest validation loss that
both trainings of a pair reach.

scaling      lock-free workers train serial's text. More workers than cores show what staleness
             costs in gradients, not a speedup. The loss lies in the middle of serial's cosine and
             at the end of the others', which costs them gradients: `staleness.py` compares runs
             that end at the loss.
many_cores   lock-free workers and averaging ones, as many as have a core each, train n times
             serial's text, so as long as serial where nothing is lost
"""

import math
from dataclasses import asdict
from statistics import median
from typing import NamedTuple

from harness.claims import Claim, Control, counted
from harness.estimates import Mean, Ratio
from harness.frame import run
from harness.interleaved import KEEP, remembered, take_turns
from training.recording import SIZES, TINY, Bench, Training, enough_cores, workers

TIE = 0.02  # bits per byte by which final losses may differ and still be called identical
MUON = {"optimizer": "muon", "schedule": "cosine"}
COUNTS = (2, 4, 8, 16)


class Arm(NamedTuple):
    """A strategy, its workers, how many times serial's text they train; A/A differs in `again`."""

    strategy: str
    n: int
    text: int = 1
    again: bool = False


SERIAL = Arm("serial", 1)


class Times:
    """The trainings of every arm, by seed."""

    def __init__(self, chosen, arms, backend, tokens):
        sizes = chosen.pick(tiny=TINY, quick=SIZES, full=SIZES)
        bench = Bench(sizes, looks=5 if chosen.quick else 10)
        self.settings = {**bench.settings, **MUON}

        def train(backend, strategy, n, text, _, seed):
            name = f"{backend}, {strategy}, {n}"
            return asdict(
                bench.train(
                    name, seed=seed, tokens=tokens * text, strategy=strategy,
                    workers=workers(n, f"{backend}:cpu"), **MUON,
                )
            )  # fmt: skip

        once = remembered(chosen.keep, train, of=lambda kept: Training(**kept))
        control = arms[0]._replace(again=True)
        self.trainings = take_turns(
            chosen.seeds, (SERIAL, *arms, control), lambda arm, seed: once(backend, *arm, seed)
        )
        again = self.pairs(control, arms[0])
        self.control = Control.of(f"{arms[0].n} workers, {backend}", again, [1.0] * len(again))

    def pairs(self, arm, base=SERIAL, axis="seconds"):
        """What base took to the lowest loss that both reach, over what an arm took, by seed.

        A target of each pair: a loss that 16 stale workers reach, too, serial training passes in
        its first looks, where two workers are no measure of two workers.
        """
        ratios = []
        for pair in zip(self.trainings[base], self.trainings[arm], strict=True):
            target = max(min(one.bits) for one in pair)
            took, others = (one.first(getattr(one, axis), target) for one in pair)
            ratios.append(took / others if others > 0 else math.nan)
        return ratios

    def ratio(self, *arms, axis="seconds"):
        """How many times sooner, or with how many times fewer gradients, than a base."""
        values = self.pairs(*arms, axis=axis)
        return Ratio.of(values, [1.0] * len(values))

    def row(self, arm):
        """A row of the table."""
        own, alone = ([one.tokens_per_s for one in self.trainings[k]] for k in (arm, SERIAL))
        return {
            **arm._asdict(), "has cores": enough_cores(arm.n),
            "throughput / serial": Ratio.of(own, alone).spelt(),
            "staleness": round(median(one.staleness for one in self.trainings[arm]), 2),
            "bits per byte": Mean.of(one.end for one in self.trainings[arm]).spelt(".3f"),
            "serial's gradients / these": self.ratio(arm, axis="steps").spelt(),
            "speedup": self.ratio(arm).spelt(),
        }  # fmt: skip

    def report(self, findings, backend):
        """Add what was trained to the findings."""
        findings.table({"cell": backend, **self.row(arm)} for arm in self.trainings)
        every = [one for own in self.trainings.values() for one in own]
        lost = max(one.lost_update_rate for one in every)
        findings.exact(f"{backend}: lost updates", lost, 0)
        findings.controls.append(self.control)
        findings.results["settings"] = self.settings
        findings.results.setdefault("trainings", {})[backend] = [
            {**arm._asdict(), "runs": list(map(asdict, own))}
            for arm, own in self.trainings.items()
        ]  # fmt: skip


def scaling(findings, chosen):
    """Train serial's text with every number of lock-free workers."""
    arms = [Arm("hogwild", n) for n in COUNTS[: 1 if chosen.quick else None]]
    for backend in ("torch", "mlx")[: 1 if chosen.quick else 2]:
        times = Times(chosen, arms, backend, chosen.pick(tiny=12_000, quick=80_000, full=200_000))
        for arm in arms:
            if enough_cores(arm.n):  # 16 are to be 8 times sooner
                name = f"{backend}: {arm.n} workers, times sooner than serial"
                findings.document(counted(name, times.ratio(arm), ">=", arm.n / 2))
            name = f"{backend}: final loss, {arm.n} workers less serial, bits per byte"
            ends = ([one.end for one in times.trainings[k]] for k in (arm, SERIAL))
            apart = Mean.of_differences(*ends)
            findings.document(counted(name, apart, "within", TIE, least=-TIE))
        times.report(findings, backend)


def many_cores(findings, chosen):
    """Train as long as serial, lock-free and averaging."""
    chosen.seeds = findings.seeds = chosen.seeds[:2]
    counts = [n for n in COUNTS if enough_cores(n)]
    arms = [Arm(strategy, n, n) for n in counts for strategy in ("hogwild", "sync")]
    times = Times(chosen, arms, "mlx", chosen.pick(tiny=12_000, quick=80_000, full=100_000))
    for arm in arms:
        name = f"{arm.strategy}: {arm.n} workers, times sooner than serial"
        findings.document(Claim.of(name, times.ratio(arm), ">=", arm.n / 2))
    for free, rounds in zip(arms[::2], arms[1::2], strict=True):
        name = f"{free.n} workers: sync / hogwild, seconds"
        findings.document(Claim.of(name, times.ratio(free, rounds), ">=", 1.0))
    times.report(findings, "mlx")


if __name__ == "__main__":
    run(
        __doc__, {"scaling": scaling, "many_cores": many_cores},
        first={"tiny": 2, "quick": 1, "full": 1},
        options=KEEP,
        packages=("torch", "mlx"), quiet=True, seeds=(3, 5),
    )  # fmt: skip
