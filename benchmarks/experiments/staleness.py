"""The cost of staleness in gradients: exact staleness by workers that apply in turn.

    python benchmarks/experiments/staleness.py          d 64 x 3, up to 4 workers: under 10 minutes
    python benchmarks/experiments/staleness.py --full   d 128 x 4, up to 8 workers, more arms

Both compute 1,200 gradients of 512 tokens, three seeds. What staleness costs shrinks with the
length of a training, so a limit belongs to a budget and a model: after 300 gradients of d 128 x 4
looking ahead cost 1.14 at staleness 1 and 1.88 at 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
from experiment.figures import INKS, Figure, legend, new_panels
from experiment.language import Bench, Setup, setup, workers
from experiment.record import (
    FAILS,
    HOLDS,
    PARTLY,
    UNTOLD,
    Compared,
    Experiment,
    Outcome,
    Scale,
    run,
)
from experiment.searches import Trials, descend, recorded
from harness.claims import Claim, Sample
from training.recording import count_parameters, model_file

from mlxhog.theory.bounds import Facts, penalty, step_koloskova

BUDGET = {"order": 60, "quick_s": 190}
ABOUT = Experiment(
    name="staleness",
    title="What staleness costs in gradients",
    source="document 001, Test 4",
    about=(
        "P workers that apply in turn (round_robin) make every gradient exactly P - 1 updates old, "
        "on any machine, however many cores it has. All trainings compute equally many gradients "
        "and end there, by a cosine schedule; every one has its own step size, found by a search. "
        "What staleness costs is how many times the gradients that serial Muon needs for the same "
        "loss, by trainings of its own that end after fewer. Averaged gradients (sync) and two "
        "lock-free workers stand beside them. Counting gradients, a busy machine changes nothing. "
        "--quick trains a model of width 64 with 3 blocks, --full one of width 128 with 4."
    ),
    packages=("mlx",),
    full=False,  # no step sizes were searched for it: --tune
)
MUON = {"optimizer": "muon"}
AHEAD = {**MUON, "moments": "shared", "predict": "last"}
ARMS: dict[str, dict[str, Any]] = {
    "AdamW in turn": {"optimizer": "adamw", "strategy": "round_robin"},
    "Muon in turn, own moments": {**MUON, "strategy": "round_robin"},
    "Muon in turn, shared moments": {**MUON, "strategy": "round_robin", "moments": "shared"},
    "Muon in turn, looking ahead": {**AHEAD, "strategy": "round_robin"},
    "Muon averaged": {**MUON, "strategy": "sync"},
    "Muon lock-free, looking ahead": {**AHEAD, "strategy": "hogwild"},
}
SERIAL = "Muon serial"
SERIAL_ADAMW = "AdamW serial"
BEST = "Muon in turn, looking ahead"
PARTS = ("Muon in turn, own moments", "Muon in turn, shared moments")
"""What the best rule consists of, tried with the fewest workers."""
BACKEND = "mlx:cpu"  # starts soonest, and eight of them have to
MOST = {1: 1.10, 3: 1.25, 7: 1.6}
"""What staleness may cost the best rule, after `GRADIENTS`."""
SHARES = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0, 1.25)
FEW_SHARES = (0.125, 0.25, 0.5, 0.75, 1.0, 1.25)
"""Of the gradients: where serial trainings end."""
GRADIENTS = 1200
MINI = {"hidden_size": 64, "num_hidden_layers": 3}
FACTOR = 1.5


def first_rate(name: str, count: int) -> float:
    """Where the search for a step size begins."""
    if "AdamW" in name:
        return 2e-3 if count == 1 else 2e-3 / count
    if name == "Muon averaged":
        return 3e-3 * min(count, 4)
    return 3e-3 if count < 8 or name == SERIAL else 2e-3


def momentum(name: str, count: int) -> dict[str, float]:
    """Momentum by rule and number of workers, as the study of `--predict last` found it."""
    if name == "Muon averaged":
        return {"beta1": 0.9 if count == 1 else 0.75}
    return {"beta1": 0.95, "nesterov": 0.15} if "Muon" in name and count >= 4 else {}


def counts(scale: Scale) -> tuple[int, ...]:
    """Numbers of workers."""
    values: tuple[int, ...] = scale.pick(tiny=(2,), quick=(2, 4), full=(2, 4, 8))
    return values


def rows_of(scale: Scale) -> list[tuple[str, int]]:
    """The arms with their numbers of workers; lock-free ones only as many as cores are sure."""
    rows = [(SERIAL_ADAMW, 1)]
    for name in ARMS:
        if scale.mode == "quick" and name in PARTS:
            continue
        few = name in PARTS or "lock-free" in name
        rows += [(name, count) for count in ((2,) if few else counts(scale))]
    return rows


def options(name: str, count: int) -> dict[str, Any]:
    """Options of `TrainConfig`."""
    if count == 1:
        rule = {"optimizer": "adamw"} if name == SERIAL_ADAMW else MUON
        return {**rule, "strategy": "serial", "workers": BACKEND, "schedule": "cosine"}
    rule = {**ARMS[name], **momentum(name, count), "schedule": "cosine"}
    return {**rule, "workers": workers(count, BACKEND)}


def settings(scale: Scale) -> dict[str, Any]:
    """Recorded step sizes and budgets; arbitrary ones where numbers mean nothing."""
    if scale.mode == "tiny":
        return {"gradients": 40, "lr": {}}
    values = recorded(ABOUT.name)
    missing = [f"{n}, {k}" for n, k in rows_of(scale) if f"{n}, {k}" not in _rates(values, scale)]
    if missing:
        raise SystemExit(
            f"no step size was searched for --{scale.mode} of {'; '.join(missing)}; run "
            f"python benchmarks/experiments/{ABOUT.name}.py --tune"
        )
    chosen: dict[str, Any] = values[scale.mode]
    return chosen


def _rates(values: Mapping[str, Any], scale: Scale) -> Mapping[str, float]:
    """The searched step sizes of a mode, by arm."""
    rates: Mapping[str, float] = values.get(scale.mode, {}).get("lr", {})
    return rates


def rate(chosen: Mapping[str, Any], name: str, count: int) -> float:
    """The step size of an arm."""
    lr: float = chosen["lr"].get(f"{name}, {count}", first_rate(name, count))
    return lr


def result(scale: Scale) -> Outcome:
    """Train every arm with every seed, and compare with serial trainings of the same seed."""
    chosen, bench = settings(scale), _bench(scale)
    seeds = (1,) if scale.mode == "tiny" else (1, 2, 3)
    shares: tuple[float, ...] = scale.pick(tiny=(0.5, 1.0), quick=FEW_SHARES, full=SHARES)
    n = chosen["gradients"]
    curves: dict[int, list[tuple[int, float]]] = {}
    ends: dict[tuple[str, int], list[float]] = {arm: [] for arm in rows_of(scale)}
    observed: dict[tuple[str, int], list[float]] = {arm: [] for arm in ends}
    for seed in seeds:
        lr = rate(chosen, SERIAL, 1)
        curves[seed] = [
            (k, _end(bench, SERIAL, 1, seed=seed, gradients=k, lr=lr)[0])
            for k in (round(n * share) for share in shares)
        ]
        for arm in ends:
            bits, staleness = _end(bench, *arm, seed=seed, gradients=n, lr=rate(chosen, *arm))
            ends[arm].append(bits)
            observed[arm].append(staleness)
    costs = {
        arm: [
            times_serial(curves[seed], n, bits) for seed, bits in zip(seeds, of_seeds, strict=True)
        ]
        for arm, of_seeds in ends.items()
    }
    n_params = count_parameters(model_file(**bench.setup.sizes))
    table = [
        _row(arm, ends[arm], costs[arm], median(observed[arm]), rate(chosen, *arm), n_params)
        for arm in ends
    ]
    return Outcome(
        compared=_compared(scale, costs, table),
        table=table,
        claims=_claims(scale, bench, n, costs),
        settings={
            **bench.setup.to_json(),
            "schedule": "cosine to a tenth of lr, warm-up over 3 %",
            "optimizer": "by arm",
            **chosen,
            "parameters": n_params,
        },
        results={
            "serial": {f"{seed}": curve for seed, curve in curves.items()},
            "bits_per_byte": {f"{name}, {count}": v for (name, count), v in ends.items()},
            "costs": {f"{name}, {count}": Sample.of(v) for (name, count), v in costs.items()},
        },
        seeds=seeds,
    )


def _bench(scale: Scale) -> Bench:
    of_mode: Setup = scale.pick(tiny=setup(scale), quick=Setup(MINI), full=setup(scale))
    return Bench(replace(of_mode, looks=2, eval_tokens=1024 if scale.mode == "tiny" else 65_536))


def _end(
    bench: Bench, name: str, count: int, *, seed: int, gradients: int, lr: float
) -> tuple[float, float]:
    """Held-out bits per byte after so many gradients, and the staleness that was seen."""
    chosen = options(name, count)
    one = bench.train(
        f"{name}, {count}, {gradients}, lr {lr:.2g}",
        seed=seed,
        tokens=gradients * bench.setup.batch * bench.setup.seq_len,
        lr=lr,
        **chosen,
    )
    return one.end, one.staleness


def times_serial(curve: Sequence[tuple[int, float]], n: int, bits: float) -> float:
    """How many times the gradients of serial trainings a loss took; beyond their ends, a bound."""
    losses, lengths = zip(*sorted((loss, k) for k, loss in curve), strict=True)
    return n / math.exp(float(np.interp(bits, losses, np.log(lengths))))


def _row(
    arm: tuple[str, int],
    bits: Sequence[float],
    costs: Sequence[float],
    staleness: float,
    lr: float,
    n_params: int,
) -> dict[str, Any]:
    name, count = arm
    facts = Facts(strongly_convex=False, smooth=True, bounded_gradients=False, sgd=False, delta=1.0)
    tau = staleness
    bound = penalty(tau=tau, omega=n_params, rho=1.0, delta=1.0, facts=facts)
    rule = step_koloskova(tau_concurrency=tau, tau_max=tau, facts=facts)
    loss, cost = Sample.of(bits), Sample.of(costs)
    return {
        "rule": name,
        "workers": count,
        "staleness": round(staleness, 2),
        "bits per byte": loss.spelt(".3f"),
        "times the gradients of serial": round(cost.median, 3),
        "least": round(cost.low, 3),
        "most": round(cost.high, 3),
        "step size": lr,
        "Koloskova's rule": rule.values["constant_step"],
        "penalty of Proposition 4.1": bound.values["penalty"],
    }


def _claims(
    scale: Scale, bench: Bench, n: int, costs: Mapping[tuple[str, int], Sequence[float]]
) -> list[Claim]:
    if scale.mode == "tiny":
        return []
    model = bench.setup.to_json()["model"]
    return [
        Claim(
            f"gradients at staleness {lag}, looking ahead / serial, {n:,} gradients of {model}",
            median(costs[BEST, lag + 1]),
            "<=",
            most,
            timing=False,
        )
        for lag, most in MOST.items()
        if (BEST, lag + 1) in costs
    ]


def _compared(
    scale: Scale,
    costs: Mapping[tuple[str, int], Sequence[float]],
    table: Sequence[Mapping[str, Any]],
) -> list[Compared]:
    by_lag = {count - 1: Sample.of(costs[BEST, count]) for count in counts(scale)}
    text = ", ".join(f"{cost.spelt('.2f')} at {lag}" for lag, cost in by_lag.items())
    largest = max(by_lag)
    # Linear with a slope below 1: each worker more still brings something.
    slopes = {lag: ((s.low - 1) / lag, (s.high - 1) / lag) for lag, s in by_lag.items()}
    lowest, highest = (max(slope[k] for slope in slopes.values()) for k in (0, 1))
    if lowest < 1.0 <= highest:
        verdict = UNTOLD
    elif highest < 1.0:
        verdict = HOLDS if largest >= 20 else PARTLY
    else:
        verdict = FAILS
    last = next(row for row in table if (row["rule"], row["workers"]) == (BEST, largest + 1))
    bound = last["penalty of Proposition 4.1"]
    return [
        Compared(
            "graceful degradation, linear up to tau of about 20-30",
            f"gradients of {BEST}, as multiples of serial's: {text}. Each unit of staleness costs "
            f"up to {highest:.2f} of a serial run; staleness above {largest} was not tried.",
            verdict,
            timing=False,
        ),
        Compared(
            "compare to the prediction of Proposition 4.1",
            f"its penalty at staleness {largest} is {bound:.3g}, measured "
            f"{by_lag[largest].median:.2f}. The proposition does not apply: the loss is not "
            "convex, the rule is not SGD, and every gradient touches every parameter "
            "(rho = Delta = 1), so its bound says nothing here.",
            FAILS,
            timing=False,
        ),
    ]


def draw(outcome: Outcome) -> Figure:
    """Gradients against staleness, and the losses of serial trainings."""
    figure, (left, right) = new_panels(
        ("staleness", "gradients, multiples of serial's", "What staleness costs"),
        ("gradients", "held-out bits per byte", "Serial Muon"),
    )
    for ink, name in zip(INKS, dict.fromkeys(row["rule"] for row in outcome.table), strict=False):
        rows = [row for row in outcome.table if row["rule"] == name]
        at = [row["workers"] - 1 for row in rows]
        cost = [row["times the gradients of serial"] for row in rows]
        spread = [
            [c - row["least"] for c, row in zip(cost, rows, strict=True)],
            [row["most"] - c for c, row in zip(cost, rows, strict=True)],
        ]
        left.errorbar(at, cost, yerr=spread, fmt="o-", color=ink, label=name, markersize=4)
    left.set_yscale("log")
    left.legend(frameon=False, fontsize=7)
    for seed, curve in outcome.results["serial"].items():
        steps, bits = zip(*curve, strict=True)
        right.plot(steps, bits, "o-", color=INKS[0], markersize=3, label=f"seed {seed}")
    legend(right)
    return figure


def tune() -> None:
    """Find every arm's step size: the lowest loss after the gradients of --quick and of --full.

    What an earlier search has tried is not tried again.
    """
    trials = Trials(ABOUT.name)

    def best(bench: Bench, name: str, count: int, first: float) -> float:
        model = bench.setup.to_json()["model"]
        arm = {"model": model, "rule": name, "workers": count, "gradients": GRADIENTS}

        def bits(lr: float) -> float:
            return _end(bench, name, count, seed=0, gradients=GRADIENTS, lr=lr)[0]

        return descend(lambda lr: trials.score({**arm, "lr": lr}, lambda: bits(lr)), first, FACTOR)

    for mode in ("quick", "full"):
        bench = _bench(Scale(mode))
        chosen: dict[str, Any] = {"gradients": GRADIENTS, "lr": {}}
        for name, count in [(SERIAL, 1), *rows_of(Scale(mode))]:
            known = _rates(trials.settings, Scale("quick"))
            first = known.get(f"{name}, {count}", first_rate(name, count))
            chosen["lr"][f"{name}, {count}"] = best(bench, name, count, first)
            trials.settings[mode] = chosen
            trials.write()


if __name__ == "__main__":
    raise SystemExit(run(ABOUT, result, draw, tune=tune))
