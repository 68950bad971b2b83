"""Who trains best where workers are not equally fast?

    python benchmarks/unequal_workers.py           five seeds, both optimizers: hours
    python benchmarks/unequal_workers.py --quick   fewer seeds, Muon, a higher loss: an hour
    python benchmarks/unequal_workers.py --quick --only auto          twenty minutes
    python benchmarks/unequal_workers.py --tune    search the settings, and write them down

`auto`: does `--strategy auto`, which changes its strategy while it trains, come near the best of
the others in each of eight conditions (`training/disturbed.py`)? `loss`: who reaches a held-out
loss first?

`auto` trains what `mlxhog train` trains, with an MLX and a PyTorch worker of one thread each.

Model of `loss`: `tiny`, bytes of the corpus sotu, S 256, two PyTorch workers of one thread. One of
them is slowed 2 or 4 times on purpose (`--slow`), or both take six times as long for one gradient
in ten, at random, as beside other programs; or one joins late.

With documents that are not packed, gradients take unevenly long by themselves: every sentence of
the addresses is a document (half of them have 89 to 217 bytes, the longest 3,825) and begins a row
of its own, at most 512 tokens long, and a batch is as wide as its longest row. Such text has a loss
of its own, since a sentence begins without context, and hence a target of its own. Its settings
are those that were found for packed text to 2.1 bits per byte, with Muon.

Every arm runs at settings that a search found for it with equal workers, since nobody tunes for
the programs that happen to run beside a training. Seconds are training time until held-out bits
per byte fall to the target; for every seed all arms take turns. What is said of two arms comes from
runs in pairs, with a 95 % interval (`training/race.py`).
"""

from __future__ import annotations

import json
import re
import tempfile
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from harness.claims import Claim, Sample, flags, measured
from harness.estimates import Ratio
from harness.machine import smallest
from training.disturbed import DISTURBANCES
from training.disturbed import measure as disturbed_runs
from training.race import AXES, Course, Race, Target

from mlxhog.data.sotu import read_sotu

ARMS = ("serial 1 thread", "serial 2 threads", "sync", "sync by speed", "hogwild")
EQUAL, QUARTER, SLEEPS = "equal", "one 4x slower", "random sleeps"
LATE, UNEVEN = "one joins late", "uneven lengths"
SENTENCES = Target(2.2, {}, 16_384, "sentences", like="2.1")
"""Of every scale: its options have to name the file that `write_sentences` has written."""
SENTENCE_LENGTH = 512


@dataclass(frozen=True)
class Condition:
    """In what workers are not equal.

    Attributes:
        target: to reach.
        slow: option of `TrainConfig`.
        optimizers: that have settings for it.
    """

    target: Target
    slow: str | None = None
    optimizers: tuple[str, ...] = tuple(AXES)


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    Attributes:
        seeds: of the runs.
        optimizers: that the arms are run with.
        conditions: by name.
    """

    seeds: tuple[int, ...]
    optimizers: tuple[str, ...]
    conditions: dict[str, Condition]

    def of(self, optimizer):
        """The conditions that an optimizer is run under."""
        return {k: v for k, v in self.conditions.items() if optimizer in v.optimizers}


def conditions(target, late_s):
    """The conditions of every scale: with packed text to one loss, with sentences to another.

    Args:
        target: of packed text.
        late_s: seconds before the second worker begins, a third of a run or so.
    """
    return {
        EQUAL: Condition(target),
        QUARTER: Condition(target, "1=4"),
        SLEEPS: Condition(target, "0=random:0.1:6,1=random:0.1:6"),
        LATE: Condition(target, f"1=late:{late_s}"),
        UNEVEN: Condition(SENTENCES, optimizers=("muon",)),
    }


AUTO_SEEDS, AUTO_SECONDS = (1, 2, 3), 40.0
AUTO_QUICK_SEEDS, AUTO_QUICK_SECONDS = (1,), 30.0
PARTS = ("auto", "loss")
LOW = Target(1.8, {"muon": 700_000, "adamw": 1_200_000})
HIGH = Target(2.1, {"muon": 200_000}, 16_384, margin=0.1)
QUICK = Scale((1, 2, 3), ("muon",), conditions(HIGH, late_s=4))
TINY = replace(
    QUICK,
    seeds=(1,),
    conditions={k: v for k, v in QUICK.conditions.items() if k == UNEVEN},
)
FULL = Scale(
    (1, 2, 3, 4, 5),
    ("muon", "adamw"),
    {**conditions(LOW, late_s=10), "one 2x slower": Condition(LOW, "1=2")},
)


def write_sentences(path):
    """Write each sentence of the corpus sotu as a document that no other is packed with."""
    with path.open("w") as file:
        for address in islice(read_sotu(), smallest(3, None)):
            for sentence in re.split(r"(?<=[.!?])\s+", address.text.strip()):
                json.dump({"prompt": "", "completion": sentence}, file)
                file.write("\n")


def main():
    """Measure, or search, what the flags ask for."""
    parser = flags(__doc__, parts=PARTS, quick="fewer seeds, Muon, a higher loss")
    parser.add_argument("--tune", action="store_true", help="search the settings")
    parser.add_argument("--optimizer", choices=list(AXES), action="append")
    parser.add_argument("--seeds", type=int, help="number of seeds")
    parser.add_argument("--seconds", type=float, help="auto: seconds of each training")
    parser.add_argument(
        "--drop", type=int, nargs="+", default=(), metavar="R",
        help="auto: also lock-free training without gradients later than R",
    )  # fmt: skip
    parser.add_argument(
        "--condition",
        choices=list(dict.fromkeys((*FULL.conditions, *DISTURBANCES))),
        action="append",
        help="measure, or search the settings of, this one alone; may be repeated",
    )
    chosen = parser.parse_args()
    parts, scale = chosen.only or PARTS, smallest(TINY, QUICK if chosen.quick else FULL)
    disturbed = [name for name in DISTURBANCES if name in (chosen.condition or DISTURBANCES)]
    disturbed = smallest(disturbed[-1:], disturbed)
    if chosen.condition:
        some = {k: v for k, v in scale.conditions.items() if k in chosen.condition}
        if not some and not (disturbed and "auto" in parts):
            parser.error("the chosen parts leave that condition out; leave out --quick or --only")
        scale = replace(scale, conditions=some)
    if chosen.optimizer:
        scale = replace(scale, optimizers=tuple(chosen.optimizer))
    seeds, seconds = AUTO_SEEDS, AUTO_SECONDS
    if chosen.quick:
        seeds, seconds = AUTO_QUICK_SEEDS, AUTO_QUICK_SECONDS
    if chosen.seeds:
        seeds = tuple(range(1, chosen.seeds + 1))
        scale = replace(scale, seeds=seeds)
    with tempfile.TemporaryDirectory(prefix="mlxhog-benchmark-") as folder:
        courses = open_courses(scale, Path(folder)) if "loss" in parts else {}
        if chosen.tune:
            return tune(scale, courses)

        def measure_parts(findings, _):
            if "auto" in parts:
                lasting = chosen.seconds or seconds
                disturbed_runs(disturbed, seeds, lasting, findings, chosen.drop)
            if courses:
                measure(scale, courses, findings)

        return measured("unequal_workers", chosen, measure_parts, packages=("torch",), quiet=True)


def open_courses(scale, folder):
    """The courses of the conditions, one for each target; sentences are written to the folder."""
    courses = {}
    for condition in scale.conditions.values():
        target = condition.target
        if target.key in courses:
            continue
        if target == SENTENCES:
            path = folder / "sentences.jsonl"
            write_sentences(path)
            target = replace(target, options={"data": str(path), "seq_len": SENTENCE_LENGTH})
        courses[target.key] = Course(target)
    return courses


def tune(scale, courses):
    """Search the settings."""
    for optimizer in scale.optimizers:
        targets = {one.target.key: one.target for one in scale.of(optimizer).values()}
        for key, target in targets.items():
            if target.like is None:
                courses[key].tune(optimizer, ARMS)
    return 0


def measure(scale, courses, findings):
    """Run the arms, and print what was measured."""
    bits = {name: condition.target.bits for name, condition in scale.conditions.items()}
    findings.results |= {"targets": bits, "seeds": scale.seeds}
    for optimizer in scale.optimizers:
        times = seconds_to_target(courses, scale, optimizer, findings)
        show(times, bits, optimizer)
        findings.claims += claims_of(times, optimizer)
        findings.results[optimizer] = {
            condition: {arm: Sample.of(values) for arm, values in arms.items()}
            for condition, arms in times.items()
        }


def arms_under(slow):
    """The arms that a condition has something to say of, and how they are slowed.

    Serial training has rank 0 only.
    """
    first = None if slow is None else slow.split(",")[0]
    return {
        arm: first if arm.startswith("serial") else slow
        for arm in smallest(ARMS[2:], ARMS)
        if not (arm.startswith("serial") and first is not None and first.startswith("1="))
    }


def seconds_to_target(courses, scale, optimizer, findings):
    """Run all arms under all conditions, seed by seed, and `sync` twice."""
    conditions = scale.of(optimizer)
    slow = {name: arms_under(one.slow) for name, one in conditions.items()}

    def seconds(name, arm, seed):
        course = courses[conditions[name].target.key]
        return course.seconds(arm, optimizer, seed, slow=slow[name][arm])

    arms = {name: list(own) for name, own in slow.items()}
    times, again = Race(arms, scale.seeds, seconds).run(twin="sync")
    for name, own in again.items():
        findings.same(f"{optimizer}, {name}, sync, seconds", times[name]["sync"], own)
    return times


def show(times, bits, optimizer):
    """Print a table by condition, and how lock-free training stands beside the others."""
    print(f"\n{optimizer}: seconds to a held-out loss (median, range)")
    for condition, arms in times.items():
        print(f"  {condition}, {bits[condition]} bits per byte")
        for arm, values in arms.items():
            line = f"    {arm:17} {Sample.of(values).spelt('.1f')}"
            if arm != "hogwild":
                line += f"   / hogwild: {Ratio.of(values, arms['hogwild'])}"
            print(line)


def claims_of(times, optimizer):
    """What lock-free training should show beside the synchronous rivals."""

    limits = (
        (EQUAL, "sync by speed", 0.95),
        (SLEEPS, "sync", 1.0),
        (SLEEPS, "sync by speed", 1.2),
        (QUARTER, "sync", 1.2),
        (QUARTER, "sync by speed", 1.0),
    )
    return [
        Claim.of(
            f"{optimizer}, {condition}: {rival} / hogwild",
            Ratio.of(times[condition][rival], times[condition]["hogwild"]),
            ">=",
            least,
        )
        for condition, rival, least in limits
        if condition in times
    ]


if __name__ == "__main__":
    raise SystemExit(main())
