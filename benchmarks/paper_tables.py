"""The Hogwild paper's tables: sparse SVM, matrix completion and graph cuts by its schemes.

    python benchmarks/paper_tables.py          five seeds
    python benchmarks/paper_tables.py --full   six
    python benchmarks/paper_tables.py --tune   search the step size of every scheme

Generated data with the statistics of RCV1, Netflix, DBLife and an abdominal scan, as none of the
sets may be shipped; at sizes that a small machine does in a minute. Hogwild is lock-free: load and
store (racy). What loses no update (lossless) and RCV1's private copies of frequent words (hot-cold)
are rows of their own. As in the paper: 20 epochs, the step size times .9 after each, and for every
scheme the step size that ends lowest. Speedups are over plain serial SGD, to the same objective,
2 % above where serial SGD ends; of the scan, over all epochs.

Source: Niu et al. 2011, Hogwild!, arXiv:1106.5730, Figures 2 to 5.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from classic.arms import Arm, dblife_like, ends, interleaved, seconds, seconds_to, summary
from harness.claims import Claim, counted
from harness.estimates import Mean, Ratio
from harness.frame import MODES, flags, measured
from harness.machine import cores
from harness.tuning import around, settings, tune

from mlxhog.classic.config import ClassicConfig
from mlxhog.classic.problems import create
from mlxhog.classic.problems.cuts import GraphCuts
from mlxhog.classic.run import train
from mlxhog.theory.hypergraph import Hypergraph

EPOCHS, BETA = 20, 0.9
THREADS = 10  # of the paper
NEAR = 1.005  # objective over serial's
TUNED_ON = 7
SCHEMES = {
    "hogwild": {"scheme": "hogwild", "write": "racy"},
    "hot-cold": {"scheme": "hogwild", "write": "hot-cold"},
    "lossless": {"scheme": "hogwild", "write": "lossless"},
    "aig": {"scheme": "aig"},
    "round_robin": {"scheme": "round_robin"},
}


@dataclass(frozen=True)
class Published:
    """What the paper printed or drew: ten threads on twelve cores.

    Attributes:
        rho: share of examples that meet another; RCV1's are printed the other way round.
        delta: share of examples at the busiest coordinate.
        speedup: of hogwild, AIG and round-robin, read off figures.
        error: train and test, where there is one.
        lossless: how our `lossless` writes one coordinate of it.
    """

    rho: float
    delta: float
    speedup: tuple[float, float, float]
    error: str
    lossless: str


LOCKS, SWAPS = "row locks", "compare-and-swap"
PUBLISHED = {
    "RCV1": Published(1.0, 0.44, (3.0, 1.5, 0.6), ".297 / .339", SWAPS),
    "Netflix": Published(2.5e-3, 2.3e-3, (4.5, 2.0, 0.4), ".754 / .928", LOCKS),
    "DBLife": Published(8.6e-3, 4.3e-3, (9.0, 7.0, 5.0), "10.6", LOCKS),
    "Abdomen": Published(9.2e-4, 9.2e-4, (4.0, 2.0, 0.5), "3.99", SWAPS),
}
FIXED = {"Abdomen": 0.01}
"""The step size of a problem that has no best one, of every scheme. The grid's relaxed objective
begins (all vertices at 1/2) below where 20 epochs of any step size end, and the weight of its
rounded cut is the same, 1487.2 to within .01 %, at every one from .0004 to .1 (serial, seeds 7 and
8). So its schemes are compared by the cut, and by the seconds of all epochs."""
NO_STATISTICS = ("Abdomen",)  # its published ones are not those of a 6-connected grid


def problems(*, tiny, seed=0):
    """The problems by the name of their published data; the sizes of --tune are the measured."""
    text, ratings, side = (500, 5_000, 6) if tiny else (None, None, 48)
    vertices, edges = (200, 900) if tiny else (18_167, 180_110)
    return {
        "RCV1": create("svm", ClassicConfig(seed=seed, size=text)),
        "Netflix": create("matrix-completion", ClassicConfig(seed=seed, size=ratings)),
        "DBLife": GraphCuts(dblife_like(vertices, edges, seed=seed)),
        "Abdomen": create("graph-cuts", ClassicConfig(seed=seed, size=side)),
    }


def configs(problem, workers, epochs):
    """Scheme -> its options, of serial SGD and every scheme that the problem supports."""
    base = ClassicConfig(beta=BETA, epochs=epochs, lr=problem.defaults.lr)
    return {"serial": replace(base, scheme="serial")} | {
        name: replace(base, workers=workers, **options)
        for name, options in SCHEMES.items()
        if options.get("write", "racy") in problem.defaults.writes
    }


class Measured:
    """What one problem shows: ratios by scheme, and statistics of its data."""

    def __init__(self, name, problem, runs):
        self.counts = "cut" if name in FIXED else "objective"
        serial = ends(runs["serial"], self.counts)
        target = 1.02 * float(np.median(serial))
        times = {
            scheme: seconds(own) if name in FIXED else [seconds_to(one, target) for one in own]
            for scheme, own in runs.items()
        }
        others = [scheme for scheme in runs if scheme != "serial"]
        self.speedup = {one: Ratio.of(times["serial"], times[one]) for one in others}
        self.hogwild_over = {one: Ratio.of(times[one], times["hogwild"]) for one in others[1:]}
        self.objective = {one: Ratio.of(ends(runs[one], self.counts), serial) for one in others}
        graph = Hypergraph(*problem.supports())
        self.rho, self.delta = graph.rho, graph.delta


def measure(findings, chosen):
    """Measure all schemes on all problems."""
    workers, measured = max(2, len(cores())), {}
    for name, problem in problems(tiny=chosen.tiny).items():
        own = configs(problem, workers, 2 if chosen.tiny else EPOCHS)
        if name in FIXED:
            own = {scheme: replace(one, lr=FIXED[name]) for scheme, one in own.items()}
        elif not chosen.tiny:
            known = settings("paper_tables", [f"{name}, {scheme}" for scheme in own])
            own = {k: replace(one, **known[f"{name}, {k}"]) for k, one in own.items()}
        arms = [Arm(scheme, one) for scheme, one in own.items()]
        runs = interleaved(findings, problem, arms, chosen.seeds, name=name)
        measured[name] = one = Measured(name, problem, runs)
        findings.table(row(name, scheme, own, one) for scheme, own in runs.items())
        text = f"{name}, {one.counts} of hogwild / serial's"
        findings.at_most(text, one.objective["hogwild"], NEAR, timing=False)
    compare(findings, measured, workers)
    findings.results |= {
        "speedup": {name: one.speedup for name, one in measured.items()},
        "rho, delta": {name: (one.rho, one.delta) for name, one in measured.items()},
    }


def row(name, scheme, results, one):
    """A row of the table."""
    published, at_end = PUBLISHED[name], results[0].measures
    errors = [at_end[key] for key in ("train_error", "test_error", "cut") if key in at_end]
    paper = dict(zip(("hogwild", "aig", "round_robin"), published.speedup, strict=True))
    return {
        "data": name,
        "scheme": scheme,
        "writes": published.lossless if scheme == "lossless" else results[0].write,
        "workers": results[0].workers,
        "lr": results[0].epochs[0].lr,
        **summary(results, "objective"),
        "objective / serial's": one.objective[scheme].spelt(".4f") if scheme != "serial" else "1",
        "speedup": one.speedup[scheme].spelt() if scheme != "serial" else "1",
        "paper, 10 threads": paper.get(scheme),
        "errors or cut": " / ".join(f"{error:.4g}" for error in errors),
        "paper's errors": published.error,
    }


def compare(findings, measured, workers):
    """The paper's claims beside this."""

    def faster(scheme, relation, limit):
        return [
            Claim.of(f"{name}, serial / {scheme}, seconds", one.speedup[scheme], relation, limit)
            for name, one in measured.items()
        ]

    def over(scheme, word):
        return [
            Claim.of(f"{name}, {word(name)}, seconds", one.hogwild_over[scheme], ">=", 1.0)
            for name, one in measured.items()
        ]

    findings.compare(
        f"Hogwild is faster than serial SGD on all of these problems (here {workers} workers).",
        *faster("hogwild", ">=", 1.0),
    )
    threefold = faster("hogwild", ">=", 3.0)
    of_two = ", ".join(one.measured for one in threefold)
    findings.compare(
        "3 to 9 times on 10 threads.", *(threefold if workers >= THREADS else []),
        measured=f"{workers} workers: {of_two} times",
    )  # fmt: skip
    findings.compare(
        "Hogwild outperforms a version with locks (AIG) everywhere.",
        *over("aig", lambda name: "aig / hogwild"),
    )
    findings.compare(
        "Hogwild without any lock outperforms our own writes that lose nothing.",
        *over("lossless", lambda name: f"{PUBLISHED[name].lossless} / racy"),
    )
    findings.compare(
        "Round-robin is slower than serial SGD where gradients are fast. (The paper: .4 to .6 "
        f"times on {THREADS} threads; here {workers} workers.)",
        *faster("round_robin", "<=", 1.0),
    )
    findings.compare(
        "Hogwild loses nothing: its errors are those of serial SGD.",
        *(
            counted(f"{name}, {one.counts} of hogwild / serial's", one.objective["hogwild"], "<=",
                    NEAR)
            for name, one in measured.items()
        ),
    )  # fmt: skip
    fitted = {name: one for name, one in measured.items() if name not in NO_STATISTICS}
    off = max(
        abs(math.log(getattr(one, number) / getattr(PUBLISHED[name], number)))
        for name, one in fitted.items()
        for number in ("rho", "delta")
    )
    text = ", ".join(f"{name} {one.rho:.4g} and {one.delta:.4g}" for name, one in fitted.items())
    findings.describe(
        "rho and Delta of the data: RCV1 .44 and 1 (printed the wrong way round, as rho is "
        "never below Delta), Netflix .0025 and .0023, DBLife .0086 and .0043.",
        f"The generated data was fitted to them: {text}, within a factor of {math.exp(off):.2f}.",
    )


def tuning():
    """Find the step size that ends lowest, for each problem and scheme, on data of another seed."""
    workers, arms = max(2, len(cores())), {}
    for name, problem in problems(tiny=False, seed=TUNED_ON).items():
        if name not in FIXED:
            own = configs(problem, workers, EPOCHS)
            arms |= {f"{name}, {scheme}": (problem, one) for scheme, one in own.items()}

    def loss(name, point):
        problem, config = arms[name]
        ended = [train(problem, replace(config, seed=seed, **point)) for seed in (TUNED_ON, 8)]
        return Mean.of(one.objective if one.status == "done" else math.inf for one in ended).value

    axes = {
        name: {"lr": around(problem.defaults.lr, 3.0, 5)} for name, (problem, _) in arms.items()
    }
    tune("paper_tables", axes, loss)


def main():
    """Measure, or search."""
    chosen = flags(__doc__, **MODES, tune="search the step sizes").parse_args()
    if chosen.tune:
        return tuning()
    return measured("paper_tables", chosen, measure, quiet=True, seeds=(5, 6))


if __name__ == "__main__":
    raise SystemExit(main())
