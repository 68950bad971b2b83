"""State tracking beyond the training length: stacks with sLSTM hold it, the mLSTM does not.

    python benchmarks/state_tracking.py            three seeds
    python benchmarks/state_tracking.py --quick    one seed

Blocks of a mixer and swiglu are trained by suite `state` on rows of 40 elements, and scored at
every position of rows of 2,048 (`mlxhog/mad/tasks/automata.py`). Units of an sLSTM see each
other's past, so it keeps a running product at any length; the gates of the mLSTM see the present
token only, and are positive. Signed ones help with parity, whose products commute.

A run takes all of its steps: one that ends at its first evaluation without an error may still make
one at 2,048. A run that makes an error in the validation rows is repeated with half the learning
rate; the better one counts. The accuracies are those of the test rows, which decide nothing. Each
run has a process of its own with one thread; as many run at once as there are cores.
"""

from dataclasses import dataclass

from harness.frame import run, say
from harness.interleaved import on_cores
from harness.machine import smallest

from mlxhog.base.processes import environment, limits_of_threads
from mlxhog.mad.study.definition import StudyDefinition
from mlxhog.mad.tasks.automata import ORDERS
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

CASES = [("parity", stack) for stack in STACKS]
CASES += [("S3", stack) for stack in STACKS if "signed" not in stack]
RATES = (8e-3, 4e-3)
"""Learning rates, the suite's first."""

NEAR_CHANCE = 0.25
"""Highest scaled accuracy of the mLSTM at 1,025 to 2,048, of 0 at chance and 1 without an error."""


def measure(findings, chosen):
    """Train, print, claim."""
    seeds = range(chosen.seed, chosen.seed + (1 if chosen.quick else 3))
    jobs = [(*case, seed, chosen.backend) for case in CASES for seed in seeds]
    with environment(limits_of_threads(1)):
        runs = dict(zip(jobs, on_cores(trained, jobs), strict=True))
    for group, stack in CASES:
        own = [run for job, run in runs.items() if job[:2] == (group, stack)]
        lowest = [min(at) for at in zip(*(run.by_length for run in own), strict=True)]
        findings.table([
            {"group": group, "stack": stack, "lr": [run.lr for run in own],
             "solved at": [run.solved for run in own],
             "lowest accuracy by length": [f"{end} {accuracy:.3f}" for end, accuracy in lowest]}
        ])  # fmt: skip
        what = f"{group}, {stack}"
        if stack in EXACT:
            name = f"{what}: lowest accuracy of all lengths and seeds"
            findings.exact(name, min(accuracy for _, accuracy in lowest), 1.0)
        elif stack == MLSTM:
            best, chance = max(run.by_length[-1][1] for run in own), 1 / ORDERS[group]
            name = f"{what}: highest scaled accuracy of the seeds at the last length"
            findings.at_most(name, (best - chance) / (1 - chance), NEAR_CHANCE, timing=False)
    findings.seeds = tuple(seeds)
    findings.results |= {"backend": chosen.backend, "stacks": STACKS}


@dataclass(frozen=True)
class Best:
    """The better run of a stack, its learning rate, and when it was solved."""

    lr: float
    validated: float
    solved: int | None
    by_length: tuple[tuple[int, float], ...]


def trained(group, stack, seed, backend):
    """Train one stack on one group as suite `state` does, at the better of the learning rates."""
    layers, best = canonical(parse(STACKS[stack])), None
    whole = {"select": "val", "stop_accuracy": 2.0, **smallest({"steps": 2, "eval_every": 2}, {})}
    for lr in RATES:
        study = StudyDefinition(
            candidates=(layers,), suite="state", seeds=(seed,), rates=(lr,), workers=backend,
            recipe=whole,
        )  # fmt: skip
        (config,) = (run for run in study.runs(layers) if run.settings.get("group") == group)
        run = train(config)
        if best is None or run.val_token > best.validated:
            best = Best(lr, run.val_token, run.solved, tuple(map(tuple, run.by_length)))
        if run.val_token == 1.0:
            break
    say(f"{group:7} {stack:23} seed {seed}: lr {best.lr:g}, solved at {best.solved}")
    return best


if __name__ == "__main__":
    run(
        __doc__, measure, modes={"quick": "one seed"},
        options={
            "--backend": {"default": "torch:cpu", "choices": ("torch:cpu", "mlx:cpu")},
            "--seed": {"type": int, "default": 0, "help": "the first of them"},
        },
        packages=("torch", "mlx"),
    )  # fmt: skip
