"""Sixteen workers and a parameter server: how stale gradients are, and learning rates by delay.

    python benchmarks/late_gradients.py          up to four workers
    python benchmarks/late_gradients.py --full   up to sixteen

The mean staleness of P workers that never wait, lock-free and with a server, with equal workers and
with a straggler; and what staleness-aware learning rates do to the loss where every gradient is P -
1 updates late (simulated, one process). Such a rule makes steps smaller, so each has its own best
learning rate by a run of another seed, and so has plain lr.
"""

from harness.claims import counted
from harness.estimates import Mean
from harness.frame import other_seed, run
from harness.interleaved import take_turns
from harness.tuning import around, tuned
from training.recording import MINI, SIZES, TINY, Bench, workers

RULES = {"lr": {}, **{rule: {"staleness_lr": rule} for rule in ("linear:0.5", "exp:0.9")}}
RATE, TUNED_ON = 3e-3, 101
NEAR, QUICK_NEAR = 0.02, 0.1
"""Share of P - 1 by which a mean may differ; in short runs the first gradients, which find fewer
workers at work, count for more."""
TIE = 0.02  # bits per byte that a rule must gain
SLOW = "0=4"


def cells(chosen):
    """What staleness is measured of: the most workers by a server, lock-free, and with a slow."""
    most = chosen.pick(tiny=2, quick=4, full=16)
    return [("async_ps", most, None), ("hogwild", most, None), ("hogwild", most, SLOW)]


def measure(findings, chosen):
    """Measure the staleness of real workers, then losses at a simulated one."""
    sizes = chosen.pick(tiny=TINY, quick=SIZES, full=MINI)
    bench = Bench(sizes, seq_len=chosen.pick(tiny=32, quick=256, full=128), looks=2)
    late = take_turns(chosen.seeds, cells(chosen), lambda *one: staleness(chosen, bench, *one))
    count, near = cells(chosen)[-1][1], QUICK_NEAR if chosen.quick else NEAR
    findings.table(
        {"workers": n, "strategy": strategy, "inject_stragglers": slow,
         "mean": Mean.of(one.staleness for one in own).spelt()}
        for (strategy, n, slow), own in late.items()
    )  # fmt: skip
    for (strategy, n, slow), own in late.items():
        name = f"mean staleness / (P - 1), {strategy}, {n} workers" + (", one slow" if slow else "")
        share = Mean.of(one.staleness / (n - 1) for one in own)
        findings.within(name, share, 1 - near, 1 + near, timing=False)
    half, equal = (count - 1) / 2, late["hogwild", count, None]
    findings.document(
        counted("mean staleness / ((P - 1)/2)", Mean.of(one.staleness / half for one in equal),
                "within", 1 + near, least=1 - near),
    )  # fmt: skip
    by_rule(findings, chosen, bench, count - 1)
    findings.results["staleness"] = {
        f"{strategy}, {n}{', one slow' if slow else ''}": [one.staleness for one in own]
        for (strategy, n, slow), own in late.items()
    }


def staleness(chosen, bench, cell, seed):
    """A training of real workers, with equally many gradients of each."""
    strategy, count, slow = cell
    each = chosen.pick(tiny=10, quick=50, full=max(120, 1600 // count))
    plain = {"predict": "none"} if strategy == "hogwild" else {}  # the server predicts nothing
    return bench.train(
        f"{strategy}, {count} workers" + (", one slow" if slow else ""), seed=seed,
        tokens=each * count * bench.per_step, lr=1e-4, strategy=strategy, inject_stragglers=slow,
        workers=workers(count, "mlx:cpu"), max_workers=count, **plain,
    )  # fmt: skip


def by_rule(findings, chosen, bench, late):
    """Trainings of every rule and of one serial worker, each at its best learning rate."""
    tokens = chosen.pick(tiny=1_500, quick=25_000, full=60_000)
    simulated = {"strategy": "sim", "sim_staleness": f"fixed:{late}"}
    arms = {name: {**simulated, **rule} for name, rule in RULES.items()}
    arms["serial"] = {"strategy": "serial", "predict": "none"}

    def end(name, lr, seed):
        common = {"workers": "mlx:cpu", "tokens": tokens, "lr": lr}
        return bench.train(f"{name}, lr {lr:g}", seed=seed, **common, **arms[name]).end

    axes = {"lr": around(RATE, 2.0, chosen.pick(tiny=1, quick=7, full=7))}
    rates = {
        name: tuned(axes, lambda point, name=name: end(name, point["lr"], TUNED_ON))["lr"]
        for name in arms
    }
    bits = take_turns(chosen.seeds, arms, lambda name, seed: end(name, rates[name], seed))
    again = [end("lr", rates["lr"], other_seed(seed)) for seed in chosen.seeds]
    findings.same("lr", bits["lr"], again)
    findings.table(
        {"rule": name, "lr": rates[name], "bits per byte": Mean.of(own).spelt(".3f")}
        for name, own in bits.items()
    )
    findings.document(*(
        counted(f"bits per byte of {name} less those of plain lr",
                Mean.of_differences(bits[name], bits["lr"]), "<=", -TIE)
        for name in list(RULES)[1:]
    ))  # fmt: skip
    findings.results["bits by rule"] = bits


if __name__ == "__main__":
    run(__doc__, measure, packages=("mlx",), seeds=(3, 5))
