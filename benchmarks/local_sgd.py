"""Workers with replicas of their own that meet every H steps: intervals, drift, outer steps.

    python benchmarks/local_sgd.py                       all three
    python benchmarks/local_sgd.py --full --only clients

local_steps  to 95 % of scikit-learn's digits, for several intervals: four workers with equal
             shares, plain SGD. Time is counted, not measured: the document's 100 ms a step and
             50 ms an average; steps, bytes and accuracy are those of the product's strategies.
clients      Local SGD, FedProx and SCAFFOLD on four clients whose digits differ, divided by a
             Dirichlet distribution; ten local steps of plain SGD a round
outer_steps  a language model by plain SGD averaged (the document's Local SGD), AdamW averaged, and
             AdamW with Nesterov's outer step (DiLoCo), on as much text; the second arm tells the
             inner optimizer from the outer step

Every arm has the step size that one search of as many trials found on other seeds.
"""

import math
from statistics import fmean, median

import numpy as np
from harness.claims import counted
from harness.estimates import Mean, Ratio
from harness.frame import MODES, flags, measured_parts, other_seed, say
from harness.interleaved import take_turns
from harness.tuning import around, tuned
from training.digits import digits, divided, train
from training.recording import SIZES, TINY, Bench, workers

from mlxhog.strategies.averaging import CONTROL, LocalSGD, Scaffold

TUNED_ON = (101, 102)


def rates_of(chosen, arms, first, cost, n=5):
    """The best step size of each arm, by the mean cost on seeds that nothing else uses."""
    axes = {"lr": around(first, 2.0, chosen.pick(tiny=1, quick=n, full=n))}
    seeds = TUNED_ON[: chosen.pick(tiny=1, quick=2, full=2)]
    return {
        arm: tuned(axes, lambda point, arm=arm: fmean(cost(arm, s, point["lr"]) for s in seeds))[
            "lr"
        ]
        for arm in arms
    }


# -- intervals ------------------------------------------------------------------------------------

WORKERS, TARGET = 4, 0.95
STEP_S, AVERAGE_S = 0.1, 0.05
INTERVALS = (1, 2, 5, 7, 10, 22, 50)
BY_EXERCISE = 7  # what the document's exercise says for its times
GROWTH_FROM = 10
"""The interval that is compared with 1 to tell what a local step costs."""


def local_steps(findings, chosen):
    """Train with every interval."""
    seeds = findings.seeds = tuple(range(1, 1 + chosen.pick(tiny=1, quick=6, full=12)))
    intervals = chosen.pick(tiny=(1, 7, 10), quick=INTERVALS, full=INTERVALS)
    most = chosen.pick(tiny=20, quick=1200, full=2400)  # steps of each worker
    target = chosen.pick(tiny=0.3, quick=TARGET, full=TARGET)

    def one(every, seed, lr):
        """One run to an accuracy; without an interval, `sync`."""
        method = {"strategy": "sync"} if every is None else {
            "strategy": "local_sgd", "average_every": every,
        }  # fmt: skip
        shares = divided(digits()[0], WORKERS, 1e4, seed)
        rounds = max(1, most // (every or 1))
        course = train(shares, rounds=rounds, until=target, seed=seed, lr=lr, **method)
        say(f"  H {every} lr {lr:g} seed {seed}: {steps(course)}, {course.accuracy[-1]:.3f}")
        return course

    def cost(every, seed, lr):
        course = one(every, seed, lr)
        return math.inf if course.first_at(target) is None else steps(course)

    best = rates_of(chosen, intervals, 0.4, cost)
    runs = take_turns(seeds, intervals, lambda every, seed: one(every, seed, best[every]))
    again = [one(10, other_seed(seed), best[10]) for seed in seeds]
    findings.same("interval 10, steps", [*map(steps, runs[10])], [*map(steps, again)])
    sync = [one(None, seed, best[1]) for seed in seeds]
    same = max(abs(a.gradients[-1] - b.gradients[-1]) for a, b in zip(sync, runs[1], strict=True))
    name = "gradients of sync, less those of Local SGD with interval 1"
    findings.at_most(name, float(same), float(WORKERS), timing=False)
    findings.table(
        {"interval": every, "lr": best[every], "steps of a worker": median(map(steps, own)),
         "averages": median(len(course.accuracy) for course in own),
         "MB": median(map(sent, own)) / 1e6, "seconds": median(map(seconds, own))}
        for every, own in runs.items()
    )  # fmt: skip
    compare_intervals(findings, runs, target)
    findings.results["steps"] = {str(every): [*map(steps, own)] for every, own in runs.items()}


def steps(course):
    """Of each worker."""
    return course.gradients[-1] // WORKERS


def seconds(course):
    """By the document's times."""
    return steps(course) * STEP_S + len(course.accuracy) * AVERAGE_S


def sent(course):
    """Bytes to the accuracy."""
    return float(course.network_bytes[-1])


def compare_intervals(findings, runs, target):
    """What the document says, beside this; nothing of an interval that misses the accuracy."""

    def of(every, number):
        return [number(c) if c.accuracy[-1] >= target else math.nan for c in runs[every]]

    def within(claim, name, number, own, other, claimed):
        """That a ratio is within a tenth of what the document says."""
        ratio = Ratio.of(of(own, number), of(other, number))
        low, high = 0.9 * claimed, 1.1 * claimed
        findings.compare(claim, counted(name, ratio, "within", high, least=low))

    took = {every: of(every, seconds) for every in runs}
    apart, single = (median(map(steps, runs[every])) for every in (GROWTH_FROM, 1))
    growth = (max(apart / single, 1.001) - 1) / (GROWTH_FROM - 1)
    ruled = interval_by_cost(step_s=STEP_S, sync_s=AVERAGE_S, growth=growth)
    findings.compare(
        "The best interval is 7 at 100 ms, 50 ms and a growth of .001 (its own class says 22)",
        *(
            counted(f"seconds of interval {BY_EXERCISE} / of {every}",
                    Ratio.of(took[BY_EXERCISE], own), "<=", 1.0)
            for every, own in took.items()
            if every != BY_EXERCISE
        ),
        measured="Seconds by interval: "
        + ", ".join(f"{every}: {Mean.of(own).spelt('.1f')}" for every, own in took.items())
        + f". The rule with the growth measured here ({growth:.3f} a local step) says {ruled}.",
    )  # fmt: skip
    words = "Local SGD with interval 10 is 1.75 times as fast to 95 %"
    within(words, "seconds of interval 1 / of 10", seconds, 1, 10, 1.75)
    within("It needs 10 % more gradients", "steps of interval 10 / of 1", steps, 10, 1, 1.1)
    words = "Its communication is ten times less"
    within(words, "bytes of interval 1 / of 10", sent, 1, 10, 10.0)


def interval_by_cost(*, step_s, sync_s, growth):
    """The H with the least time to a loss, if each further local step costs steps.

    With `growth` b, a run needs 1 + b (H - 1) times the steps of a run with H = 1. The time
    (T_c + T_s / H)(1 + b (H - 1)) is least at the root of T_s (1 - b) / (T_c b).
    """
    best = math.sqrt(sync_s * (1 - growth) / (step_s * growth))
    return min(
        (max(1, math.floor(best)), max(1, math.ceil(best))),
        key=lambda h: (step_s + sync_s / h) * (1 + growth * (h - 1)),
    )


# -- clients --------------------------------------------------------------------------------------

CLIENTS, LOCAL_STEPS = 4, 10
WANTED = 0.8  # the document's accuracy, to which rounds are counted
METHODS = {
    "local_sgd": {"strategy": "local_sgd"},
    "fedprox": {"strategy": "fedprox", "prox_mu": 0.01},
    "scaffold": {"strategy": "scaffold"},
}
CLAIMED_DROP = 0.92 - 0.71
LIKE = 0.002
"""Accuracies that differ by less than an image of the held-out ones are the same; a gain counts
where it is surely above that, and none is one that fails."""


def clients(findings, chosen):
    """Train every method at every division."""
    seeds = findings.seeds = tuple(range(1, 1 + chosen.pick(tiny=1, quick=5, full=8)))
    alphas = chosen.pick(tiny=(1.0,), quick=(1.0, 0.1, 0.01), full=(1.0, 0.1, 0.01))
    rounds, runs = chosen.pick(tiny=1, quick=15, full=20), {}

    def one(name, alpha, seed, lr):
        """One run; clients, parameters and batches are of the seed."""
        shares = divided(digits()[0], CLIENTS, alpha, seed)
        options = {"average_every": LOCAL_STEPS, **METHODS[name]}
        course = train(shares, rounds=rounds, seed=seed, lr=lr, **options)
        say(f"  alpha {alpha:g} {name} lr {lr:g} seed {seed}: {score(course):.3f}")
        return course

    for alpha in alphas:
        best = rates_of(
            chosen, METHODS, 0.2, lambda name, s, lr, a=alpha: -score(one(name, a, s, lr))
        )
        runs[alpha] = take_turns(
            seeds, METHODS, lambda name, s, a=alpha, r=best: one(name, a, s, r[name])
        )
        if alpha == alphas[0]:
            again = [one("local_sgd", alpha, other_seed(seed), best["local_sgd"]) for seed in seeds]
            own = list(map(score, runs[alpha]["local_sgd"]))
            findings.same(f"local_sgd, alpha {alpha:g}", own, list(map(score, again)))
    correction = corrections(rounds=min(rounds, 5))
    name = "SCAFFOLD: mean of c - c_i, of the largest"
    findings.at_most(name, correction["sum"], 1e-5, timing=False)
    findings.table(row(alpha, name, own) for alpha, by in runs.items() for name, own in by.items())
    compare_clients(findings, runs, correction)
    findings.results["accuracy"] = {
        f"{alpha:g}": {name: [c.accuracy for c in own] for name, own in by.items()}
        for alpha, by in runs.items()
    }


def score(course):
    """Accuracy over the last three rounds, since single ones jump where data differ."""
    return fmean(course.accuracy[-3:])


def row(alpha, name, runs):
    """One line of the table."""
    reached = [course.first_at(WANTED) or math.inf for course in runs]
    return {
        "alpha": alpha,
        "method": name,
        "accuracy": median(map(score, runs)),
        f"rounds to {WANTED:.0%}": f"{median(reached):g}",
        "MB a round": runs[0].network_bytes[0] / 1e6,
    }


SEEN = {}
"""c - c_i of every client, after the last round."""


def corrections(*, rounds):
    """How large c - c_i is after some rounds: ours, and by the document's first class."""
    largest, shares = {}, divided(digits()[0], CLIENTS, 0.1, 1)
    options = {"average_every": LOCAL_STEPS, "strategy": "scaffold", "lr": 0.1}
    for name, kind in (("ours", Watched), ("document", ByDocument)):
        SEEN.clear()
        train(shares, rounds=rounds, seed=1, kind=kind, **options)
        largest[name] = max(float(np.abs(part).max()) for part in SEEN.values())
        if kind is Watched:
            largest["sum"] = float(np.abs(sum(SEEN.values())).max()) / largest[name]
    return largest


class Watched(Scaffold):
    """Ours, which notes each client's correction at the end of a round."""

    def take(self, arena, rank):
        super().take(arena, rank)
        SEEN[rank] = arena.segment(CONTROL) - arena.segment(f"{CONTROL}.{rank + 1}")


class ByDocument(Watched):
    """With the document's rule: c_i moves by as much as c did; no gradient has a part in it."""

    def mix(self, arena, rank):
        LocalSGD.mix(self, arena, rank)
        controls = [arena.segment(f"{CONTROL}.{k + 1}") for k in range(CLIENTS)]
        moved = sum(controls) / np.float32(CLIENTS) - arena.segment(CONTROL)
        np.copyto(arena.segment(f"{CONTROL}.next.{rank + 1}"), controls[rank] + moved)

    def keep(self, arena, rank):
        LocalSGD.keep(self, arena, rank)
        after = [arena.segment(f"{CONTROL}.next.{k + 1}") for k in range(CLIENTS)]
        span = self.share(arena, rank)
        np.copyto(arena.segment(CONTROL)[span], sum(each[span] for each in after) / CLIENTS)
        np.copyto(arena.segment(f"{CONTROL}.{rank + 1}"), after[rank])


def compare_clients(findings, runs, correction):
    """What the document says, beside this."""

    def gain(alpha, name, other):
        own, others = (list(map(score, runs[alpha][method])) for method in (name, other))
        text = f"alpha {alpha:g}, accuracy of {name} less that of {other}"
        return counted(text, Mean.of_differences(own, others), ">=", LIKE)

    ends = [list(map(score, runs[alpha]["local_sgd"])) for alpha in (max(runs), min(runs))]
    drop = Mean.of_differences(*ends)
    text = f"accuracy of local_sgd at alpha {max(runs):g} less that at {min(runs):g}"
    for name, other in (("scaffold", "fedprox"), ("fedprox", "local_sgd")):
        words = {"scaffold": "SCAFFOLD", "fedprox": "FedProx", "local_sgd": "Local SGD"}
        findings.compare(
            f"{words[name]} is better than {words[other]} at every division",
            *(gain(alpha, name, other) for alpha in runs),
        )
    findings.compare(
        "Local SGD falls from 92 % at alpha 1 to 71 % at alpha .01",
        counted(text, drop, ">=", LIKE),
        counted(f"{text}, at least half of the document's", drop, ">=", CLAIMED_DROP / 2),
    )
    findings.describe(
        "The class with momentum correction corrects client drift",
        "Its rule moves every c_i by as much as c moved and uses no gradient, so from zero nothing "
        f"is ever corrected. Largest |c - c_i| here: {correction['document']:g}, by Option II "
        f"{correction['ours']:.3g}.",
    )
    findings.describe(
        "SCAFFOLD sends twice as much",
        "A client sends its parameters and its control variate, which is of the same size.",
    )


# -- outer steps ----------------------------------------------------------------------------------

ARMS = {
    "Local SGD, inner SGD": ({"strategy": "local_sgd", "optimizer": "sgd"}, 0.3),
    "Local SGD, inner AdamW": ({"strategy": "local_sgd", "optimizer": "adamw"}, 2e-3),
    "DiLoCo, inner AdamW": ({"strategy": "diloco", "optimizer": "adamw"}, 2e-3),
}
"""Options, and the middle of the axis of step sizes."""
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

    best = {}
    for name, (_, first) in ARMS.items():
        best |= rates_of(chosen, [name], first, lambda arm, s, lr: one(arm, s, lr).end)
    runs = take_turns(seeds, ARMS, lambda name, seed: one(name, seed, best[name]))
    again = [one(ADAMW, other_seed(seed), best[ADAMW]).end for seed in seeds]
    ends = {name: [training.end for training in own] for name, own in runs.items()}
    findings.same(ADAMW, ends[ADAMW], again)
    late = max(t.staleness for own in runs.values() for t in own)
    findings.exact("mean staleness", late, 0.0)
    findings.table(
        {"arm": name, "lr": best[name], "bits per byte": Mean.of(ends[name]).spelt(".3f"),
         "tokens per second": round(median(t.tokens_per_s for t in own))}
        for name, own in runs.items()
    )  # fmt: skip

    def below(name, other):
        less = Mean.of_differences(ends[name], ends[other])
        return counted(f"bits per byte, {name} less {other}", less, "<=", 0.0)

    words = "DiLoCo reaches a lower perplexity than Local SGD at equal communication"
    findings.compare(words, below(DILOCO, SGD))
    inner, outer = Mean.of_differences(ends[ADAMW], ends[SGD]), below(DILOCO, ADAMW)
    findings.compare(
        "because of its outer momentum, beside the inner optimizer", outer,
        measured=f"{outer.name}: {outer.measured}; AdamW in place of SGD is {inner.spelt('+.3f')}",
    )  # fmt: skip
    findings.describe(
        "Communication volume is the same",
        "All three average the parameters once a meeting, and meet equally often.",
    )
    findings.results |= {"settings": {**bench.settings, "lr": best}, "bits_per_byte": ends}


PARTS = {one.__name__: one for one in (local_steps, clients, outer_steps)}


def main():
    """Run the parts that the flags name."""
    chosen = flags(__doc__, parts=PARTS, **MODES).parse_args()
    return measured_parts(PARTS, chosen, packages=("torch", "scikit-learn"))


if __name__ == "__main__":
    raise SystemExit(main())
