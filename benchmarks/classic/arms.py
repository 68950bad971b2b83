"""Runs of classic problems, side by side: same data, same order of the rows, same native loops."""

import math
from dataclasses import dataclass, replace

import numpy as np
from harness.claims import Claim
from harness.estimates import Mean, Ratio
from harness.frame import say
from harness.interleaved import with_control
from harness.machine import cores

from mlxhog.research.classic.config import ClassicConfig
from mlxhog.research.classic.problem import Graph
from mlxhog.research.classic.run import train


@dataclass(frozen=True)
class Arm:
    """One way to run a problem; the seed is set for each run."""

    name: str
    config: ClassicConfig

    @classmethod
    def of(cls, name, **options):
        """An arm with these options of `mlxhog research classic`."""
        return cls(name, ClassicConfig(**options))


def interleaved(findings, problem, arms, seeds, *, name=""):
    """Run all arms with each seed, in turns; returns the results by arm.

    The first arm runs an epoch before anything counts, and twice with each seed (A/A).

    Args:
        findings: get the A/A arm.
        problem: of all arms.
        arms: the first one is compared with itself.
        seeds: of the order of the rows.
        name: of the problem, where it is not its own.
    """
    configs, first, name = {arm.name: arm.config for arm in arms}, arms[0], name or problem.name

    def run(arm, seed):
        result = train(problem, replace(configs[arm], seed=seed))
        text = f"objective {result.objective:.5g} in {result.seconds:.3g} s, {result.status}"
        say(f"{name} {arm}: {text}")
        return result

    train(problem, replace(first.config, epochs=1))
    runs, again = with_control(seeds, configs, run, control=first.name)
    findings.same(f"{name}, {first.name}, seconds", seconds(runs[first.name]), seconds(again))
    return runs


def seconds(results):
    """Seconds of all epochs, of each run."""
    return [result.seconds for result in results]


def ends(results, measure):
    """A measure after the last epoch, of each run."""
    return [result.measures[measure] for result in results]


def speedup(slow, fast):
    """How many times as fast the second are, by seconds of all epochs."""
    return Ratio.of(seconds(slow), seconds(fast))


def summary(results, *measures):
    """The seconds of all epochs, and the median of each measure at the end."""
    medians = {name: float(np.median(ends(results, name))) for name in measures}
    return {"seconds": Mean.of(seconds(results)).spelt(".3g"), **medians}


def beside_one(findings, runs, *measures):
    """Add a table of arms called `KIND N`, each beside its kind with one worker."""
    findings.table(
        {"arm": name, **summary(own, *measures),
         "speedup": speedup(runs[f"{name.rpartition(' ')[0]} 1"], own).spelt()}
        for name, own in runs.items()
    )  # fmt: skip


def faster(runs, kind, workers, relation, limit=1.0):
    """The claim of how many times as fast some workers of a kind are as one."""
    ratio = speedup(runs[f"{kind} 1"], runs[f"{kind} {workers}"])
    return Claim.of(f"{kind}, seconds of 1 / of {workers} workers", ratio, relation, limit)


def with_a_core(counts):
    """The most workers that have a core each here; two at least."""
    return max(count for count in counts if count <= max(2, len(cores())))


def seconds_to(result, target):
    """Seconds of the epochs up to the first whose objective is at most `target`; NaN if none is.

    The last epoch counts in proportion: as if the objective fell evenly in it.
    """
    passed, before = 0.0, result.initial["objective"]
    for epoch in result.epochs:
        if epoch.objective <= target:
            fall = before - epoch.objective
            share = (before - target) / fall if fall > 0 else 1.0
            return passed + epoch.seconds * min(max(share, 0.0), 1.0)
        passed, before = passed + epoch.seconds, epoch.objective
    return math.nan


# -- a similarity graph in which a few entities have many edges ------------------------------------

ENTITY_SHIFT = 86.0
LABELLED_SHARE = 0.1  # share of vertices that are terminals
ASTRAY_SHARE = 0.05  # share of edges whose tail is drawn without regard to its label


def dblife_like(vertices=18_167, edges=180_110, labels=8, *, seed=0):
    """Draw a graph whose ends follow p_j ~ 1/(j + 86).

    Every vertex has a label, and most edges join vertices of the same label; one vertex in ten is a
    terminal. Weights are similarities in (0, 1]. (The published graph has a label for each entity.)
    """
    rng = np.random.default_rng(seed)
    law = 1.0 / (np.arange(vertices) + ENTITY_SHIFT)
    law /= law.sum()
    label_of = rng.permutation(np.arange(vertices) % labels)
    heads = rng.choice(vertices, edges, p=law)
    # Labels do not depend on a vertex's number of edges, so tails follow the same law as heads.
    tails = rng.choice(vertices, edges, p=law)
    same_label = rng.random(edges) >= ASTRAY_SHARE
    for label in range(labels):
        members = np.flatnonzero(label_of == label)
        joined = np.flatnonzero(same_label & (label_of[heads] == label))
        tails[joined] = rng.choice(members, len(joined), p=law[members] / law[members].sum())
    while (loops := np.flatnonzero(heads == tails)).size:
        tails[loops] = rng.choice(vertices, loops.size, p=law)
    weights = 1.0 - rng.random(edges, dtype=np.float32)
    is_terminal = rng.random(vertices) < LABELLED_SHARE
    is_terminal[np.unique(label_of, return_index=True)[1]] = True
    ends = heads.astype(np.int32), tails.astype(np.int32)
    terminals = {int(vertex): int(label_of[vertex]) for vertex in np.flatnonzero(is_terminal)}
    return Graph(*ends, weights, vertices, terminals, labels)
