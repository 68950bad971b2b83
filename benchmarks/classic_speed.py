"""Classic problems: ours beside peers per core, two workers beside one, schemes beside schemes.

    python benchmarks/classic_speed.py            under ten minutes
    python benchmarks/classic_speed.py --quick    fewer turns; about a minute

The problems are those of `mlxhog classic svm` and `matrix-completion`, at their default steps, in
their native loops; evaluation, shuffling and spawning stay outside of the clock. All arms take
turns, and every ratio is between arms of one turn. A run in which others had a worker's core is
repeated, and so is a turn with too much of their load.
The 2011 program is no package: what stands here is its recorded ratio to scikit-learn.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

from classic import peers
from classic.workers import CORES, Run, Scheme, worker_pool
from harness.claims import Sample, flags, measured
from harness.estimates import Mean, Ratio
from harness.interleaved import quiet_turns
from harness.machine import LoadWatch, pin, smallest, unpin

from mlxhog.classic import problems
from mlxhog.classic.config import ClassicConfig

# Million entries a second on a quiet Zen 5 core, of one set, as the specification records them.
RECORDED = {"scikit-learn": 243.0, "2011, 1 worker": 147.0, "2011, 2 workers": 298.0}
AGAIN = "serial again"  # A/A
MOST_RUNS = 6  # of one arm in a turn, until others leave all workers their cores
LOSS_SHARE = 0.005  # of the serial loss

HOT, RACY, LOSSLESS = "hot_cold", "racy", "lossless"
SVM = {
    "serial": Scheme("private", 1),
    "active rows": Scheme("private", 1, variant="active"),
    "hot-cold 1": Scheme(HOT, 1),
    "racy 2": Scheme(RACY, 2),
    "hot-cold 2": Scheme(HOT, 2),
    "hot-cold 2, active rows": Scheme(HOT, 2, variant="active"),
    "lossless 2": Scheme(LOSSLESS, 2),
    "AIG 2": Scheme("aig", 2),
    "round-robin 2": Scheme("round_robin", 2, options={"ordered_reads": False}),
    "round-robin 2, ordered": Scheme("round_robin", 2),
}
COMPLETION = {
    "serial": Scheme("private", 1),
    "row locks 1": Scheme(LOSSLESS, 1),
    "racy 2": Scheme(RACY, 2),
    "row locks 2": Scheme(LOSSLESS, 2),
}


@dataclass(frozen=True)
class Turn:
    """One round through all arms: seconds of an epoch by arm, and runs of our own."""

    seconds: dict[str, float]
    runs: dict[str, Run]


def all_arms(pool, schemes, others, *, epochs, turns):
    """Rounds through all arms until enough were quiet; and the load that spoilt them, else 0."""

    def quiet_run(scheme):
        for _ in range(MOST_RUNS):
            run = pool.run(scheme, epochs)
            if not run.disturbed:
                break
        return run

    def turn(_):
        watch, cpu = LoadWatch(), pool.cpu_s()
        runs = {name: quiet_run(scheme) for name, scheme in schemes.items()}
        again = quiet_run(schemes["serial"])
        seconds = {name: run.seconds / epochs for name, run in runs.items()}
        seconds[AGAIN] = again.seconds / epochs
        seconds |= {name: peer(epochs) for name, peer in others.items()}
        load = watch.stop(pool.cpu_s() - cpu)
        disturbed = any(run.disturbed for run in (*runs.values(), again))
        return Turn(seconds, runs), max(load, 1.0) if disturbed else load

    rounds, load = quiet_turns(turns, ("all arms",), turn)
    return rounds["all arms"], load


def ratio(turns, slow, fast):
    """How many times the epoch of one arm takes the time of another's, turn by turn."""
    slow_s, fast_s = ([turn.seconds[arm] for turn in turns] for arm in (slow, fast))
    return Ratio.of(slow_s, fast_s)


def apart(turns, arm, measure):
    """Distance of an arm's measure from serial's, as a share of serial's."""
    return Mean.of(
        abs(turn.runs[arm].measures[measure] / turn.runs["serial"].measures[measure] - 1)
        for turn in turns
    )


def same(findings, problem, turns):
    """Add the A/A arm: the serial one, which runs twice in each turn."""
    own, again = ([turn.seconds[arm] for turn in turns] for arm in ("serial", AGAIN))
    findings.same(f"{problem}, serial, seconds", own, again)


def objectives(findings, problem, turns, *arms):
    """Claim that arms end where the serial one does."""
    for arm in arms:
        name = f"{problem}, {arm}: objective's distance from serial"
        findings.at_most(name, apart(turns, arm, "objective"), LOSS_SHARE, timing=False)


def show(turns, entries, unit):
    """Print millions of entries a second by arm."""
    rates = {
        arm: Sample.of([entries / turn.seconds[arm] / 1e6 for turn in turns])
        for arm in turns[0].seconds
    }
    print(f"\nmillion {unit} a second (median, range over {len(turns)} turns)")
    for arm, rate in rates.items():
        print(f"  {arm:28} {rate.spelt('.1f')}")
    return rates


# -- sparse SVM -----------------------------------------------------------------------------------


def sparse_svm(findings, *, turns, epochs, size):
    """Per core against the peers, scaling, schemes, losses; returns the load of others."""
    problem = problems.create("svm", ClassicConfig(size=size))
    active = problems.create("svm", ClassicConfig(size=size, active_rows=True))
    rows, lr = problem.train, problem.defaults.lr
    with ExitStack() as stack:
        pool = stack.enter_context(worker_pool(problem, {"active": active.kernel}, 2))
        others = {
            "scikit-learn": peers.scikit_learn(rows, lr),
            "torch, batch 64": peers.torch_shared(rows, lr),
            "vowpal wabbit": stack.enter_context(peers.vowpal_wabbit(rows, lr)),
        }
        rounds, load = all_arms(pool, SVM, others, epochs=epochs, turns=turns)
    same(findings, "svm", rounds)
    findings.results["svm_mnnz_per_s"] = show(rounds, len(rows.indices), "entries")
    per_core = ratio(rounds, "scikit-learn", "serial")
    pair = ratio(rounds, "scikit-learn", "hot-cold 2")
    findings.results["svm"] = {
        "about": problem.about,
        "turns": len(rounds),
        "epochs": epochs,
        "vs_vowpal_wabbit": ratio(rounds, "vowpal wabbit", "serial"),
        "vs_torch_active_rows": ratio(rounds, "torch, batch 64", "active rows"),
        "scaling_racy": ratio(rounds, "serial", "racy 2"),
        "speedup_hot_cold_over_serial": ratio(rounds, "serial", "hot-cold 2"),
        "vs_round_robin_ordered": ratio(rounds, "round-robin 2, ordered", "hot-cold 2"),
        "vs_lossless": ratio(rounds, "lossless 2", "hot-cold 2"),
        "vs_2011_by_recorded_ratios": {
            "1 worker": per_core.value * RECORDED["scikit-learn"] / RECORDED["2011, 1 worker"],
            "2 workers": pair.value * RECORDED["scikit-learn"] / RECORDED["2011, 2 workers"],
        },
        "measures": {arm: run.measures for arm, run in rounds[-1].runs.items()},
    }
    findings.at_least("svm, 1 worker / scikit-learn", per_core, 1.0)
    for name, slow, fast, limit in (
        ("active rows / scikit-learn", "scikit-learn", "active rows", 1.5),
        ("1 worker / torch", "torch, batch 64", "serial", 3.0),
        ("hot-cold, 2 workers / 1", "hot-cold 1", "hot-cold 2", 1.6),
        ("hot-cold / round-robin", "round-robin 2", "hot-cold 2", 1.3),
        ("hot-cold / AIG", "AIG 2", "hot-cold 2", 3.0),
    ):
        findings.at_least(f"svm, {name}", ratio(rounds, slow, fast), limit)
    objectives(findings, "svm", rounds, "hot-cold 2", "racy 2", "lossless 2", "AIG 2",
               "round-robin 2")  # fmt: skip
    return load


# -- matrix completion ----------------------------------------------------------------------------


def matrix_completion(findings, *, turns, epochs, size):
    """Scaling, row locks and losses at rank 16; returns the load of others."""
    rank = 16
    problem = problems.create("matrix-completion", ClassicConfig(size=size, rank=rank))
    with worker_pool(problem, {}, 2) as pool:
        others = {"implicit BPR": peers.implicit_bpr(problem.train, rank)}
        rounds, load = all_arms(pool, COMPLETION, others, epochs=epochs, turns=turns)
    same(findings, "completion", rounds)
    findings.results["completion_mratings_per_s"] = show(rounds, problem.n_examples, "ratings")
    findings.results["completion"] = {
        "about": problem.about,
        "turns": len(rounds),
        "epochs": epochs,
        "row_locks_scaling": ratio(rounds, "row locks 1", "row locks 2"),
        "vs_implicit_bpr": ratio(rounds, "implicit BPR", "serial"),
        "measures": {arm: run.measures for arm, run in rounds[-1].runs.items()},
    }
    scaling = ratio(rounds, "serial", "racy 2")
    findings.at_least("completion, racy, 2 workers / 1", scaling, 1.8)
    for workers, racy in (("1 worker", "serial"), ("2 workers", "racy 2")):
        slower = ratio(rounds, f"row locks {workers[0]}", racy)
        findings.at_most(f"completion, time of row locks / racy, {workers}", slower, 1.25)
    objectives(findings, "completion", rounds, "racy 2", "row locks 2")
    return load


def main():
    """Measure, compare, end with one JSON line."""
    parser = flags(__doc__, quick="fewer turns")
    parser.add_argument("--turns", type=int, help="quiet turns wanted of every arm")
    parser.add_argument("--size", type=int, help="rows and ratings to generate")
    packages = ("scikit-learn", "vowpalwabbit", "torch", "implicit")
    chosen = parser.parse_args()
    return measured("classic_speed", chosen, measure, packages=packages, quiet=True)


def measure(findings, chosen):
    """Both problems, on a core beside the workers' own."""
    turns = chosen.turns or (5 if chosen.quick else 15)
    size = smallest(2_000, chosen.size)
    pin(CORES[0])  # the peers run here, while the workers wait
    loads = [
        sparse_svm(findings, turns=turns, epochs=smallest(1, 10), size=size),
        matrix_completion(findings, turns=turns, epochs=smallest(1, 12), size=size),
    ]
    unpin(CORES)
    if len(CORES) < 2:
        loads.append(1.0)  # no pair can be timed
    findings.others_load = max(loads)


if __name__ == "__main__":
    raise SystemExit(main())
