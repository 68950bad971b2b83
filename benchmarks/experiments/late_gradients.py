"""Sixteen workers and a parameter server: how late gradients are, and step sizes by delay."""

from __future__ import annotations

from statistics import median
from typing import Any

from experiment.figures import INKS, Figure, curves, legend, new_panels
from experiment.language import Bench, Training, setup, trainings_json, workers
from experiment.record import Compared, Experiment, Outcome, Scale, run, told
from harness.claims import Claim
from harness.interleaved import take_turns

BUDGET = {"order": 160, "quick_s": 60, "full_s": 1800}
ABOUT = Experiment(
    name="late_gradients",
    title="A parameter server with sixteen workers, and step sizes by staleness",
    source="document 003, Parameter Server, Staleness-Adaptive Learning Rate, exercise 1",
    about=(
        "The mean staleness of P workers that never wait, lock-free and with a server, with equal "
        "workers and with one slow one; and what rules for late gradients do to the loss where "
        "every gradient is as late as sixteen equal workers make it (simulated, one process)."
    ),
    packages=("mlx",),
)
RULES: dict[str, dict[str, Any]] = {
    "lr": {},
    "linear:0.5": {"staleness_lr": "linear:0.5"},
    "exp:0.9": {"staleness_lr": "exp:0.9"},
    "delay_adaptive": {"staleness_lr": "delay_adaptive"},
    "lr / sqrt(P)": {"lr_workers": "sqrt"},
    "lr / P": {"lr_workers": "linear"},
    "DC-ASGD": {"delay_compensation": "constant"},
    "error feedback": {"delay_feedback": True},
}
LR = 3e-3
NEAR = 0.02  # share of P - 1 by which a measured mean may differ
TIE = 0.02  # bits per byte within which two losses are called equal: what seeds differ by


def result(scale: Scale) -> Outcome:
    """Measure the staleness of real workers, then losses at a simulated one."""
    counts = scale.pick(tiny=(2,), quick=(2, 4, 16), full=(2, 4, 8, 16))
    bench = Bench(setup(scale))
    measured = [
        {
            "workers": count,
            "strategy": strategy,
            "slow": slow,
            **_staleness(scale, bench, count, strategy, slow),
        }
        for count in counts
        for strategy in ("hogwild", "async_ps")
        for slow in (None, *(("0=4",) if count == counts[-1] else ()))
    ]
    trainings = _by_rule(scale, bench, late=counts[-1] - 1)
    losses = {name: median(one.end for one in runs) for name, runs in trainings.items()}
    return Outcome(
        compared=_compared(measured, losses, counts[-1]),
        table=[
            *measured,
            *({"rule": name, "bits per byte": losses[name]} for name in losses),
        ],
        claims=[
            Claim(
                f"|mean staleness / (P - 1) - 1|, {row['strategy']}, {row['workers']} workers"
                + (", one slow" if row["slow"] else ""),
                abs(row["mean"] / (row["workers"] - 1) - 1),
                "<=",
                NEAR if scale.mode != "tiny" else 1.0,
                timing=False,
            )
            for row in measured
        ],
        settings={**bench.setup.to_json(), "lr": LR, "simulated_staleness": counts[-1] - 1},
        results={"trainings": trainings_json(trainings)},
    )


def _staleness(
    scale: Scale, bench: Bench, count: int, strategy: str, slow: str | None
) -> dict[str, Any]:
    """Mean and largest staleness of real workers, with so many gradients each."""
    each = scale.pick(tiny=10, quick=max(100, 1000 // count), full=max(400, 4000 // count))
    tokens = each * count * bench.setup.batch * bench.setup.seq_len
    training = bench.train(
        f"{strategy}, {count} workers" + (", one slow" if slow else ""),
        seed=0, tokens=tokens, lr=1e-4, strategy=strategy, predict="none", slow=slow,
        workers=workers(count, "mlx:cpu"), max_workers=count,
    )  # fmt: skip
    return {"mean": round(training.staleness, 3), "most": training.max_staleness}


def _by_rule(scale: Scale, bench: Bench, late: int) -> dict[str, list[Training]]:
    tokens = scale.pick(tiny=6_000, quick=400_000, full=1_500_000)
    common: dict[str, Any] = {"workers": "mlx:cpu", "predict": "none", "tokens": tokens, "lr": LR}
    simulated = {"strategy": "sim", "sim_staleness": f"fixed:{late}"}
    arms = {name: {**simulated, **options} for name, options in RULES.items()}
    arms["serial"] = {"strategy": "serial"}

    def train(name: str, seed: int) -> Training:
        return bench.train(name, seed=seed, **common, **arms[name])

    return take_turns(scale.seeds, arms, train)


def waits_for_ever(slack: int, workers: int = 3, pushes: int = 1000) -> bool:
    """Whether a worker of the document's bounded server, which waits at its push, never returns.

    It waits while `version - worker_version > slack`. One worker is slow: the others push in turn.
    """
    version, read = 0, dict.fromkeys(range(workers), 0)
    stuck: set[int] = set()
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


def _compared(
    measured: list[dict[str, Any]], losses: dict[str, float], count: int
) -> list[Compared]:
    equal = next(r for r in measured if r["workers"] == count and not r["slow"])
    slow = next(r for r in measured if r["workers"] == count and r["slow"])
    half = (count - 1) / 2
    best = min((name for name in losses if name != "serial"), key=losses.__getitem__)

    return [
        Compared(
            f"The expected staleness of {count} workers is (P - 1)/2 = {half:g}",
            f"measured {equal['mean']:.2f}, which is P - 1: each update is counted once by each of "
            "the others' gradients in hand. (P - 1)/2 is the mean where all read the same version.",
            told(abs(equal["mean"] - half) < NEAR * half),
            timing=False,
        ),
        Compared(
            f"The largest staleness is P - 1 = {count - 1}",
            f"{equal['most']} with equal workers, {slow['most']} with one four times slower, whose "
            "mean over all workers stays P - 1.",
            told(slow["most"] <= count - 1),
            timing=False,
        ),
        Compared(
            "A server bounds staleness by letting a push wait while version - worker version > s",
            "The version only grows, and what the worker has read does not, so the first that is "
            "too late waits for ever, at every s from 1 to 8. The gate of ssp is where workers "
            "pull (python benchmarks/gate.py: runs with kills, clocks within s + 1).",
            told(not all(map(waits_for_ever, range(1, 9)))),
            timing=False,
        ),
        Compared(
            "eta / (1 + c tau) with c = .5 is the recommended rule, eta d^tau the server's",
            ", ".join(f"{name} {bits:.3f}" for name, bits in losses.items())
            + f" bits per byte at the same lr of {LR:g}; best: {best}.",
            told(losses["linear:0.5"] < losses["lr"] - TIE),
            timing=False,
        ),
    ]


def draw(outcome: Outcome) -> Figure:
    """Measured staleness by workers, and the loss by rule over the gradients."""
    figure, (late, course) = new_panels(
        ("workers", "mean staleness", "Measured"), ("gradients", "bits per byte", "By rule")
    )
    rows = [row for row in outcome.table if "strategy" in row and not row["slow"]]
    counts = sorted({row["workers"] for row in rows})
    means = {
        strategy: (counts, [row["mean"] for row in rows if row["strategy"] == strategy])
        for strategy in ("hogwild", "async_ps")
    }
    curves(late, means, "o-")
    late.plot(counts, [count - 1 for count in counts], ":", color="gray", label="P - 1")
    for k, (name, runs) in enumerate(outcome.results["trainings"].items()):
        ink = INKS[k % len(INKS)]
        course.plot(runs[0]["steps"], runs[0]["bits_per_byte"], color=ink, label=name)
    legend(late)
    legend(course)
    return figure


if __name__ == "__main__":
    raise SystemExit(run(ABOUT, result, draw))
