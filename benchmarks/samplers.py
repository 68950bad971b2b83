"""Samplers of `mad search` against random draws, on a recorded surface: no run is trained.

    python benchmarks/samplers.py                      minutes, on benchmarks/mad/surface.json.xz
    python benchmarks/samplers.py --tasks noisy-in-context-recall compression
    python benchmarks/samplers.py --record             train the surface anew: an hour

Every sampler proposes candidates one at a time and gets their recorded scores, with many seeds,
until the first candidate of the best 5 % and of the best 1 % of all.
Each is compared with random draws, repeat by repeat; "random again" are random draws with other
seeds (A/A); "optuna" is the TPE of that library, to which ours is compared, too.

Changes of samplers are chosen on in-context-recall and selective-copying, and reported on the other
two tasks.
"""

import math
import sys
from pathlib import Path

import numpy as np
import optuna
from harness.claims import Control, counted
from harness.estimates import Mean
from harness.frame import run
from harness.machine import ROOT, cores, smallest
from mad.surface import load
from mad.surface import write as write_surface

from mlxhog.mad.options import ExecutionConfig, read_seeds
from mlxhog.mad.report.progress import shown
from mlxhog.mad.samplers.samplers import ModelBasedSampler
from mlxhog.mad.study.definition import StudyDefinition
from mlxhog.mad.study.session import execute
from mlxhog.mad.study.store import open_store

SURFACE = ROOT / "benchmarks" / "mad" / "surface.json.xz"
ARMS = ("evolution", "tpe", "optuna", "random again")
SHARES = (0.05, 0.01)
REPEATS, QUICK = 200, 20
MIXERS = (
    "mlstm", "slstm", "mh-attention", "gla", "ssd", "gated-delta-net", "gated-conv", "mamba",
    "linear-attention",
)  # fmt: skip
TASKS = ("in-context-recall", "selective-copying", "noisy-in-context-recall", "compression")


MAX_REPEATS = 256
"""Proposals of Optuna that are no new candidate, before a random one is taken."""


class OptunaTPE(ModelBasedSampler):
    """Proposes by `optuna.samplers.TPESampler` with its defaults, a categorical choice for a slot.

    A candidate that Optuna repeats gets its score again, and counts as no proposal. For spaces of
    one depth, without a budget.
    """

    def __init__(self, candidates, seed):
        super().__init__(candidates, seed)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        sampler = optuna.samplers.TPESampler(seed=seed)
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        (depth,) = candidates.depths
        self._slots = candidates.slots(depth)
        self._trial = None

    def suggest(self):
        """Return a proposal of Optuna that is new; None if it repeats candidates."""
        for _ in range(MAX_REPEATS):
            trial = self._study.ask()
            layers = tuple(
                layers[trial.suggest_categorical(f"slot {slot}", range(len(layers)))]
                for slot, layers in enumerate(self._slots)
            )
            if self.is_new(layers):
                self._trial = trial
                return layers
            self._study.tell(trial, self.scores[layers])
        self._trial = None
        return None

    def tell(self, layers, score):
        """Record the score, also with Optuna unless the candidate was a random one."""
        super().tell(layers, score)
        if self._trial is not None:
            self._study.tell(self._trial, score)


def play(surface, name, scores, repeats, *, first=0):
    """Orders of the candidates that a sampler proposes until one of the best, repeat by repeat."""
    numbers = {layers: number for number, layers in enumerate(surface.layers.values())}
    orders = []
    for repeat in range(repeats):
        seen, order, reached = scores[repeat % len(scores)], [], False
        sampler = surface.sampler("tpe" if name == "optuna" else name, first + repeat)
        proposals = OptunaTPE(sampler.candidates, first + repeat) if name == "optuna" else sampler
        while not reached:
            if (layers := proposals.ask()) is None:
                break
            order.append(number := numbers[layers])
            reached = reached or seen[number] >= good(seen, min(SHARES))
            proposals.tell(layers, float(seen[number]))
        orders.append(order)
    return orders


def good(scores, share):
    """The least score of the best share of the candidates, at least one."""
    return float(np.sort(scores)[-math.ceil(share * len(scores))])


def needed(orders, scores, share):
    """Proposals until the first of the best share of the candidates, per repeat."""
    seen = [scores[k % len(scores)] for k in range(len(orders))]
    return [
        1.0 + int(np.argmax(own[order] >= good(own, share)))
        for own, order in zip(seen, orders, strict=True)
    ]


def measure(findings, chosen):
    """Compare every sampler with random draws, and our TPE with Optuna's."""
    surface = load(chosen.surface)
    surface = surface.only(chosen.tasks) if chosen.tasks else surface
    repeats, scores = smallest(2, QUICK if chosen.quick else REPEATS), surface.scores()
    orders = {"random": play(surface, "random", scores, repeats)}
    for arm in smallest(ARMS[-1:], ARMS):
        name, first = ("random", repeats) if arm == "random again" else (arm, 0)
        orders[arm] = play(surface, name, scores, repeats, first=first)
    values = {
        f"candidates until one of the best {100 * share:g} %": {
            arm: needed(own, scores, share) for arm, own in orders.items()
        }
        for share in SHARES
    }
    findings.table(
        {"quantity": name, **{arm: Mean.of(own).spelt(".4f") for arm, own in by.items()}}
        for name, by in values.items()
    )
    pairs = [*((arm, "random") for arm in ARMS[:-1]), ("tpe", "optuna")]
    for name, by in values.items():
        for arm, other in pairs:
            if arm in by:
                less = Mean.of_differences(by[arm], by[other])
                findings.document(counted(f"{name}: {arm} less {other}", less, "<=", 0.0))
        same = Mean.of_differences(by["random again"], by["random"])
        findings.controls.append(Control(name, same, same.p(0.0)))
    findings.results |= {"candidates": len(surface.runs), "repeats": repeats}


def record(chosen):
    """Train the surface anew: every candidate, at width 32 and with few steps."""
    space = {"depth": 4, "mixers": list(MIXERS), "channels": ["swiglu", "mlp"]}
    study = StudyDefinition(
        space=space, suite="smoke", tasks=TASKS, seeds=read_seeds("1"), dim=32,
        recipe={"steps": 240, "eval_every": 12}, sampler="random",
    )  # fmt: skip
    store = open_store(study, chosen.studies, "mad-surface")
    how = ExecutionConfig(parallel=len(cores()), studies_dir=chosen.studies)
    with shown(sys.stderr) as show:
        if execute(store, study, how, show).status == "interrupted":
            return 130
    write_surface(store, chosen.surface)
    return 0


if __name__ == "__main__":
    run(
        __doc__, measure, modes={"quick": f"{QUICK} repeats"}, actions={"record": record},
        options={
            "--surface": {"type": Path, "default": SURFACE},
            "--studies": {"default": "studies", "help": "folder of the recorded study"},
            "--tasks": {"nargs": "+", "default": [], "help": "of the score; all by default"},
        },
        packages=("scipy", "optuna"),
    )  # fmt: skip
