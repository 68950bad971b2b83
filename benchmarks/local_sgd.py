"""Workers with replicas of their own that meet every H steps: intervals, drift, outer steps.

    python benchmarks/local_sgd.py                       local_steps
    python benchmarks/local_sgd.py --full                all three
    python benchmarks/local_sgd.py --full --only clients

local_steps  to 95 % of scikit-learn's digits, for several intervals: four workers with equal
             shares, plain SGD. Time is counted, not measured: the document's 100 ms a step and
             50 ms an average; steps, bytes and accuracy are those of the product's strategies.
clients      Local SGD, FedProx and SCAFFOLD on four clients whose digits differ, divided by a
             Dirichlet distribution; ten local steps of plain SGD a round
outer_steps  a language model by plain SGD averaged (the document's Local SGD), AdamW averaged, and
             AdamW with Nesterov's outer step (DiLoCo), on as much text; the second arm tells the
             inner optimizer from the outer step

Every arm has the learning rate that one search of as many trials found on other seeds.
"""

import math
from statistics import fmean, median

from harness.claims import counted
from harness.estimates import Mean, Ratio
from harness.frame import other_seed, run, say
from harness.interleaved import take_turns
from harness.tuning import around, tuned
from training.digits import digits, divided, train
from training.recording import SIZES, TINY, Bench, workers

TUNED_ON = (101, 102)
CLIENTS = 4


def at_best(chosen, seeds, arms, train, cost, control):
    """Train every arm at its best learning rate, by the mean cost on seeds that nothing else uses.

    Args:
        chosen: the flags.
        seeds: of the trainings.
        arms: arm -> the middle of its axis of learning rates.
        train: (arm, seed, lr) -> a training.
        cost: of a training.
        control: the arm that is trained with other seeds as well (A/A).

    Returns:
        Arm -> learning rate, arm -> its trainings, and those of the control.
    """
    of, best = TUNED_ON[: chosen.pick(tiny=1, quick=2, full=2)], {}
    for arm, first in arms.items():

        def trial(point, arm=arm):
            return fmean(cost(train(arm, seed, point["lr"])) for seed in of)

        axes = {"lr": around(first, 2.0, chosen.pick(tiny=1, quick=5, full=5))}
        best[arm] = tuned(axes, trial)["lr"]
    runs = take_turns(seeds, arms, lambda arm, seed: train(arm, seed, best[arm]))
    return best, runs, [train(control, other_seed(seed), best[control]) for seed in seeds]


# -- intervals ------------------------------------------------------------------------------------

TARGET = 0.95
STEP_S, AVERAGE_S = 0.1, 0.05
INTERVALS = (1, 2, 5, 7, 10, 22, 50)


def local_steps(findings, chosen):
    """Train with every interval."""
    seeds = findings.seeds = tuple(range(1, 1 + chosen.pick(tiny=1, quick=6, full=12)))
    intervals = chosen.pick(tiny=(1, 10), quick=INTERVALS, full=INTERVALS)
    most = chosen.pick(tiny=20, quick=1200, full=2400)  # steps of each worker
    target = chosen.pick(tiny=0.3, quick=TARGET, full=TARGET)

    def one(every, seed, lr):
        """One run to an accuracy."""
        course = train(
            divided(digits()[0], CLIENTS, 1e4, seed), rounds=max(1, most // every), until=target,
            seed=seed, lr=lr, strategy="local_sgd", average_every=every,
        )  # fmt: skip
        say(f"  H {every} lr {lr:g} seed {seed}: {steps(course)}, {course.accuracy[-1]:.3f}")
        return course

    def cost(course):
        return math.inf if course.first_at(target) is None else steps(course)

    best, runs, again = at_best(chosen, seeds, dict.fromkeys(intervals, 0.4), one, cost, control=10)
    findings.same("interval 10, steps", [*map(steps, runs[10])], [*map(steps, again)])
    findings.table(
        {"interval": every, "lr": best[every], "steps of a worker": median(map(steps, own)),
         "averages": median(len(course.accuracy) for course in own),
         "MB": median(float(course.network_bytes[-1]) for course in own) / 1e6,
         "seconds": median(map(seconds, own))}
        for every, own in runs.items()
    )  # fmt: skip

    def ratio(number, own, other):
        """Of two intervals; none where a run misses the accuracy."""
        pair = (
            [number(c) if c.accuracy[-1] >= target else math.nan for c in runs[every]]
            for every in (own, other)
        )
        return Ratio.of(*pair)

    for name, number, own, other, claimed in (
        ("seconds of interval 1 / of 10", seconds, 1, 10, 1.75),
        ("steps of interval 10 / of 1", steps, 10, 1, 1.1),
    ):
        low, high = 0.9 * claimed, 1.1 * claimed
        findings.document(counted(name, ratio(number, own, other), "within", high, least=low))
    findings.results["steps"] = {str(every): [*map(steps, own)] for every, own in runs.items()}


def steps(course):
    """Of each worker."""
    return course.gradients[-1] // CLIENTS


def seconds(course):
    """By the document's times."""
    return steps(course) * STEP_S + len(course.accuracy) * AVERAGE_S


# -- clients --------------------------------------------------------------------------------------

LOCAL_STEPS = 10
METHODS = {
    "local_sgd": {"strategy": "local_sgd"},
    "fedprox": {"strategy": "fedprox", "prox_mu": 0.01},
    "scaffold": {"strategy": "scaffold"},
}
LIKE = 0.002
"""Accuracies that differ by less than an image of those of validation are the same; a gain counts
where it is surely above that, and none is one that fails."""


def clients(findings, chosen):
    """Train every method at every division."""
    seeds = findings.seeds = tuple(range(1, 1 + chosen.pick(tiny=1, quick=5, full=8)))
    rounds, runs = chosen.pick(tiny=1, quick=15, full=20), {}
    for alpha in chosen.pick(tiny=(1.0,), quick=(1.0, 0.1, 0.01), full=(1.0, 0.1, 0.01)):

        def one(name, seed, lr, alpha=alpha):
            """One run; clients, parameters and batches are of the seed."""
            shares = divided(digits()[0], CLIENTS, alpha, seed)
            options = {"average_every": LOCAL_STEPS, **METHODS[name]}
            course = train(shares, rounds=rounds, seed=seed, lr=lr, **options)
            say(f"  alpha {alpha:g} {name} lr {lr:g} seed {seed}: {score(course):.3f}")
            return course

        arms, control = dict.fromkeys(METHODS, 0.2), "local_sgd"
        _, runs[alpha], again = at_best(chosen, seeds, arms, one, lambda c: -score(c), control)
        own = list(map(score, runs[alpha][control]))
        findings.same(f"{control}, alpha {alpha:g}", own, list(map(score, again)))
    findings.table(
        {"alpha": alpha, "method": name, "accuracy": median(map(score, own)),
         "MB a round": own[0].network_bytes[0] / 1e6}
        for alpha, by in runs.items()
        for name, own in by.items()
    )  # fmt: skip
    compare_clients(findings, runs)
    findings.results["accuracy"] = {
        f"{alpha:g}": {name: [c.accuracy for c in own] for name, own in by.items()}
        for alpha, by in runs.items()
    }


def score(course):
    """Accuracy over the last three rounds, since single ones jump where data differ."""
    return fmean(course.accuracy[-3:])


def compare_clients(findings, runs):
    """The document: SCAFFOLD is better than FedProx, and that than Local SGD, at every division."""
    for name, other in (("scaffold", "fedprox"), ("fedprox", "local_sgd")):
        for alpha, by in runs.items():
            gain = Mean.of_differences(*(list(map(score, by[one])) for one in (name, other)))
            text = f"alpha {alpha:g}, accuracy of {name} less that of {other}"
            findings.document(counted(text, gain, ">=", LIKE))


# -- outer steps ----------------------------------------------------------------------------------

ARMS = {
    "Local SGD, inner SGD": ({"strategy": "local_sgd", "optimizer": "sgd"}, 0.3),
    "Local SGD, inner AdamW": ({"strategy": "local_sgd", "optimizer": "adamw"}, 2e-3),
    "DiLoCo, inner AdamW": ({"strategy": "diloco", "optimizer": "adamw"}, 2e-3),
}
"""Options, and the middle of the axis of learning rates."""
SGD, ADAMW, DILOCO = ARMS


def outer_steps(findings, chosen):
    """Train the three."""
    seeds = findings.seeds = tuple(range(1, 1 + chosen.pick(tiny=1, quick=3, full=3)))
    bench = Bench(chosen.pick(tiny=TINY, quick=SIZES, full=SIZES), looks=2)
    common = {
        "tokens": chosen.pick(tiny=2_048, quick=10_000, full=100_000),
        "average_every": chosen.pick(tiny=4, quick=5, full=10),
        "workers": workers(2),
    }

    def one(name, seed, lr):
        return bench.train(f"{name}, lr {lr:g}", seed=seed, lr=lr, **common, **ARMS[name][0])

    arms = {name: first for name, (_, first) in ARMS.items()}
    best, runs, again = at_best(chosen, seeds, arms, one, lambda t: t.end, control=ADAMW)
    ends = {name: [training.end for training in own] for name, own in runs.items()}
    findings.same(ADAMW, ends[ADAMW], [training.end for training in again])
    findings.table(
        {"arm": name, "lr": best[name], "bits per byte": Mean.of(ends[name]).spelt(".3f"),
         "tokens per second": round(median(t.tokens_per_s for t in own))}
        for name, own in runs.items()
    )  # fmt: skip
    for other in (SGD, ADAMW):
        less = Mean.of_differences(ends[DILOCO], ends[other])
        findings.document(counted(f"bits per byte, {DILOCO} less {other}", less, "<=", 0.0))
    findings.results |= {"settings": {**bench.settings, "lr": best}, "bits_per_byte": ends}


PARTS = {one.__name__: one for one in (local_steps, clients, outer_steps)}


if __name__ == "__main__":
    run(__doc__, PARTS, first={"quick": 1}, packages=("torch", "scikit-learn"))
