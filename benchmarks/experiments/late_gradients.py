"""Sixteen workers and a parameter server: how late gradients are, and step sizes by delay."""

from experiment.figures import inks, label_lines, new_panels
from experiment.language import Bench, Setup, setup, trainings_json, workers
from experiment.record import Compared, Experiment, Outcome, other_seed, run
from experiment.searches import search
from harness.claims import FULL, Claim, Twin
from harness.estimates import Mean
from harness.interleaved import take_turns

ABOUT = Experiment(
    name="late_gradients",
    title="A parameter server with sixteen workers, and step sizes by staleness",
    source="document 003, Parameter Server, Staleness-Adaptive Learning Rate, exercise 1",
    about=(
        "The mean staleness of P workers that never wait, lock-free and with a server, with equal "
        "workers and with one slow one; and what rules for late gradients do to the loss where "
        "every gradient is P - 1 updates late (simulated, one process). Such a rule makes steps "
        "smaller, so each has its own best step size, and so has plain lr. The most workers are "
        "sixteen, with --quick four."
    ),
    packages=("mlx",),
    full_seeds=3,
)
RULES = {
    "lr": {},
    "linear:0.5": {"staleness_lr": "linear:0.5"},
    "exp:0.9": {"staleness_lr": "exp:0.9"},
}
RATES = (7.5e-4, 1.5e-3, 3e-3)
"""Where the search for the step size of each rule begins."""
TUNED_ON = 101
SMALL = Setup({"hidden_size": 64, "num_hidden_layers": 3}, seq_len=128, looks=5)
"""Of --full: what is late depends on the number of workers, not on what they compute."""
NEAR, QUICK_NEAR = 0.02, 0.1
"""Share of P - 1 by which a mean may differ; in short runs the first gradients, which find fewer
workers at work, count for more."""
TIE = 0.02  # bits per byte that a rule must gain
SLOW = "0=4"


def cells(scale):
    """What staleness is measured of; the last two are the most workers, equal and with a slow."""
    most = scale.pick(tiny=2, quick=4, full=16)
    fewer = scale.pick(tiny=(), quick=(), full=(2, 4, 8))
    servers = scale.pick(tiny=(2,), quick=(2,), full=(2, 4, 8, 16))
    return [
        *(("hogwild", count, None) for count in fewer),
        *(("async_ps", count, None) for count in servers),
        ("hogwild", most, None),
        ("hogwild", most, SLOW),
    ]


def result(scale):
    """Measure the staleness of real workers, then losses at a simulated one."""
    bench = Bench(SMALL if scale.mode == FULL else setup(scale))
    measured = take_turns(
        scale.seeds, cells(scale), lambda cell, seed: _staleness(scale, bench, cell, seed)
    )
    count, near = cells(scale)[-1][1], NEAR if scale.mode == FULL else QUICK_NEAR
    trainings, again, searched = _by_rule(scale, bench, late=count - 1)
    return Outcome(
        compared=_compared(measured, trainings, count, near),
        table=[
            *(
                {
                    "workers": workers,
                    "strategy": strategy,
                    "slow": slow,
                    "mean": Mean.of(one.staleness for one in own).spelt(),
                    "most": max(one.max_staleness for one in own),
                }
                for (strategy, workers, slow), own in measured.items()
            ),
            *(
                {
                    "rule": name,
                    "lr": searched[name].best,
                    "bits per byte": Mean.of(one.end for one in own).spelt(".3f"),
                }
                for name, own in trainings.items()
            ),
        ],
        claims=[
            Claim.of(
                f"mean staleness / (P - 1), {strategy}, {workers} workers"
                + (", one slow" if slow else ""),
                Mean.of(one.staleness / (workers - 1) for one in own), "within", 1 + near,
                least=1 - near, timing=False,
            )
            for (strategy, workers, slow), own in measured.items()
        ],
        settings={
            **bench.setup.to_json(),
            "lr": {name: found.best for name, found in searched.items()},
            "tuned_on_seed": TUNED_ON,
            "simulated_staleness": count - 1,
        },
        results={
            "trainings": trainings_json(trainings),
            "bits by lr": {name: found.to_json() for name, found in searched.items()},
            "staleness": {
                f"{strategy}, {workers}{', one slow' if slow else ''}": [
                    one.staleness for one in own
                ]
                for (strategy, workers, slow), own in measured.items()
            },
        },
        twins=[Twin.of("lr", [one.end for one in trainings["lr"]], [one.end for one in again])],
    )  # fmt: skip


def _staleness(scale, bench, cell, seed):
    """A training of real workers, with equally many gradients of each."""
    strategy, count, slow = cell
    each = scale.pick(tiny=10, quick=50, full=max(120, 1600 // count))
    tokens = each * count * bench.setup.batch * bench.setup.seq_len
    plain = {"predict": "none"} if strategy == "hogwild" else {}  # the server predicts nothing
    return bench.train(
        f"{strategy}, {count} workers" + (", one slow" if slow else ""),
        seed=seed, tokens=tokens, lr=1e-4, strategy=strategy, slow=slow,
        workers=workers(count, "mlx:cpu"), max_workers=count, **plain,
    )  # fmt: skip


def _by_rule(scale, bench, late):
    """Trainings of every rule and of one serial worker, each at its best step size.

    Returns:
        them; trainings of plain lr with other seeds (A/A); the step sizes that were tried.
    """
    tokens = scale.pick(tiny=1_500, quick=25_000, full=60_000)
    rates = scale.pick(tiny=(3e-3,), quick=RATES, full=RATES)
    common = {"workers": "mlx:cpu", "tokens": tokens}
    simulated = {"strategy": "sim", "sim_staleness": f"fixed:{late}"}
    arms = {
        name: {**simulated, **RULES[name]}
        for name in (tuple(RULES)[:2] if scale.mode == "tiny" else RULES)
    }
    arms["serial"] = {"strategy": "serial", "predict": "none"}

    def at(name, lr, seed):
        return bench.train(f"{name}, lr {lr:g}", seed=seed, lr=lr, **common, **arms[name])

    searched = {
        name: search(rates, lambda lr, name=name: at(name, lr, TUNED_ON).end) for name in arms
    }

    def train(name, seed):
        return at(name, searched[name].best, seed)

    again = [train("lr", other_seed(seed)) for seed in scale.seeds]
    return take_turns(scale.seeds, arms, train), again, searched


def waits_for_ever(slack, workers=3, pushes=1000):
    """Whether a worker of the document's bounded server, which waits at its push, never returns.

    It waits while `version - worker_version > slack`. One worker is slow: the others push in turn.
    """
    version, read = 0, dict.fromkeys(range(workers), 0)
    stuck = set()
    for turn in range(pushes):
        worker = 0 if turn % (4 * workers) == 0 and turn else 1 + turn % (workers - 1)
        if worker in stuck:
            continue  # the version only grows, and what it has read does not
        if version - read[worker] > slack:
            stuck.add(worker)
        else:
            version += 1
            read[worker] = version
    return bool(stuck)


def _compared(measured, trainings, count, near):
    equal, slow = measured["hogwild", count, None], measured["hogwild", count, SLOW]
    half = (count - 1) / 2
    stuck = sum(map(waits_for_ever, range(1, 9)))
    by_rule = {name: [one.end for one in own] for name, own in trainings.items()}

    return [
        Compared.of(
            f"The expected staleness of {count} workers is (P - 1)/2 = {half:g}",
            Claim.of(
                "mean staleness / ((P - 1)/2)", Mean.of(one.staleness / half for one in equal),
                "within", 1 + near, least=1 - near, timing=False,
            ),
        ),
        Compared.of(
            f"The largest staleness is P - 1 = {count - 1}",
            Claim(
                f"largest staleness, {count} workers, one four times slower",
                max(one.max_staleness for one in slow), "<=", count - 1, timing=False,
            ),
        ),
        Compared.described(
            "A server bounds staleness by letting a push wait while version - worker version > s",
            f"At {stuck} of the bounds 1 to 8 the first worker that is too late waits for ever: "
            "the version only grows, and what the worker has read does not. The gate of ssp is "
            "where workers pull (python benchmarks/soak.py gate).",
        ),
        Compared.of(
            "eta / (1 + c tau) with c = .5 is the recommended rule, eta d^tau the server's",
            *(
                Claim.of(
                    f"bits per byte of {name} less those of plain lr",
                    Mean.of_differences(by_rule[name], by_rule["lr"]), "<=", -TIE, timing=False,
                )
                for name in ("linear:0.5", "exp:0.9")
                if name in by_rule
            ),
        ),
    ]  # fmt: skip


def draw(outcome):
    """Measured staleness by workers, and the loss by rule over the gradients."""
    figure, (late, course) = new_panels(
        ("workers", "mean staleness", "Measured"), ("gradients", "bits per byte", "By rule")
    )
    measured = outcome.results["staleness"]
    for name, ink in inks(measured).items():
        means = measured[name]
        count = int(name.split(", ")[1])
        late.plot([count] * len(means), means, "o", color=ink, label=name)
    most = outcome.settings["simulated_staleness"]
    late.plot([1, most + 1], [0, most], ":", color="gray", label="P - 1")
    trainings = outcome.results["trainings"]
    for name, ink in inks(trainings).items():
        for k, one in enumerate(trainings[name]):
            course.plot(one["steps"], one["bits_per_byte"], color=ink, label=None if k else name)
    label_lines(late, course)
    return figure


if __name__ == "__main__":
    raise SystemExit(run(ABOUT, result, draw))
