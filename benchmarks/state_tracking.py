"""State tracking beyond the training length: stacks with sLSTM hold it, the mLSTM does not.

    python benchmarks/state_tracking.py            three seeds
    python benchmarks/state_tracking.py --quick    one seed

Blocks of a mixer and swiglu are trained by suite `state` on rows of 40 elements, and scored at
every position of rows of 2,048 (`mlxhog/mad/tasks/state_tracking.py`). Units of an sLSTM see each
other's past, so it keeps a running product at any length; the gates of the mLSTM see the present
token only, and are positive. Signed ones help with parity, whose products commute.

A run takes all of its steps: one that ends at its first evaluation without an error may still make
one at 2,048. A run that makes an error in the validation rows is repeated with half the step size;
the better one counts. The accuracies are those of the test rows, which decide nothing. Each run has
a process of its own with one thread; as many run at once as there are cores.
"""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

from harness.frame import flags, measured
from harness.machine import cores, smallest

from mlxhog.base.processes import environment, limits_of_threads
from mlxhog.mad.run import RunRecord
from mlxhog.mad.study.study import Study
from mlxhog.mad.tasks.state_tracking import ORDERS
from mlxhog.mad.training.candidate import train
from mlxhog.models.mad.sequence import canonical, parse

SLSTM = "slstm(heads=1,bias_init=powerlaw,recurrent_init=uniform)"
STACKS = {
    "[sLSTM]": f"{SLSTM} swiglu",
    "[sLSTM, sLSTM]": f"{SLSTM} swiglu {SLSTM} swiglu",
    "[mLSTM, sLSTM]": f"mlstm swiglu {SLSTM} swiglu",
    "[mLSTM, mLSTM]": "mlstm swiglu mlstm swiglu",
    "[mLSTM, mLSTM], signed": "mlstm(signed=true) swiglu mlstm(signed=true) swiglu",
}
EXACT, MLSTM = ("[sLSTM]", "[mLSTM, sLSTM]"), "[mLSTM, mLSTM]"
"""Stacks that have to make no error, and the one that has to fail."""

CASES = (
    *(("parity", stack) for stack in STACKS),
    *(("S3", stack) for stack in STACKS if "signed" not in stack),
)
RATES = (8e-3, 4e-3)
"""Step sizes, the suite's first."""

NEAR_CHANCE = 0.25
"""Highest scaled accuracy of the mLSTM at 1,025 to 2,048, of 0 at chance and 1 without an error."""

Trained = tuple[float, RunRecord]
"""The step size, and the result."""


def main():
    """Train the stacks, and say whether those with sLSTM make no error."""
    parser = flags(__doc__, quick="one seed")
    parser.add_argument("--backend", default="torch:cpu", choices=("torch:cpu", "mlx:cpu"))
    parser.add_argument("--seed", type=int, default=0, help="the first of them")
    return measured("state_tracking", parser.parse_args(), measure, packages=("torch", "mlx"))


def measure(findings, chosen):
    """Train, print, claim."""
    seeds = range(chosen.seed, chosen.seed + (1 if chosen.quick else 3))
    with (
        environment(limits_of_threads(1)),
        ProcessPoolExecutor(len(cores()), mp_context=get_context("spawn")) as pool,
    ):
        waiting = {
            case: [pool.submit(trained, *case, seed, chosen.backend) for seed in seeds]
            for case in CASES
        }
        outcomes = {at: [one.result() for one in futures] for at, futures in waiting.items()}
    show(outcomes)
    claim(findings, outcomes)
    findings.results |= {
        "seeds": list(seeds),
        "backend": chosen.backend,
        "stacks": STACKS,
        "runs": [
            {
                "group": group,
                "stack": stack,
                "lr": [lr for lr, _ in seeds_of],
                "solved": [result.solved for _, result in seeds_of],
                "seconds": [round(result.seconds, 1) for _, result in seeds_of],
                "by_length": [result.by_length for _, result in seeds_of],
            }
            for (group, stack), seeds_of in outcomes.items()
        ],
    }


def trained(group, stack, seed, backend):
    """Train one stack on one group as suite `state` does, at the better of the step sizes."""
    layers = canonical(parse(STACKS[stack]))
    whole = {"select": "val", "stop_accuracy": 2.0, **smallest({"steps": 2, "eval_every": 2}, {})}
    best = None
    for lr in RATES:
        study = Study(
            candidates=(layers,), suite="state", seeds=(seed,), rates=(lr,), workers=backend,
            protocol=whole,
        )  # fmt: skip
        (config,) = (run for run in study.runs(layers) if run.settings.get("group") == group)
        result = replace(train(config), curve=())
        if best is None or validated(result) > validated(best[1]):
            best = lr, result
        if validated(result) == 1.0:
            break
    assert best is not None
    solved = f"solved at step {best[1].solved}" if best[1].solved else "not solved"
    print(f"{group:7} {stack:23} seed {seed}: lr {best[0]:g}, {solved}", flush=True)
    return best


def validated(result):
    """Accuracy of the validation rows."""
    assert result.val_token is not None
    return result.val_token


def show(outcomes):
    """Print the lowest accuracy of the seeds by length, and when each seed was solved."""
    lengths = [end for end, _ in next(iter(outcomes.values()))[0][1].by_length]
    print("\nlowest accuracy of the seeds, by length; step at which each seed was solved")
    print(" " * 32 + "".join(f"{end:>7}" for end in lengths))
    for (group, stack), seeds in outcomes.items():
        lowest = "".join(f"{accuracy:7.3f}" for accuracy in by_length(seeds).values())
        solved = ", ".join(f"{result.solved or '-'} at {lr:g}" for lr, result in seeds)
        print(f"{group:7} {stack:24}{lowest}   {solved}")


def by_length(seeds):
    """Return the lowest accuracy of some runs at each length."""
    parts = zip(*(result.by_length for _, result in seeds), strict=True)
    return {part[0][0]: min(accuracy for _, accuracy in part) for part in parts}


def claim(findings, outcomes):
    """Claim that one block and a mixed stack make no error at any length, and that mLSTM fails."""
    for (group, stack), seeds in outcomes.items():
        lowest = by_length(seeds)
        if stack in EXACT:
            what = f"{group}, {stack}: lowest accuracy of all lengths and seeds"
            findings.exact(what, min(lowest.values()), 1.0)
        elif stack == MLSTM:
            best = max(result.by_length[-1][1] for _, result in seeds)
            chance = 1 / ORDERS[group]
            what = f"{group}, {stack}: highest scaled accuracy of the seeds at the last length"
            findings.at_most(what, (best - chance) / (1 - chance), NEAR_CHANCE, timing=False)


if __name__ == "__main__":
    raise SystemExit(main())
