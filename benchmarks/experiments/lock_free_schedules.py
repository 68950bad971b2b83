"""The document's own recipe: lock-free workers on an xLSTM with exponential back-off.

python benchmarks/experiments/lock_free_schedules.py          Muon, d 64 x 3, four seeds: 5 minutes
python benchmarks/experiments/lock_free_schedules.py --full   AdamW as well: ten minutes
python benchmarks/experiments/lock_free_schedules.py --tune   search step sizes and K: 15 minutes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from experiment.figures import Figure, intervals, new_panels
from experiment.language import Bench, Setup, setup, workers
from experiment.record import Compared, Experiment, Outcome, Scale, run, say
from experiment.runs import Runs
from experiment.searches import is_recorded, recorded, write_recorded
from harness.claims import Claim, Twin
from harness.estimates import Mean
from harness.interleaved import take_turns
from training.schedules import (
    BACKOFF,
    CONSTANT,
    COSINE,
    FALLING,
    INVERSE,
    STABLE,
    Rule,
    Trained,
    best_settings,
    search,
)

ABOUT = Experiment(
    name="lock_free_schedules",
    title="Lock-free workers on an xLSTM: back-off beside 1/k, constant steps, cosine and wsd",
    source="document 001, Robust 1/k Rates and Stepsize Selection",
    about=(
        "Two lock-free workers train an xLSTM, with Muon and with AdamW. Back-off takes the first "
        "step size for K gradients, .37 of it for K/.37, and so on; 1/k is lr / (1 + k/K). Beside "
        "them constant steps, half a cosine, and wsd: steady, and a line down over the last fifth. "
        "None has a warm-up, as back-off has none. Each has the step size, and the K, that a "
        "search with one seed found best, with a worse one on either side; K is at most twice the "
        "gradients, where back-off is a constant step size and 1/k hardly falls. All compute "
        "equally many gradients; differences are of pairs with the same seed. Bits per byte are "
        "counted, not seconds."
    ),
    packages=("torch",),
    quick_seeds=4,
    full_seeds=8,
)
RIVALS = (INVERSE, CONSTANT, COSINE, STABLE)
AGAIN = "back-off again"
"""The A/A arm."""
ARMS = (BACKOFF, *RIVALS, AGAIN)
FIRST = {"muon": 4e-3, "adamw": 2e-3}
"""Where the search for a step size begins; that for a constant one at half of it."""
FIRST_SHARES = {INVERSE: 1.0, BACKOFF: 0.5}
"""Where the search for K begins, as a share of the gradients: the best of `backoff`."""
GRADIENTS = 600
TUNING_SEEDS = (101,)

Arm = tuple[str, str]
"""Optimizer, schedule."""


class Cell:
    """Two lock-free workers with one optimizer (a training of `training.schedules.search`)."""

    def __init__(self, scale: Scale, optimizer: str) -> None:
        """Open the held-out text."""
        tiny = scale.mode == "tiny"
        small = Setup({"hidden_size": 64, "num_hidden_layers": 3})
        self.bench = Bench(replace(setup(scale) if tiny else small, looks=2))
        self.optimizer, self.gradients = optimizer, 40 if tiny else GRADIENTS

    def train(self, rule: Rule, seed: int) -> Trained:
        """Held-out bits per byte after all gradients."""
        one = self.bench.train(
            f"{self.optimizer}, {rule.schedule}, lr {rule.lr:.2g}, K {rule.share:g}",
            seed=seed,
            tokens=self.gradients * self.bench.setup.batch * self.bench.setup.seq_len,
            optimizer=self.optimizer,
            workers=workers(2),
            **rule_options(rule, self.gradients),
        )
        return Trained(one.end)


def rule_options(rule: Rule, gradients: int) -> dict[str, Any]:
    """Options of `TrainConfig`; no schedule has a warm-up, since the falling ones have none."""
    warmup = {} if rule.schedule in FALLING else {"warmup": 0.0}
    return {**rule.options(gradients, COSINE), **warmup}


def optimizers(scale: Scale) -> tuple[str, ...]:
    """Muon alone where minutes have to do."""
    return ("muon",) if scale.quick else tuple(FIRST)


def settings(scale: Scale) -> dict[str, dict[str, dict[str, Any]]]:
    """Optimizer -> schedule -> searched settings; arbitrary ones where numbers mean nothing.

    Raises:
        SystemExit: nothing was searched for a schedule of this mode.
    """
    schedules = (BACKOFF, *RIVALS)
    if scale.mode == "tiny":
        some = {s: {"lr": 3e-3, "share": 0.5 * (s in FALLING), "bracket": ""} for s in schedules}
        return dict.fromkeys(optimizers(scale), some)
    searched = recorded(ABOUT.name)
    missing = [
        f"{optimizer}, {schedule}"
        for optimizer in optimizers(scale)
        for schedule in schedules
        if schedule not in searched.get(optimizer, {})
    ]
    if missing:
        raise SystemExit(
            f"no step size was searched for --{scale.mode} of {'; '.join(missing)}; run "
            f"python benchmarks/experiments/{ABOUT.name}.py --tune"
        )
    return {
        optimizer: {
            schedule: best_settings(searched[optimizer][schedule]) for schedule in schedules
        }
        for optimizer in optimizers(scale)
    }


def result(scale: Scale) -> Outcome:
    """Train under every schedule with every seed."""
    chosen, runs = settings(scale), Runs(ABOUT, scale)
    cells = {optimizer: Cell(scale, optimizer) for optimizer in chosen}
    arms = [(o, s) for o in chosen for s in ARMS if s != AGAIN or o == "muon"]

    def train(arm: Arm, seed: int) -> float:
        optimizer, schedule = arm
        one = chosen[optimizer][BACKOFF if schedule == AGAIN else schedule]
        rule = Rule(BACKOFF if schedule == AGAIN else schedule, one["lr"], one["share"])
        cell = cells[optimizer]
        which = {"arm": arm, "seed": seed, "gradients": cell.gradients, **one}
        return float(runs.of(which, lambda: {"bits": cell.train(rule, seed).loss})["bits"])

    bits = take_turns(scale.seeds, arms, train)
    bench = next(iter(cells.values())).bench
    common = {**bench.setup.to_json(), "schedule": "by arm", "optimizer": "by arm"}
    return Outcome(
        compared=_compared(bits, chosen),
        table=[_row(arm, bits, chosen) for arm in arms],
        settings={**common, "gradients": next(iter(cells.values())).gradients, "searched": chosen},
        results={
            "bits": [{"optimizer": o, "schedule": s, "bits": own} for (o, s), own in bits.items()]
        },
        twins=[Twin.of("back-off, muon", bits["muon", BACKOFF], bits["muon", AGAIN])],
        others_load=runs.others_load,
    )


def _row(
    arm: Arm, bits: Mapping[Arm, Sequence[float]], chosen: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    optimizer, schedule = arm
    one = chosen[optimizer][BACKOFF if schedule == AGAIN else schedule]
    more = Mean.of_differences(bits[arm], bits[optimizer, BACKOFF])
    return {
        "optimizer": optimizer,
        "schedule": schedule,
        "step size": one["lr"],
        "K / gradients": one["share"] or "",
        "bits per byte": Mean.of(bits[arm]).spelt(".3f"),
        "more than back-off": "" if schedule == BACKOFF else more.spelt(".3f"),
        "searched": one["bracket"],
    }


def _compared(
    bits: Mapping[Arm, Sequence[float]], chosen: Mapping[str, Mapping[str, Any]]
) -> list[Compared]:
    """Back-off beside the others, optimizer by optimizer.

    Where the search chose K beyond the end of the training, back-off is a constant step size, and
    no rival is compared with back-off.
    """

    def falls(optimizer: str) -> bool:
        return float(chosen[optimizer][BACKOFF]["share"]) < 1.0

    def more(rivals: Sequence[str]) -> list[Claim]:
        return [
            Claim.of(
                f"{optimizer}: {rival} less back-off, bits per byte",
                Mean.of_differences(bits[optimizer, rival], bits[optimizer, BACKOFF]),
                ">=",
                0.0,
                timing=False,
            )
            for optimizer in dict.fromkeys(optimizer for optimizer, _ in bits)
            for rival in rivals
            if falls(optimizer)
        ]

    return [
        Compared.of("Faster in practice than 1/k (larger steps early on).", *more([INVERSE])),
        Compared.of(
            "For xLSTM: use constant stepsize with exponential backoff.",
            *more([CONSTANT, COSINE, STABLE]),
        ),
    ]


def draw(outcome: Outcome) -> Figure:
    """Bits per byte of every seed, by schedule."""
    by_optimizer: dict[str, dict[str, list[float]]] = {}
    for one in outcome.results["bits"]:
        by_optimizer.setdefault(one["optimizer"], {})[one["schedule"]] = one["bits"]
    figure, panels = new_panels(*(("held-out bits per byte", "", name) for name in by_optimizer))
    for axes, bits in zip(panels, by_optimizer.values(), strict=True):
        intervals(axes, bits)
    return figure


def tune() -> None:
    """Search step size and K of every schedule; what was searched is not searched again."""
    found: dict[str, Any] = recorded(ABOUT.name) if is_recorded(ABOUT.name) else {}
    full = Scale("full")
    for optimizer in optimizers(full):
        searched, cell = found.setdefault(optimizer, {}), Cell(full, optimizer)
        for schedule in (BACKOFF, *RIVALS):
            if schedule not in searched:
                lr = FIRST[optimizer] / (2 if schedule == CONSTANT else 1)
                share = FIRST_SHARES.get(schedule, 0.0)
                searched[schedule] = search(cell, schedule, lr, share, TUNING_SEEDS)
                write_recorded(ABOUT.name, found)
            say(f"{optimizer}, {schedule}: {best_settings(searched[schedule])}")


if __name__ == "__main__":
    raise SystemExit(run(ABOUT, result, draw, tune=tune))
