"""Ways to train one xLSTM with two and with four workers: who reaches a loss sooner?

    python benchmarks/experiments/schemes.py          two equal workers, three seeds
    python benchmarks/experiments/schemes.py --full   every arm and condition, five seeds: an hour
    python benchmarks/experiments/schemes.py --tune   search the settings of --full: 15 minutes

All train to 2.1 bits per byte, as `unequal_workers.py --quick` does. Each finished training is a
line of `schemes.runs.jsonl`; an interrupted run continues after them.
"""

import math
from statistics import median

from experiment.figures import intervals, new_panels
from experiment.record import HOLDS, UNTOLD, Compared, Experiment, Outcome, Scale, run
from experiment.runs import Runs
from harness.claims import Claim, Twin
from harness.estimates import Ratio
from harness.interleaved import take_turns
from training.race import Course, Target
from training.recording import model_file
from unequal_workers import EQUAL, HIGH, QUARTER, SLEEPS

ABOUT = Experiment(
    name="schemes",
    title="Lock-free against round-robin, averaged runs and averaged gradients on xLSTM",
    source="document 001, Comparison to Alternatives; document 002",
    about=(
        "One process with one and two threads, and two and four workers of one thread each, train "
        "the same model with Muon until a held-out loss: in rounds (equal shares, or shares by "
        "speed), lock-free (each worker writes all parameters, or by blocks: only those that no "
        "other worker writes), in turn, and each on its own with one average at the end. A search "
        "with one seed has chosen the step size of each, with a worse one on either side, and its "
        "amount of text; the momentum of serial, averaging and lock-free workers was searched, "
        "that of blocks, turns and runs averaged once was not, and no batch size was: a worker "
        "takes 4 sequences, so a step of two that average has 8. Workers are equal; one is four "
        "times slower; or all take six times as long for one gradient in ten, at random. Ratios "
        "are of pairs with the same seed. Four workers share the two cores of this machine."
    ),
    packages=("torch",),
)
RULE = "muon"
ALONE = ("serial 1 thread", "serial 2 threads")
ROUNDS, FREE, BLOCKS = ("sync", "sync by speed"), "hogwild", "hogwild by blocks"
TURNS, ONCE = "round-robin", "runs averaged once"
TOGETHER = (*ROUNDS, FREE, BLOCKS)
ONLY_TWO = (TURNS, ONCE)
TWIN = "hogwild again"
"""The A/A arm: it differs from `hogwild` in its name only."""


def arms(scale):
    """Every arm of a mode, fixed before it runs."""
    if scale.quick:
        few = ("sync", FREE, TWIN)
        return [(EQUAL, scheme, 2) for scheme in few]
    alone = [(EQUAL, scheme, 1) for scheme in ALONE]
    equal = [(EQUAL, scheme, 2) for scheme in (*TOGETHER, *ONLY_TWO, TWIN)]
    four = [(EQUAL, scheme, 4) for scheme in TOGETHER]
    unequal = [
        *((QUARTER, scheme, 2) for scheme in (*ROUNDS, FREE)),
        *((SLEEPS, scheme, 2) for scheme in TOGETHER),
        *((SLEEPS, scheme, 4) for scheme in (*ROUNDS, FREE)),
    ]
    return [*alone, *equal, *four, *unequal]


def race_arm(scheme, workers):
    """The arm's name among those of `training.race`."""
    name = FREE if scheme == TWIN else scheme
    return f"{name}, {workers} workers" if workers > 2 else name


def slow(condition, workers):
    """The option that makes workers slow on purpose."""
    if condition == QUARTER:
        return "1=4"
    return ",".join(f"{k}=random:0.1:6" for k in range(workers)) if condition == SLEEPS else None


def target(scale):
    """The loss to reach; in --tiny any loss, with any settings."""
    tiny = Target(
        7.9,
        {},
        1024,
        options={
            "model": model_file(hidden_size=32, num_hidden_layers=1),
            "seq_len": 32,
        },
        fixed={"lr": 3e-3, "tokens": 12_000},
    )
    return tiny if scale.mode == "tiny" else HIGH


def settings(scale):
    """The recorded settings of every arm.

    Raises:
        SystemExit: nothing was searched for one of them.
    """
    names = dict.fromkeys(race_arm(scheme, workers) for _, scheme, workers in arms(scale))
    return {name: target(scale).settings(RULE, name) for name in names}


def result(scale):
    """Train every arm with every seed, all arms of a seed before the next seed."""
    chosen, goal, runs = settings(scale), target(scale), Runs(ABOUT, scale)
    race = Course(goal)

    def train(arm, seed):
        condition, scheme, workers = arm
        name = race_arm(scheme, workers)
        which = {"arm": arm, "seed": seed, "bits": goal.bits, "settings": chosen[name]}

        def reached():
            own = race.run(name, RULE, seed, slow=slow(condition, workers))
            finite = math.isfinite(own.seconds)
            return {
                "seconds": own.seconds if finite else None,
                "tokens": own.tokens if finite else None,
                "trained_s": own.trained_s,
                "tokens_per_s": own.tokens_per_s,
                "staleness": own.staleness,
            }

        return runs.of(which, reached)

    return outcome(scale, take_turns(scale.seeds, arms(scale), train), chosen, runs.others_load)


# -- compare --------------------------------------------------------------------------------------


class Times:
    """The trainings of every arm, by seed."""

    def __init__(self, trained):
        """Take what came of them."""
        self.trained = trained

    def of(self, arm, number="seconds"):
        """A number of each seed; infinite where a run did not reach the loss."""
        values = [one[number] for one in self.trained[arm]]
        return [math.inf if one is None or one != one else float(one) for one in values]

    def reached(self, arm):
        """How many runs reached the loss, and within which time the others did not."""
        runs = self.trained[arm]
        n = sum(one["seconds"] is not None for one in runs)
        late_s = [one["trained_s"] for one in runs if one["seconds"] is None]
        return f"{n} of {len(runs)}" + (f" within {median(late_s):.1f} s" if late_s else "")

    def ratio(self, condition, rival, workers, own=FREE):
        """Seconds of a rival over those of as many lock-free workers."""
        crowd = max(2, workers)
        return Ratio.of(self.of((condition, rival, workers)), self.of((condition, own, crowd)))

    def claims(self, condition, rivals, least=1.0):
        """Lock-free workers are so many times sooner than each rival that was run."""
        return [
            Claim.of(
                f"{condition}, {_crowd(workers)}: {rival} / {FREE}, seconds",
                self.ratio(condition, rival, workers),
                ">=",
                least,
            )
            for rival, workers in rivals
            if (condition, rival, workers) in self.trained
        ]


def _crowd(workers):
    return "1 process" if workers == 1 else f"{workers} workers"


def outcome(scale, trained, chosen, others_load):
    """Compare the arms in pairs of seeds."""
    times = Times(trained)
    goal = target(scale)
    return Outcome(
        compared=_compared(times),
        table=[_row(times, arm) for arm in trained],
        claims=[*_averaging(times), *times.claims(SLEEPS, [(name, 2) for name in ROUNDS])],
        settings={
            "model": "xlstm d 32, 1 block" if scale.mode == "tiny" else "xlstm d 128, 4 blocks",
            "optimizer": RULE,
            "schedule": "cosine after a warm-up over 3 % of the text",
            "write": "lossless, locks of 4 KiB",
            "moments": "shared by lock-free workers",
            "predict": "own",
            "target, bits per byte": goal.bits,
            "held_out_tokens": goal.eval_tokens,
            "searched": {name: dict(one) for name, one in chosen.items()},
        },
        results={
            "trainings": [
                {"condition": condition, "scheme": scheme, "workers": workers, "runs": list(own)}
                for (condition, scheme, workers), own in trained.items()
            ]
        },
        twins=[
            Twin.of(f"{FREE}, 2 workers", times.of((EQUAL, FREE, 2)), times.of((EQUAL, TWIN, 2)))
        ],
        others_load=others_load,
    )


def _row(times, arm):
    condition, scheme, workers = arm
    own = times.trained[arm]
    ratio = times.ratio(condition, scheme, workers)
    reached = all(map(math.isfinite, times.of(arm)))
    return {
        "condition": condition,
        "scheme": scheme,
        "workers": workers,
        "reached": times.reached(arm),
        "seconds to the loss": median(times.of(arm)) if reached else None,
        "seconds / hogwild": "" if scheme == FREE or not reached else ratio.spelt(),
        "gradients / hogwild": ""
        if scheme == FREE or not reached
        else Ratio.of(
            times.of(arm, "tokens"), times.of((condition, FREE, max(2, workers)), "tokens")
        ).spelt(),
        "tokens per second": round(median(one["tokens_per_s"] for one in own)),
        "staleness": round(median(one["staleness"] for one in own), 2),
    }


def _averaging(times):
    """Two workers that average are sooner than one process with as many threads (README)."""
    alone, rounds = (EQUAL, "serial 2 threads", 1), (EQUAL, "sync", 2)
    if not {alone, rounds} <= times.trained.keys():
        return []
    ratio = Ratio.of(times.of(alone), times.of(rounds))
    return [Claim.of(f"{EQUAL}, 1 process: {alone[1]} / {rounds[1]}, seconds", ratio, ">=", 1.0)]


def _compared(times):
    """The documents' claims; those whose arms were not run cannot be told."""
    rounds = [(name, workers) for workers in (2, 4) for name in ROUNDS]
    rivals = [*rounds, (TURNS, 2), ("serial 2 threads", 1)]
    turns, averaging, best = (
        times.claims(EQUAL, [(TURNS, 2)], least=10.0),
        times.claims(EQUAL, rounds),
        times.claims(EQUAL, rivals),
    )
    unequal = times.claims(QUARTER, rounds) + times.claims(SLEEPS, rounds)
    every = (
        ("Round-Robin is 10x slower than Hogwild! for fast gradients, a bad fit for xLSTM", turns),
        ("Gradient averaging is slower", averaging),
        ("Hogwild! is optimal for xLSTM", best),
        ("Natural load balancing: no barriers, adapts to varying gradient times", unequal),
    )
    compared = [
        Compared.of(words, *claims, whole=claims in (averaging, best))
        if claims
        else Compared(words, "its arms are those of --full", UNTOLD)
        for words, claims in every
    ]
    return [*compared[:1], _averaged_once(times), *compared[1:]]


def _averaged_once(times):
    """Runs that never reach the loss have no ratio: they had longer than serial training took."""
    words = "MapReduce (independent runs, averaged): no improvement over serial"
    alone, once = (EQUAL, ALONE[0], 1), (EQUAL, ONCE, 2)
    if once not in times.trained:
        return Compared(words, "its arms are those of --full", UNTOLD)
    if all(map(math.isfinite, times.of(once))):
        sooner = Ratio.of(times.of(alone), times.of(once))
        name = f"{ALONE[0]} / {ONCE} (2 workers), seconds"
        return Compared.of(words, Claim.of(name, sooner, "<=", 1.0))
    late_s = min(one["trained_s"] for one in times.trained[once])
    longest_s = max(times.of(alone))
    return Compared(
        words,
        f"{ONCE}, 2 workers: {times.reached(once)} reached the loss; {ALONE[0]} takes at most "
        f"{longest_s:.1f} s",
        HOLDS if longest_s < late_s else UNTOLD,
    )


# -- draw -----------------------------------------------------------------------------------------


def draw(outcome):
    """Seconds of every scheme over those of lock-free workers: each pair, and the ratio."""
    trained = {
        (one["condition"], one["scheme"], one["workers"]): one["runs"]
        for one in outcome.results["trainings"]
    }
    times = Times(trained)
    conditions = list(dict.fromkeys(condition for condition, _, _ in trained))
    figure, panels = new_panels(*(("seconds / hogwild's", "", name) for name in conditions))
    for axes, condition in zip(panels, conditions, strict=True):
        pairs, ratios = {}, {}
        for arm in trained:
            if arm[0] == condition and arm[1] != FREE:
                name = f"{arm[1]}, {_crowd(arm[2])}"
                free = times.of((condition, FREE, max(2, arm[2])))
                own = zip(times.of(arm), free, strict=True)
                pairs[name] = [a / b for a, b in own if math.isfinite(a / b)]
                ratios[name] = times.ratio(*arm)
        intervals(axes, pairs, ratios)
        axes.axvline(1.0, color="0.6", linewidth=0.8)
        axes.set_xscale("log")
    return figure


def tune():
    """Search the settings of every arm; what was tried is not tried again."""
    full = Scale.of(ABOUT, "full")
    Course(target(full)).tune(
        RULE, [race_arm(scheme, workers) for _, scheme, workers in arms(full)]
    )


if __name__ == "__main__":
    raise SystemExit(run(ABOUT, result, draw, tune=tune))
