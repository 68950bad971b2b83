"""Samplers against random draws, and successive halving, on a recorded surface: no run is trained.

    python benchmarks/samplers.py                      minutes, on benchmarks/mad/surface.json.xz
    python benchmarks/samplers.py --surface FILE       on another one, see `mad_bench.py surface`
    python benchmarks/samplers.py --tasks noisy-in-context-recall compression
    python benchmarks/samplers.py --only halving

samplers   every sampler of `mad search` proposes candidates one at a time and gets their recorded
           scores, with many seeds. Regret is the best score of the surface less the best score
           among the first 20, 40, 80 and 160 proposals. Needed are the proposals until the first
           candidate of the best 5 % and of the best 1 %. Each is compared with random draws by
           a paired test: random signs of the differences, Holm's correction over all comparisons.
           "random again" are random draws with other seeds: the test must not tell them apart.
           "optuna" is the TPE of that library, to which ours is compared, too.
           Kept is the regret at the largest budget on the seeds that the search did not see, if
           the surface has more than one.
halving    the time that pruning saves in a random search of 80 candidates, and the score it loses

A sampler sees one seed of the surface in each repeat, and all seeds in turn.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import numpy as np
from harness.claims import Mean, flags, measured
from harness.machine import ROOT, smallest
from mad.halving import HalvingReplay, rungs_of
from mad.optuna_tpe import OptunaTPE
from mad.surface import load
from numpy.typing import NDArray

from mlxhog.errors import MlxhogError

Float64 = NDArray[np.float64]
BESIDE = "tpe beside optuna"
ARMS = ("evolution", "tpe", "optuna", "random again")
BUDGETS = (20, 40, 80, 160)
SHARES = (0.05, 0.01)
ETAS = (2, 3, 4)
HALVED = 80
"""Candidates of a halved search."""
REPEATS, QUICK = 200, 20
SIGNS = 20_000
ERROR = 0.05
"""Probability that any of the comparisons of equal samplers is called different."""


def main():
    """Replay what the flags ask for."""
    parser = flags(__doc__, parts=PARTS, quick=f"{QUICK} repeats")
    parser.add_argument("--surface", type=Path, default=ROOT / "benchmarks/mad/surface.json.xz")
    parser.add_argument("--tasks", nargs="+", default=[], help="of the score; all by default")
    parser.add_argument("--repeats", type=int, help=f"{REPEATS} by default")
    chosen = parser.parse_args()
    if chosen.repeats is not None and chosen.repeats < 2:
        parser.error(f"--repeats is {chosen.repeats}; an interval needs 2 at least")
    try:
        return measured("samplers", chosen, measure, packages=("scipy", "optuna"))
    except MlxhogError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def measure(findings, chosen):
    """Read the surface, and replay the parts."""
    surface = load(chosen.surface)
    if chosen.tasks:
        surface = surface.only(chosen.tasks)
    repeats = chosen.repeats or smallest(2, QUICK if chosen.quick else REPEATS)
    findings.results |= {
        "surface": surface.facts,
        "candidates": len(surface.runs),
        "seeds": surface.seeds,
        "tasks": surface.tasks,
        "repeats": repeats,
    }
    for name in chosen.only or PARTS:
        print(f"\n{name}", flush=True)
        PARTS[name](findings, surface, repeats)


# -- samplers --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Replays:
    """Proposals of one sampler, repeat by repeat, on the seeds of a surface in turn.

    Attributes:
        orders: numbers of the candidates, in the order of the proposals.
        scores: (seeds, candidates).
    """

    orders: Sequence[Sequence[int]]
    scores: Float64

    def _seen(self, repeat):
        return self.scores[repeat % len(self.scores)]

    def regret(self, budget):
        """Best score of the surface less the best of the first proposals, per repeat."""
        return np.array(
            [
                self._seen(k).max() - self._seen(k)[list(order[:budget])].max()
                for k, order in enumerate(self.orders)
            ]
        )

    def needed(self, share):
        """Proposals until the first of the best share of the candidates, per repeat."""
        counts = []
        for k, order in enumerate(self.orders):
            least = good(self._seen(k), share)
            counts.append(1 + int(np.argmax(self._seen(k)[list(order)] >= least)))
        return np.array(counts, float)

    def kept(self, budget):
        """Regret of the best of the first proposals on the other seeds, of which there are some."""
        regrets = []
        for k, order in enumerate(self.orders):
            others = np.delete(self.scores, k % len(self.scores), axis=0).mean(axis=0)
            chosen = max(order[:budget], key=self._seen(k).__getitem__)
            regrets.append(others.max() - others[chosen])
        return np.array(regrets)


def good(scores, share):
    """Return the least score of the best share of the candidates, at least one."""
    return float(np.sort(scores)[-math.ceil(share * len(scores))])


def sampler_of(surface, name, seed):
    """Return a sampler of `mad search`, or Optuna's."""
    own = surface.planning(sampler="tpe" if name == "optuna" else name, sampler_seed=seed).sampler()
    return OptunaTPE(own.candidates, seed) if name == "optuna" else own


def play(surface, sampler, scores, repeats, *, first=0):
    """Let a sampler propose candidates until the largest budget, and one of the best.

    Args:
        surface: of the space.
        sampler: its name.
        scores: of `surface.scores`, which the sampler gets.
        repeats: each with a seed of its own.
        first: seed of the first one.
    """
    numbers = {layers: number for number, layers in enumerate(surface.layers.values())}
    orders = []
    for repeat in range(repeats):
        seen = scores[repeat % len(scores)]
        proposals = sampler_of(surface, sampler, first + repeat)
        order = []
        least, reached = good(seen, min(SHARES)), False
        while len(order) < max(BUDGETS) or not reached:
            layers = proposals.ask()
            if layers is None:
                break
            order.append(number := numbers[layers])
            reached = reached or seen[number] >= least
            proposals.tell(layers, float(seen[number]))
        orders.append(order)
    return Replays(orders, scores)


def replay_samplers(findings, surface, repeats):
    """Compare every sampler with random draws, and our TPE with Optuna's."""
    scores = surface.scores()
    random = play(surface, "random", scores, repeats)
    replays = {"random": random}
    for arm in ARMS:
        name, first = ("random", repeats) if arm == "random again" else (arm, 0)
        replays[arm] = play(surface, name, scores, repeats, first=first)
    budgets = [budget for budget in BUDGETS if budget < len(surface.runs)]
    quantities = {
        **{f"regret at {n}": lambda one, n=n: one.regret(n) for n in budgets},
        **{f"needed, best {s:.0%}": lambda one, s=s: one.needed(s) for s in SHARES},
    }
    keys = [(arm, name) for arm in ARMS for name in quantities]
    differences = [quantities[name](replays[arm]) - quantities[name](random) for arm, name in keys]
    keys += [(BESIDE, name) for name in quantities]
    differences += [of(replays["tpe"]) - of(replays["optuna"]) for of in quantities.values()]
    adjusted = holm([p_value(values) for values in differences])
    verdicts = {
        key: verdict(values, p) for key, values, p in zip(keys, differences, adjusted, strict=True)
    }
    rows = {
        arm: {
            name: asdict(Mean.of(of(own).tolist())) | {"verdict": verdicts.get((arm, name), "")}
            for name, of in quantities.items()
        }
        for arm, own in replays.items()
    }
    if len(surface.seeds) > 1:
        for arm, own in replays.items():
            kept = own.kept(max(budgets, default=len(surface.runs)))
            rows[arm]["kept"] = asdict(Mean.of(kept.tolist())) | {"verdict": ""}
    _print(rows)
    print(f"  {BESIDE}")
    for name in quantities:
        print(f"    {name:18} {verdicts[BESIDE, name]}")
    false_verdicts = sum(verdicts["random again", name] != EQUAL for name in quantities)
    findings.exact("comparisons that tell random draws from random draws", false_verdicts, 0)
    findings.results["samplers"] = rows
    findings.results[BESIDE] = {name: verdicts[BESIDE, name] for name in quantities}


def p_value(differences):
    """Return the two-sided p-value of a mean, by random signs of the differences of pairs.

    It is exact, up to the number of signs drawn, if both sides of a pair are alike.
    """
    signs = np.random.default_rng(0).integers(0, 2, (SIGNS, len(differences))) * 2 - 1
    means = np.abs(signs @ differences)
    return float((1 + np.sum(means >= abs(differences.sum()) - 1e-9)) / (1 + SIGNS))


def holm(p_values):
    """Return the p-values corrected for their number (Holm 1979)."""
    adjusted, least = [0.0] * len(p_values), 0.0
    for k, number in enumerate(np.argsort(p_values, kind="stable")):
        least = max(least, min(1.0, (len(p_values) - k) * p_values[number]))
        adjusted[number] = least
    return adjusted


EQUAL = "cannot be told"


def verdict(differences, p):
    """Return whether a sampler is better or worse than random draws; smaller is better."""
    if p >= ERROR:
        return EQUAL
    return "better" if differences.mean() < 0 else "worse"


def _print(rows):
    for arm, row in rows.items():
        print(f"  {arm}")
        for name, cell in row.items():
            form = ".1f" if name.startswith("needed") else ".4f"
            print(
                f"    {name:18} {cell['mean']:8{form}} ± {cell['half']:{form}}   {cell['verdict']}"
            )


# -- successive halving ----------------------------------------------------------------------------


def replay_halving(findings, surface, repeats):
    """Report saved time and lost score of several eta."""
    names = list(surface.runs)
    planned = [run.planned for run in surface.runs[names[0]]]
    count = min(HALVED, len(names))
    rows = {}
    for eta in ETAS:
        rungs = rungs_of(planned, eta)
        replays = [HalvingReplay(surface, rungs, seed) for seed in surface.seeds]
        own = [
            replays[k % len(replays)].search(Random(f"{k}").sample(names, count))
            for k in range(repeats)
        ]
        row = {
            name: asdict(Mean.of(getattr(one, name) for one in own))
            for name in ("saved_time", "saved_steps", "lost_score", "pruned")
        }
        rows[f"eta {eta}"] = {"rungs": asdict(rungs), **row}
        print(f"  eta {eta}, first rungs {rungs.first}, of recall {rungs.first_of_sudden}")
        for name, cell in row.items():
            print(f"    {name.replace('_', ' '):12} {cell['mean']:7.3f} ± {cell['half']:.3f}")
    findings.results["halving"] = {"candidates": count, **rows}


PARTS = {
    "samplers": replay_samplers,
    "halving": replay_halving,
}


if __name__ == "__main__":
    raise SystemExit(main())
