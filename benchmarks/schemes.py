"""Ways to train one xLSTM with two and with four workers: who reaches a loss sooner?

    python benchmarks/schemes.py                        two equal workers, three seeds
    python benchmarks/schemes.py --full                 every arm and condition, five seeds: hours
    python benchmarks/schemes.py --full --only late_workers
    python benchmarks/schemes.py --full --keep runs.jsonl   an interrupted run continues
    python benchmarks/schemes.py --tune                 search the settings: hours

schemes        `tiny` on bytes with Muon, to 2.1 bits per byte: one process with one and two
               threads, and two and four workers of one thread each, in rounds (equal shares,
               shares by speed, or sequences claimed by free workers), lock-free (each worker
               writes all parameters, or by blocks: only those that no other worker writes), in
               turn, and each on its own with one average at the end. Four workers share the two
               cores of this machine.
late_workers   the same race of two workers, disturbed in seven ways (`training/disturbances.py`),
               also by the usual answers to late workers, a backup worker and bounded staleness,
               and by racy writes
auto           trainings of forty seconds by the strategies and by `--strategy auto`, with an MLX
               and a PyTorch worker, whatever disturbs them: does it come near the best of the
               others in validation bits per byte? Each has the numbers of its strategy by default
auto_collect   it beside `collect`, where workers are equal, late and paused; no verdict
default_loss   what `mlxhog train` trains without options, to 1.6 bits per byte
ten_minutes    it at twice its width, for ten minutes, at the settings that default_loss found: the
               learning rate is scaled by the width
lower_loss     `tiny` to 1.8 bits per byte, with Muon and with AdamW
collect        sequences claimed by free workers, beside the best other strategy of four
               conditions that were named before the first run: the default model to 1.45 bits per
               byte. It is never behind if all four ratios have upper ends of at most 1.05
collect_tiny   the same with `tiny` to 2.1 bits per byte
collect_beside `tiny` in seven other conditions, one of them MLX beside PyTorch; no verdict

Ratios are of pairs with the same seed; every arm has the settings that one search found for it
(`training/race.py`). Lock-free workers write under locks of 4 KiB (`--write lossless`) unless the
arm says racy, share Muon's moments and predict weights.
"""

import math
from functools import partial
from statistics import median

from harness.claims import Claim, Control
from harness.estimates import Mean, Ratio
from harness.frame import run, say
from harness.interleaved import KEEP, remembered, take_turns, with_control
from harness.machine import smallest
from training.disturbances import DISTURBANCES, EQUAL, SLEEPS, SLOWER, Disturber
from training.race import Course, Target, arm_options, reached_json, reached_of
from training.recording import BYTES, TINY, model_file, record

RULE = "muon"
ALONE = ("serial 1 thread", "serial 2 threads")
ROUNDS, FREE, BLOCKS = ("sync", "speed-weighted sync"), "hogwild", "hogwild by blocks"
CLAIMED = "collect"
TURNS, ONCE = "round-robin", "runs averaged once"
TOGETHER = (*ROUNDS, CLAIMED, FREE, BLOCKS)
RACY = "hogwild, racy"
MIXED = "MLX beside PyTorch"
USUAL = ("sync, one backup", "ssp", RACY)
"""The usual answers to late workers, and Hogwild as published."""
TWIN = "hogwild again"
"""The A/A arm: it differs from `hogwild` in its name only."""
LATE = (*SLOWER, SLEEPS, "random sleeps, 3x", "another program")
HIGH = Target(2.1, {"muon": 200_000}, 16_384, margin=0.1)
DEFAULT = Target(1.6, {"muon": 300_000}, options={"model": "minute", "tokenizer": "auto"})
DEFAULT_ARMS = ("serial 2 threads", "speed-weighted sync mlx+torch", "hogwild mlx+torch")
ANY = Target(
    7.9, val_subset_tokens=1024, fixed={"lr": 3e-3, "tokens": 12_000},
    options={"model": model_file(**TINY), "seq_len": 32},
)  # fmt: skip
"""Of --tiny: any loss, with any settings."""


def arms(chosen):
    """Every arm of a mode, fixed before it runs: condition, scheme, workers."""
    if chosen.quick:
        return [(EQUAL, scheme, 2) for scheme in ("sync", CLAIMED, FREE, TWIN)]
    return [
        *((EQUAL, scheme, 1) for scheme in ALONE),
        *((EQUAL, scheme, 2) for scheme in (*TOGETHER, TURNS, ONCE, TWIN)),
        *((EQUAL, scheme, 4) for scheme in TOGETHER),
        *((SLEEPS, scheme, 4) for scheme in (*ROUNDS, CLAIMED, FREE)),
    ]


def late_arms(chosen):
    """The same of `late_workers`."""
    equal = [(EQUAL, scheme, 2) for scheme in (FREE, TWIN, RACY)]
    late = [(one, scheme, 2) for one in LATE for scheme in (*ROUNDS, CLAIMED, FREE, *USUAL)]
    return equal if chosen.quick else equal + late


def race_arm(scheme, workers):
    """The arm's name among those of `training.race`."""
    name = FREE if scheme == TWIN else scheme
    return f"{name}, {workers} workers" if workers > 2 else name


def train(course, condition, scheme, workers, seed, seconds=60.0):
    """One training under a condition, which may depend on how long a run takes."""
    disturbance = DISTURBANCES[EQUAL if condition == MIXED else condition]
    return course.run(
        f"{scheme} mlx+torch" if condition == MIXED else race_arm(scheme, workers), RULE, seed,
        inject_stragglers=disturbance.option(seconds, workers),
        disturb=Disturber(disturbance.disturb, seconds),
    )  # fmt: skip


def schemes(findings, chosen):
    """Race two and four workers."""
    race(findings, chosen, arms(chosen), "trainings")


def late_workers(findings, chosen):
    """Race two workers that are late."""
    race(findings, chosen, late_arms(chosen), "late_trainings")


def race(findings, chosen, raced, name):
    """Train every arm with every seed, all arms of a seed before the next; record each by name."""
    course = Course(chosen.pick(tiny=ANY, quick=HIGH, full=HIGH))
    if chosen.tune:
        return course.tune(RULE, [race_arm(scheme, n) for _, scheme, n in raced])
    once = remembered(
        chosen.keep, lambda *arm: reached_json(train(course, *arm)), of=reached_of
    )  # fmt: skip
    trained = take_turns(chosen.seeds, raced, lambda arm, seed: once(*arm, seed))
    compare(findings, trained)
    findings.results[name] = [
        {"condition": condition, "scheme": scheme, "workers": n,
         "runs": list(map(reached_json, own))}
        for (condition, scheme, n), own in trained.items()
    ]  # fmt: skip


# -- compare --------------------------------------------------------------------------------------


class Times:
    """The trainings of every arm, by seed."""

    def __init__(self, trained):
        self.trained = trained

    def of(self, arm, number="seconds"):
        """A number of each seed; infinite where a run did not reach the loss."""
        return [getattr(one, number) for one in self.trained[arm]]

    def reached(self, arm):
        """How many runs reached the loss, and within which time the others did not."""
        late_s = [one.trained_s for one in self.trained[arm] if math.isinf(one.seconds)]
        n = len(self.trained[arm])
        return f"{n - len(late_s)} of {n}" + (f" within {median(late_s):.1f} s" if late_s else "")

    def ratio(self, condition, rival, workers, number="seconds"):
        """Seconds of a rival over those of as many lock-free workers."""
        free = (condition, FREE, max(2, workers))
        return Ratio.of(self.of((condition, rival, workers), number), self.of(free, number))

    def claims(self, condition, rivals):
        """Lock-free workers are sooner than each rival that was run."""
        return [
            Claim.of(
                f"{condition}, {'1 process' if workers == 1 else f'{workers} workers'}: "
                f"{rival} / {FREE}, seconds",
                self.ratio(condition, rival, workers), ">=", 1.0,
            )
            for rival, workers in rivals
            if (condition, rival, workers) in self.trained
        ]  # fmt: skip

    def row(self, arm):
        """A row of the table."""
        reached = all(map(math.isfinite, self.of(arm)))
        beside = reached and arm[1] != FREE
        ratios = [
            self.ratio(*arm, number).spelt() if beside else "" for number in ("seconds", "tokens")
        ]
        return {
            **dict(zip(("condition", "scheme", "workers"), arm, strict=True)),
            "reached": self.reached(arm),
            "seconds to the loss": median(self.of(arm)) if reached else None,
            **dict(zip(("seconds / hogwild", "gradients / hogwild"), ratios, strict=True)),
            "tokens per second": round(median(self.of(arm, "tokens_per_s"))),
            "staleness": round(median(self.of(arm, "staleness")), 2),
        }


def compare(findings, trained):
    """Compare the arms in pairs of seeds; claims whose arms were not run inconclusive."""
    times = Times(trained)
    findings.table(map(times.row, trained))
    alone, two = (EQUAL, "serial 2 threads", 1), (EQUAL, "sync", 2)
    if {alone, two} <= trained.keys():
        name = f"{EQUAL}, 1 process: {alone[1]} / {two[1]}, seconds"
        findings.at_least(name, Ratio.of(times.of(alone), times.of(two)), 1.0)
    findings.claims += times.claims(SLEEPS, [(name, 2) for name in ROUNDS])
    rounds = [(name, workers) for workers in (2, 4) for name in (*ROUNDS, CLAIMED)]
    rivals = [*rounds, (TURNS, 2), ("serial 2 threads", 1), (RACY, 2)]
    findings.document(*averaged_once(times), *times.claims(EQUAL, rivals))
    for condition in LATE:
        findings.document(*times.claims(condition, [*rounds, *((name, 2) for name in USUAL)]))
    own = (times.of((EQUAL, scheme, 2)) for scheme in (FREE, TWIN))
    findings.controls.append(Control.of(f"{FREE}, 2 workers", *own))


def averaged_once(times):
    """Runs that never reach the loss have no ratio: they had longer than serial training took."""
    alone, once = (EQUAL, ALONE[0], 1), (EQUAL, ONCE, 2)
    if once not in times.trained:
        return []
    name = f"{ONCE}, 2 workers: {times.reached(once)}; seconds of {ALONE[0]} over theirs"
    if all(map(math.isfinite, times.of(once))):
        return [Claim.of(name, Ratio.of(times.of(alone), times.of(once)), "<=", 1.0)]
    late_s = min(one.trained_s for one in times.trained[once])
    return [Claim(name, max(times.of(alone)) / late_s, "<=", 1.0)]


# -- other losses ---------------------------------------------------------------------------------


def contest(findings, chosen, target, raced, own, rivals):
    """Seconds to a loss of optimizers and arms, beside one of them."""
    if chosen.tiny:
        target = ANY
    course, control = Course(target), raced[0]
    if chosen.tune:
        for optimizer in target.tokens:
            course.tune(optimizer, [arm for rule, arm in raced if rule == optimizer])
        return
    runs = take_turns(
        chosen.seeds, [*raced, (*control, "again")],
        lambda one, seed: course.run(one[1], one[0], seed).seconds,
    )  # fmt: skip
    findings.same(
        f"{' '.join(control)}, seconds to {target.bits}", runs[control], runs[*control, "again"]
    )
    times = {" ".join(one): seconds for one, seconds in runs.items()}
    findings.results[f"seconds to {target.bits}, by seed"] = times
    for rival, least in rivals.items():
        sooner = Ratio.of(times[rival], times[own])
        findings.at_least(f"{rival} / {own}, to {target.bits}", sooner, least)


def default_loss(findings, chosen):
    """What `mlxhog train` trains; workers by speed are what `auto` chooses for equal ones."""
    contest(
        findings, chosen, DEFAULT, [(RULE, arm) for arm in DEFAULT_ARMS],
        f"muon {DEFAULT_ARMS[1]}", {f"muon {arm}": 1.0 for arm in DEFAULT_ARMS[::2]},
    )  # fmt: skip


def ten_minutes(findings, chosen):
    """Train a wide model for as long by every arm."""
    if chosen.tune:
        return
    target = smallest(ANY, DEFAULT)
    wide = {"model": model_file(like="minute", hidden_size=256)}
    seconds = chosen.pick(tiny=1.0, quick=60.0, full=600.0)
    options = {**target.options, **smallest({}, wide), "eval_every": "1h", "time": seconds}

    def run(arm, seed):
        own = {**target.settings(RULE, arm), "tokens": None, **options}
        result = record(seed=seed, **{**arm_options(arm, RULE), **own}).result
        say(f"  seed {seed}  {arm:28} {result.val_bits_per_byte:.4f}  {result.tokens:,} tokens")
        return {"bits_per_byte": result.val_bits_per_byte, "tokens": result.tokens}

    runs = take_turns(chosen.seeds, DEFAULT_ARMS, remembered(chosen.keep, run))
    bits = {arm: [one["bits_per_byte"] for one in own] for arm, own in runs.items()}
    alone, *others = DEFAULT_ARMS
    for arm in others:
        apart = Mean.of_differences(bits[alone], bits[arm])
        findings.document(Claim.of(f"{alone} less {arm}, bits per byte", apart, ">=", 0.0))
    findings.table(
        {"arm": arm, "bits per byte": Mean.of(bits[arm]).spelt(".3f"),
         "tokens": round(median(one["tokens"] for one in own))}
        for arm, own in runs.items()
    )  # fmt: skip
    findings.results["runs"] = runs


def lower_loss(findings, chosen):
    """`tiny` to a lower loss; AdamW beside Muon."""
    raced = [
        (RULE, arm) for arm in ("serial 1 thread", "serial 2 threads", "speed-weighted sync", FREE)
    ]
    contest(
        findings, chosen, Target(1.8, {"muon": 700_000, "adamw": 1_200_000}),
        [*raced, ("adamw", "serial 1 thread"), ("adamw", FREE)], "muon hogwild",
        {
            "muon serial 1 thread": 1 / 0.58, "muon serial 2 threads": 1.0,
            "muon speed-weighted sync": 0.95, "adamw hogwild": 1.5,
        },
    )  # fmt: skip


# -- the strategy that chooses --------------------------------------------------------------------

AUTO, WITHIN = "auto", 1.03
"""WITHIN: largest ratio of bits per byte, `auto` over the best of the others."""
STRATEGIES = {
    "sync": {"strategy": "sync"},
    "speed-weighted sync": {"strategy": "sync", "sync_shares": "speed"},
    "hogwild": {"strategy": "hogwild"},
    AUTO: {"strategy": "auto"},
}
MINUTE = {
    "model": "minute", "tokenizer": "auto", "workers": "mlx:cpu,torch:cpu", "threads": 1,
    "eval_every": "1h",
}  # fmt: skip


def auto_claim(name, bits):
    """The claim that `auto` is near the best of the arms that stay, seed by seed."""
    others = zip(*(bits[arm] for arm in STRATEGIES if arm != AUTO), strict=True)
    ratio = Ratio.of(bits[AUTO], list(map(min, others)))
    return Claim.of(f"{name}: auto / best of the others", ratio, "<=", WITHIN)


def auto(findings, chosen):
    """Train as long by every strategy under every disturbance, seed by seed, and `sync` twice."""

    def beside(name, bits):
        findings.claims.append(auto_claim(name, bits))

    for_as_long(findings, chosen, DISTURBANCES, STRATEGIES, beside, control="sync")


def auto_collect(findings, chosen):
    """The same of `auto` and `collect`, in three of the conditions."""

    def beside(name, bits):
        ratio = Ratio.of(bits[CLAIMED], bits[AUTO])
        name = f"{name}: {CLAIMED} / {AUTO}, bits per byte"
        findings.document(Claim.of(name, ratio, ">=", 1.0))

    arms = {name: {"strategy": name} for name in (AUTO, CLAIMED)}
    for_as_long(findings, chosen, (EQUAL, "one 4x slower", "pauses"), arms, beside, control=CLAIMED)


def for_as_long(findings, chosen, conditions, arms, beside, *, control):
    """Compare bits per byte of arms after the same seconds, by condition; one arm runs twice."""
    if chosen.tune:
        return
    seconds = chosen.pick(tiny=1.0, quick=30.0, full=40.0)

    def run(name, arm, seed):
        disturber = Disturber(DISTURBANCES[name].disturb, seconds)
        options = {**MINUTE, **smallest(BYTES, {}), **arms[arm], "time": seconds}
        slow = DISTURBANCES[name].option(seconds, 2)
        one = record(disturb=disturber, inject_stragglers=slow, seed=seed, **options)
        bits = one.result.val_bits_per_byte
        say(f"  {name}, seed {seed}  {arm:14} {bits:.3f}  {one.changes}")
        return bits

    table = {}
    for name in list(conditions)[smallest(-1, 0) :]:
        table[name], again = with_control(chosen.seeds, arms, partial(run, name), control=control)
        findings.same(f"{name}, {control}, bits per byte", table[name][control], again)
        beside(name, table[name])
    findings.table(
        {"condition": name, "arm": arm, "bits per byte": Mean.of(values).spelt(".3f")}
        for name, bits in table.items()
        for arm, values in bits.items()
    )
    findings.results["bits_per_byte"] = table


# -- sequences that free workers claim ------------------------------------------------------------

CLAIMED_AGAIN = "collect again"
PLANNED = {
    (EQUAL, 4): "sync",
    ("one 4x slower", 2): "speed-weighted sync",
    ("pauses", 2): FREE,
    ("one joins late", 2): FREE,
}
"""Condition and workers: the best of the other strategies there, by what was recorded before."""
BESIDE = {("one 4x slower", 2): (FREE,), ("pauses", 2): ("sync",)}
"""Other strategies of a condition, which decide nothing."""
DESCRIBED = {
    (condition, 2): (ROUNDS[1], FREE)
    for condition in (
        EQUAL, "one 2x slower", "one 6x slower", "another program",
        "one stopped half of the time", "one dies", MIXED,
    )
}  # fmt: skip
BEHIND = 1.05
"""Largest upper end of the ratio of times that counts as not behind."""
TO_145 = Target(1.45, {"muon": 480_000}, options=DEFAULT.options)


def collect(findings, chosen, target=TO_145, lasts_s=30.0, planned=PLANNED, beside=BESIDE):
    """Race `collect` and the strategy that is best without it, condition by condition.

    A run takes about `lasts_s`; a late worker joins after a third of it.
    """
    course = Course(smallest(ANY, target))
    raced = [
        (*place, scheme)
        for place in {**planned, **beside}
        for scheme in (CLAIMED, *filter(None, [planned.get(place)]), *beside.get(place, ()))
    ]
    twice = raced[0]
    raced.append((*twice[:2], CLAIMED_AGAIN))
    if chosen.tune:
        names = (race_arm(scheme, workers) for _, workers, scheme in raced[:-1])
        return course.tune(RULE, dict.fromkeys(names))

    def run(arm, seed):
        condition, workers, scheme = arm
        say(f"  {condition}")
        scheme = CLAIMED if scheme == CLAIMED_AGAIN else scheme
        return reached_json(train(course, condition, scheme, workers, seed, lasts_s))

    runs = take_turns(chosen.seeds, raced, remembered(chosen.keep, run))
    runs = {arm: list(map(reached_of, own)) for arm, own in runs.items()}
    times = {arm: [one.seconds for one in own] for arm, own in runs.items()}
    for arm, own in times.items():
        place, scheme = arm[:2], arm[2]
        name = f"{arm[0]}, {arm[1]} workers: {CLAIMED} / {scheme}, seconds"
        ratio = Ratio.of(times[*place, CLAIMED], own)
        if scheme == planned.get(place):
            findings.at_most(name, ratio, BEHIND)
        elif scheme in beside.get(place, ()):
            findings.document(Claim.of(name, ratio, "<=", BEHIND))
    findings.same(
        f"{EQUAL}, {twice[1]} workers: {CLAIMED}, seconds",
        times[twice], times[*twice[:2], CLAIMED_AGAIN],
    )  # fmt: skip
    findings.table(
        {"condition": condition, "workers": workers, "scheme": scheme,
         "seconds to the loss": median(one.seconds for one in own),
         "tokens": median(one.tokens for one in own),
         "tokens per second": round(median(one.tokens_per_s for one in own))}
        for (condition, workers, scheme), own in runs.items()
    )  # fmt: skip
    findings.results["runs"] = [
        {"condition": condition, "workers": workers, "scheme": scheme,
         "runs": list(map(reached_json, own))}
        for (condition, workers, scheme), own in runs.items()
    ]  # fmt: skip


def collect_tiny(findings, chosen):
    """Race them with a smaller model, whose gradients take a few hundredths of a second."""
    return collect(findings, chosen, HIGH, lasts_s=6.0)


def collect_beside(findings, chosen):
    """Describe it in the other conditions."""
    return collect(findings, chosen, HIGH, lasts_s=6.0, planned={}, beside=DESCRIBED)


PARTS = {
    one.__name__: one
    for one in (
        schemes, auto, auto_collect, late_workers, default_loss, ten_minutes, lower_loss,
        collect, collect_tiny, collect_beside,
    )
}  # fmt: skip


def tuning(chosen):
    """Search the settings and record them."""
    for name in chosen.only or PARTS:
        PARTS[name](None, chosen)


if __name__ == "__main__":
    run(
        __doc__, PARTS, first={"tiny": 2, "quick": 1}, actions={"tune": tuning},
        options=KEEP,
        packages=("torch", "mlx"), quiet=True, seeds=(3, 5),
    )  # fmt: skip
