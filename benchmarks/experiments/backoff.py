"""Constant steps, 1/k and exponential back-off: at the best step size, and at wrong ones."""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from statistics import fmean
from typing import Any

import numpy as np
from experiment.figures import INKS, Figure, curves, label_lines, new_panels
from experiment.record import Compared, Experiment, Outcome, Scale, other_seed, run, say
from experiment.searches import is_recorded, recorded, write_recorded
from harness.claims import Claim, Twin
from harness.estimates import Mean
from harness.machine import cores
from training.schedules import (
    BACKOFF,
    CONSTANT,
    FALLING,
    INVERSE,
    SCHEDULES,
    USUAL,
    Candidate,
    Language,
    LeastSquares,
    Rule,
    Trained,
    Training,
    best_settings,
    search,
    slope,
    stage_ends,
    train,
)

ABOUT = Experiment(
    name="backoff",
    title="Exponential back-off beside 1/k and constant steps",
    source="document 001, Robust 1/k Rates and Stepsize Selection",
    about=(
        "Back-off takes the first step size for K gradients, .37 of it for K/.37, and so on; 1/k "
        "is lr / (1 + k/K). Beside them constant steps and what the program does elsewhere: the "
        "paper's .9 per twentieth of the run on least squares, half a cosine on models. Each has "
        "the step size, and the K, that a search found best at this number of gradients (--tune). "
        "Then each training is repeated with a step size 4 times larger and one 4 times smaller, "
        "as if the curvature were misjudged, and the same K. All differences are taken seed by "
        "seed, with 95 % intervals of their mean (Student's t)."
    ),
    packages=("torch",),
)
OVER = 4.0
"""How many times c is overestimated; the curvature is misjudged by as much either way."""

FIRST = {
    "serial": (0.03, 1 / 64),
    "hogwild": (0.03, 1 / 64),
    "xlstm": (4e-3, 1 / 2),
    "mad": (2e-3, 1 / 2),
}
"""Step size, and K as a share of the gradients, that the search begins with."""

TUNING_SEEDS = (101, 102)
TITLES = {
    "serial": "least squares, serial",
    "hogwild": "least squares, 2 lock-free workers",
    "xlstm": "xLSTM, bits per byte",
    "mad": "MAD block, test error",
}
CONVEX, MODELS = ("serial", "hogwild"), ("xlstm", "mad")
RATE = 0.9
"""An excess that falls as k^-.9 or faster counts as falling as 1/k."""

Losses = Mapping[str, Mapping[float, Sequence[Trained]]]
"""Schedule -> factor -> a training of each seed."""
Slopes = Mapping[str, Mapping[tuple[str, float], Sequence[float]]]
"""Problem -> schedule and factor -> exponent of the excess, of each seed."""


def problems(scale: Scale) -> dict[str, Training]:
    """What is trained in a mode."""
    rows, epochs = scale.pick(tiny=(200, 12), quick=(5000, 256), full=(5000, 256))
    squares = LeastSquares(
        rows=rows,
        features=scale.pick(tiny=20, quick=500, full=500),
        per_row=10,
        condition=50.0,
        epochs=epochs,
    )
    rows_of_copying = (
        ("seq_len", 40),
        ("tokens_to_copy", 4),
        ("train_rows", scale.pick(tiny=64, quick=1600, full=1600)),
        ("test_rows", scale.pick(tiny=16, quick=1024, full=1024)),
    )
    return {
        "serial": squares,
        "hogwild": replace(squares, workers=2),
        "xlstm": scale.pick(
            tiny=Language(32, 1, gradients=8, batch=2, seq_len=32, held_out=1024),
            quick=Language(64, 2, gradients=400, batch=2, seq_len=128, held_out=8192),
            full=Language(64, 2, gradients=400, batch=2, seq_len=128, held_out=8192),
        ),
        "mad": Candidate(
            task="selective-copying",
            values=rows_of_copying,
            layers="mlstm(h4) swiglu",
            dim=scale.pick(tiny=16, quick=64, full=64),
            gradients=scale.pick(tiny=8, quick=200, full=200),
            batch=32,
        ),
    }


def factors(scale: Scale) -> tuple[float, ...]:
    """By which the curvature is misjudged: the step size is divided by them."""
    return (1.0, OVER) if scale.mode == "tiny" else (1 / OVER, 1.0, OVER)


def best_of(scale: Scale) -> dict[str, dict[str, dict[str, Any]]]:
    """Problem -> schedule -> recorded settings; arbitrary ones where numbers mean nothing."""
    if scale.mode == "tiny":
        some = {s: {"lr": 1e-2, "share": 0.25 * (s in FALLING), "bracket": ""} for s in SCHEDULES}
        return dict.fromkeys(TITLES, some)
    best: dict[str, dict[str, dict[str, Any]]] = recorded(ABOUT.name)
    return best


def pool() -> ProcessPoolExecutor:
    """A process on every core, two at most."""
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(min(2, len(cores())), mp_context=spawn)


# -- measure --------------------------------------------------------------------------------------


def result(scale: Scale) -> Outcome:
    """Train everything and compare."""
    trainings, seeds, misjudged = problems(scale), scale.seeds, factors(scale)
    rules = {
        problem: {name: Rule(name, one["lr"], one["share"]) for name, one in by.items()}
        for problem, by in best_of(scale).items()
    }
    losses: dict[str, Losses] = {}
    twins = []
    with pool() as workers:
        for name, training in trainings.items():
            one_by_one = name == "hogwild"  # it needs the cores itself
            losses[name], again = measure(
                training, rules[name], seeds, misjudged, None if one_by_one else workers
            )
            twins.append(Twin.of(f"back-off, {TITLES[name]}", tuned(losses[name], BACKOFF), again))
            say(f"{TITLES[name]}: {(4 * len(misjudged) + 1) * len(seeds)} trainings")
    convex = trainings["serial"]
    assert isinstance(convex, LeastSquares)
    low, high = convex.curvature(seeds[0])
    backoff = rules["serial"][BACKOFF]
    stage = backoff.share * convex.epochs * convex.rows  # gradients, K
    slopes = {
        name: rates(losses[name], stage_ends(rules[name][BACKOFF], convex.epochs))
        for name in CONVEX
    }
    return Outcome(
        compared=compared(losses, slopes),
        table=[row for name in TITLES for row in rows(name, losses[name], rules[name])],
        claims=falls(slopes, BACKOFF, 1.0),
        settings={
            "factors": " ".join(f"{factor:g}" for factor in misjudged),
            "curvature": {
                "c": round(low, 6),
                "L": round(high, 6),
                "K lr c / ln(2/.37)": round(stage * backoff.lr * low / math.log(2 / 0.37), 3),
            },
            **{name: training.to_json() for name, training in trainings.items()},
            "brackets": {
                f"{problem} {schedule}": one["bracket"]
                for problem, by in best_of(scale).items()
                for schedule, one in by.items()
            },
        },
        results={
            "losses": {
                name: {s: {f"{f:g}": tuned(each, s, f) for f in misjudged} for s in SCHEDULES}
                for name, each in losses.items()
            },
            "exponents": {
                name: {
                    f"{schedule}, {factor:g}": values for (schedule, factor), values in by.items()
                }
                for name, by in slopes.items()
            },
            "curves": {
                schedule: [round(value, 4) for value in by[1.0][0].curve]
                for schedule, by in losses["serial"].items()
            },
            "differences": {name: differences(losses[name]) for name in TITLES},
        },
        twins=twins,
    )


def measure(
    training: Training,
    rules: Mapping[str, Rule],
    seeds: Sequence[int],
    misjudged: Sequence[float],
    workers: Executor | None,
) -> tuple[dict[str, dict[float, list[Trained]]], list[float]]:
    """Train under every schedule, with every factor and seed, and back-off twice (A/A).

    Args:
        training: the problem.
        rules: its schedules at their best settings.
        seeds: of the trainings.
        misjudged: factors by which the curvature is misjudged.
        workers: that train side by side; None is in this process.
    """
    jobs = {
        (name, factor, seed): Rule(name, rule.lr / factor, rule.share)
        for seed in seeds
        for name, rule in rules.items()
        for factor in misjudged
    }
    jobs |= {(BACKOFF, 1.0, other_seed(seed)): rules[BACKOFF] for seed in seeds}
    if workers is None:
        trained = {key: train(training, rule, key[2]) for key, rule in jobs.items()}
    else:
        futures: dict[Any, Future[Trained]] = {
            key: workers.submit(train, training, rule, key[2]) for key, rule in jobs.items()
        }
        trained = {key: future.result() for key, future in futures.items()}
    of_rules = {
        name: {factor: [trained[name, factor, seed] for seed in seeds] for factor in misjudged}
        for name in rules
    }
    return of_rules, [trained[BACKOFF, 1.0, other_seed(seed)].loss for seed in seeds]


def rates(losses: Losses, ends: Sequence[int]) -> dict[tuple[str, float], list[float]]:
    """Exponent of the excess, of each seed, by its values at the ends of back-off's stages.

    In between the excess of back-off falls in stairs, whose parts would say nothing of the rate.
    """
    return {
        (schedule, factor): [slope(one.curve, ends) for one in losses[schedule][factor]]
        for schedule in (INVERSE, BACKOFF)
        for factor in (1.0, OVER)
    }


# -- compare --------------------------------------------------------------------------------------


def tuned(losses: Losses, schedule: str, factor: float = 1.0) -> list[float]:
    """Losses of the seeds with a step size that is wrong by a factor."""
    return [one.loss for one in losses[schedule][factor]]


def over_factors(
    combine: Callable[[Sequence[float]], float], losses: Losses, schedule: str
) -> list[float]:
    """For each seed one number of its losses with all factors."""
    by_factor = [tuned(losses, schedule, factor) for factor in losses[schedule]]
    return [combine(values) for values in zip(*by_factor, strict=True)]


MEASURES: Mapping[str, Callable[[Losses, str], list[float]]] = {
    "tuned": tuned,
    "worst": partial(over_factors, max),
    "average": partial(over_factors, fmean),
}
"""From the losses of a schedule to a number for each seed."""


def beside(losses: Losses, other: str, measure: str) -> Mean:
    """Back-off less another schedule, seed by seed; below 0 where back-off is better."""
    ours, theirs = (MEASURES[measure](losses, name) for name in (BACKOFF, other))
    return Mean.of_differences(ours, theirs)


def differences(losses: Losses) -> dict[str, dict[str, Mean]]:
    """Back-off beside every other schedule."""
    return {
        measure: {other: beside(losses, other, measure) for other in SCHEDULES if other != BACKOFF}
        for measure in MEASURES
    }


def falls(slopes: Slopes, schedule: str, factor: float) -> list[Claim]:
    """The excess falls as 1/k, on both convex problems."""
    return [
        Claim.of(
            f"exponent of the excess, {schedule}, curvature x {factor:g}, {TITLES[name]}",
            Mean.of(slopes[name][schedule, factor]),
            "<=",
            -RATE,
            timing=False,
        )
        for name in CONVEX
    ]


def compared(losses: Mapping[str, Losses], slopes: Slopes) -> list[Compared]:
    """The document's claims beside what was measured."""

    def claimed(claim: str, rests_on: Sequence[Claim], end: str) -> Compared:
        return Compared.of(claim, *rests_on, measured=f"{spelt(rests_on)}. {end}")

    def spelt(numbers: Sequence[Claim]) -> str:
        return "; ".join(f"{one.name} {one.measured}" for one in numbers)

    def against(other: str, measure: str, names: Sequence[str]) -> list[Claim]:
        return [
            Claim.of(
                f"back-off less {other}, {measure}, {TITLES[name]}",
                beside(losses[name], other, measure),
                "<=",
                0.0,
                timing=False,
            )
            for name in names
        ]

    rivals = (CONSTANT, USUAL)
    worst = [one for other in rivals for one in against(other, "worst", MODELS)]
    return [
        claimed(
            "Constant stepsize + exponential backoff achieves a 1/k rate.",
            falls(slopes, BACKOFF, 1.0),
            "By the ends of stages in the last nine tenths of the run; beside it "
            f"{spelt(falls(slopes, INVERSE, 1.0))}. Below -{RATE:g} counts as 1/k.",
        ),
        claimed(
            "Faster in practice than 1/k (larger steps early on).",
            against(INVERSE, "tuned", list(TITLES)),
            "Both at their best step size: log10 of the excess on least squares, and losses.",
        ),
        claimed(
            "More robust than 1/k to curvature misestimation.",
            against(INVERSE, "worst", list(TITLES)),
            "The step size is the worst of some from a quarter of its best to 4 times it. A run "
            "that diverges counts as 1, so a difference to 1/k that does is a bound.",
        ),
        claimed(
            "No exponential slowdown if c is overestimated: still 1/k.",
            falls(slopes, BACKOFF, OVER),
            f"c four times too large; beside it {spelt(falls(slopes, INVERSE, OVER))}.",
        ),
        claimed(
            "For xLSTM: use constant stepsize with exponential backoff.",
            [one for other in rivals for one in against(other, "tuned", MODELS)],
            f"At the best step size of each. Where it is worst: {spelt(worst)}.",
        ),
    ]


def rows(name: str, losses: Losses, rules: Mapping[str, Rule]) -> list[dict[str, Any]]:
    """Rows of the table: mean losses over seeds by factor."""
    return [
        {
            "problem": TITLES[name],
            "schedule": {USUAL: "times .9" if name in CONVEX else "cosine"}.get(schedule, schedule),
            "step size": rule.lr,
            "K / gradients": rule.share or "",
            **{
                f"curvature x {factor:g}": round(fmean(tuned(losses, schedule, factor)), 4)
                for factor in losses[schedule]
            },
            "worst": round(fmean(MEASURES["worst"](losses, schedule)), 4),
        }
        for schedule, rule in rules.items()
    ]


# -- draw -----------------------------------------------------------------------------------------


def draw(outcome: Outcome) -> Figure:
    """The excess over the run, and losses by how the curvature was misjudged."""
    axes_of = {"serial": "log10 of the excess", "xlstm": "bits per byte", "mad": "test error"}
    figure, (course, *panels) = new_panels(
        ("twentieths of a run", "log10 of the excess", "Least squares, best step sizes"),
        *(("curvature misjudged by", label, TITLES[name]) for name, label in axes_of.items()),
    )
    by_schedule = outcome.results["curves"].items()
    curves(course, {name: (np.linspace(0, 20, len(y) + 1)[1:], y) for name, y in by_schedule})
    course.set_xscale("log")
    for axes, name in zip(panels, axes_of, strict=True):
        for ink, (schedule, by) in zip(INKS, outcome.results["losses"][name].items(), strict=False):
            misjudged, values = [float(factor) for factor in by], np.array(list(by.values()))
            means = values.mean(axis=1)
            spread = [means - values.min(axis=1), values.max(axis=1) - means]
            axes.errorbar(
                misjudged, means, yerr=spread, fmt="o-", capsize=2, color=ink, label=schedule
            )
        axes.set_xscale("log", base=2)
        axes.set_xticks(misjudged, [f"{factor:g}" for factor in misjudged])
    label_lines(*panels)
    return figure


# -- search ---------------------------------------------------------------------------------------


def tune() -> None:
    """Find step size and K of every schedule on every problem, at the size of --quick, seed 0.

    A schedule with recorded settings is not searched again; delete them for a new search.
    """
    best: dict[str, dict[str, Any]] = recorded(ABOUT.name) if is_recorded(ABOUT.name) else {}
    with pool() as workers:
        for problem, training in problems(Scale("quick")).items():
            lr, share = FIRST[problem]
            known = best.setdefault(problem, {})
            todo = {
                schedule: (training, schedule, lr, share, TUNING_SEEDS)
                for schedule in SCHEDULES
                if schedule not in known
            }
            if problem == "hogwild":  # it needs the cores itself
                searched = {name: search(*arguments) for name, arguments in todo.items()}
            else:
                futures = {name: workers.submit(search, *each) for name, each in todo.items()}
                searched = {name: future.result() for name, future in futures.items()}
            known |= {name: best_settings(trials) for name, trials in searched.items()}
            write_recorded(ABOUT.name, best)
            for schedule, one in known.items():
                say(f"{TITLES[problem]}, {schedule}: {one}")


if __name__ == "__main__":
    raise SystemExit(run(ABOUT, result, draw, tune=tune))
