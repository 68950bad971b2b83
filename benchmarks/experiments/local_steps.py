"""How many local steps between two averages: to 95 % of the digits, for several intervals."""

import math
from statistics import median

from experiment.digits import digits, divided, train
from experiment.figures import INKS, new_panels
from experiment.record import (
    Compared,
    Experiment,
    Outcome,
    other_seed,
    run,
    say,
)
from experiment.searches import search
from harness.claims import Claim, Twin
from harness.estimates import Mean, Ratio
from harness.interleaved import take_turns

ABOUT = Experiment(
    name="local_steps",
    title="Synchronous steps against local ones, and which interval is best",
    source="document 003, exercises 4 and 5",
    about=(
        "The documents' network on scikit-learn's digits, four workers with equal shares, plain "
        "SGD, to 95 % of the held-out images. Every interval has its own step size, the best on "
        "another seed. Time is counted, not measured: the document's 100 ms a step and "
        "50 ms an average; steps, bytes and accuracy are those of the product's strategies."
    ),
    packages=("scikit-learn",),
    quick_seeds=6,
    full_seeds=12,
)
WORKERS = 4
STEP_S, AVERAGE_S = 0.1, 0.05
INTERVALS = (1, 2, 5, 7, 10, 22, 50)
RATES = (0.2, 0.4, 0.8)
TARGET = 0.95
BY_EXERCISE = 7  # what the document's exercise says for its times
TUNED_ON = 101
GROWTH_FROM = 10
"""The interval that is compared with 1 to tell what a local step costs."""


def result(scale):
    """Train with every interval."""
    intervals = scale.pick(tiny=(1, 7, 10), quick=INTERVALS, full=INTERVALS)
    rates = scale.pick(tiny=(0.4,), quick=RATES, full=RATES)
    most = scale.pick(tiny=20, quick=1200, full=2400)  # steps of each worker
    target = scale.pick(tiny=0.3, quick=TARGET, full=TARGET)
    searched = {every: tuned(every, target, most, rates) for every in intervals}
    best = {every: found.best for every, found in searched.items()}
    runs = take_turns(
        scale.seeds, intervals, lambda every, seed: one(every, target, most, seed, best[every])
    )
    again = [one(10, target, most, other_seed(seed), best[10]) for seed in scale.seeds]
    sync = [one(None, target, most, seed, best[1]) for seed in scale.seeds]
    same = max(abs(a.gradients[-1] - b.gradients[-1]) for a, b in zip(sync, runs[1], strict=True))
    return Outcome(
        compared=compared(runs, target),
        table=[row(every, own, best[every]) for every, own in runs.items()],
        claims=[
            Claim("gradients of sync, less those of Local SGD with interval 1", float(same), "<=",
                  float(WORKERS), timing=False),
        ],
        settings={
            "workers": WORKERS, "batch": 32, "accuracy": target, "step_s": STEP_S,
            "average_s": AVERAGE_S, "lr": {str(k): lr for k, lr in best.items()},
            "tuned_on_seed": TUNED_ON,
        },
        results={
            "steps": {str(every): [steps(c) for c in own] for every, own in runs.items()},
            "seconds": {str(every): [seconds(c) for c in own] for every, own in runs.items()},
            "steps by lr": {str(every): found.to_json() for every, found in searched.items()},
        },
        twins=[Twin.of("interval 10, steps", [*map(steps, runs[10])], [*map(steps, again)])],
    )  # fmt: skip


def one(every, target, most, seed, lr):
    """One run to an accuracy; without an interval, `sync`."""
    method = {"strategy": "sync"} if every is None else {
        "strategy": "local_sgd", "average_every": every,
    }  # fmt: skip
    course = train(
        divided(digits()[0], WORKERS, 1e4, seed), rounds=max(1, most // (every or 1)), until=target,
        seed=seed, lr=lr, **method,
    )  # fmt: skip
    say(
        f"  {'sync' if every is None else f'H {every}'} lr {lr:g} seed {seed}: {steps(course)} "
        f"steps of each, {course.accuracy[-1]:.3f}"
    )
    return course


def tuned(every, target, most, rates):
    """The step sizes by their steps to the accuracy, on a seed that nothing else uses."""

    def cost(lr):
        course = one(every, target, most, TUNED_ON, lr)
        return math.inf if course.first_at(target) is None else steps(course)

    return search(rates, cost)


def steps(course):
    """Of each worker."""
    return course.gradients[-1] // WORKERS


def seconds(course):
    """By the document's times."""
    return steps(course) * STEP_S + len(course.accuracy) * AVERAGE_S


def row(every, runs, lr):
    """One line of the table."""
    return {
        "interval": every,
        "lr": lr,
        "steps of a worker": median(map(steps, runs)),
        "averages": median(len(course.accuracy) for course in runs),
        "MB": median(course.network_bytes[-1] for course in runs) / 1e6,
        "seconds": median(map(seconds, runs)),
        "fastest": min(map(seconds, runs)),
        "slowest": max(map(seconds, runs)),
    }


def compared(runs, target):
    """What the document says, beside this; nothing of an interval that misses the accuracy."""

    def of(every, number):
        return [number(c) if c.accuracy[-1] >= target else math.nan for c in runs[every]]

    took = {every: of(every, seconds) for every in runs}
    apart, single = (median(map(steps, runs[every])) for every in (GROWTH_FROM, 1))
    growth = (max(apart / single, 1.001) - 1) / (GROWTH_FROM - 1)
    ruled = interval_by_cost(step_s=STEP_S, sync_s=AVERAGE_S, growth=growth)

    def ratio(name, own, others, claimed):
        """That a ratio is within a tenth of what the document says."""
        return Claim.of(
            name, Ratio.of(own, others), "within", 1.1 * claimed, least=0.9 * claimed, timing=False
        )

    return [
        Compared.of(
            "The best interval is 7 at 100 ms, 50 ms and a growth of .001 (its own class says 22)",
            *(
                Claim.of(
                    f"seconds of interval {BY_EXERCISE} / of {every}",
                    Ratio.of(took[BY_EXERCISE], own), "<=", 1.0, timing=False,
                )
                for every, own in took.items()
                if every != BY_EXERCISE
            ),
            measured="Seconds by interval: "
            + ", ".join(f"{every}: {mean_of(own)}" for every, own in took.items())
            + f". The rule with the growth measured here ({growth:.3f} a local step) says {ruled}.",
        ),
        Compared.of(
            "Local SGD with interval 10 is 1.75 times as fast to 95 %",
            ratio("seconds of interval 1 / of 10", took[1], took[10], 1.75),
        ),
        Compared.of(
            "It needs 10 % more gradients",
            ratio("steps of interval 10 / of 1", of(10, steps), of(1, steps), 1.1),
        ),
        Compared.of(
            "Its communication is ten times less",
            ratio("bytes of interval 1 / of 10", of(1, sent), of(10, sent), 10.0),
        ),
    ]  # fmt: skip


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


def mean_of(took):
    """A mean with its interval, or how many runs missed the accuracy."""
    missed = sum(map(math.isnan, took))
    return f"{missed} of {len(took)} miss it" if missed else Mean.of(took).spelt(".1f")


def sent(course):
    """Bytes to the accuracy."""
    return float(course.network_bytes[-1])


def draw(outcome):
    """Seconds and megabytes by interval."""
    figure, (clock, traffic) = new_panels(
        ("local steps between averages", "seconds to the accuracy", "Time"),
        ("local steps between averages", "MB sent to the accuracy", "Communication"),
    )
    at = [line["interval"] for line in outcome.table]
    own = list(outcome.results["seconds"].values())
    clock.plot(at, [median(each) for each in own], "-", color=INKS[0])
    for every, each in zip(at, own, strict=True):
        clock.plot([every] * len(each), each, ".", color=INKS[0])
    traffic.plot(at, [line["MB"] for line in outcome.table], "o-", color=INKS[1])
    for axes in (clock, traffic):
        axes.set_xscale("log")
    traffic.set_yscale("log")
    return figure


if __name__ == "__main__":
    raise SystemExit(run(ABOUT, result, draw))
