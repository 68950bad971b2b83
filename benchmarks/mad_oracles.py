"""Small candidates on tasks that they should learn: mLSTM on five tasks, on both backends.

    python benchmarks/mad_oracles.py                    three seeds, about a minute
    python benchmarks/mad_oracles.py --seeds 1

Each oracle is one setting of suite `smoke`, `recall` or `knowledge` (width 64, four layers
`mlstm swiglu mlstm swiglu`, AdamW with a constant step size of 2e-3, clipped at 1) that has to
answer 0.99 of the scored test positions within a number of steps; the median of the seeds counts.
Beside it stands what the best constant answer would reach. As many runs at once as there are cores,
with one thread each.
"""

from __future__ import annotations

from argparse import Namespace
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Any

from harness.claims import Findings, Sample, flags, measured
from harness.machine import cores, smallest

from mlxhog.machine.processes import thread_limits
from mlxhog.mad.run import RunConfig, RunResult
from mlxhog.mad.suites import expand, only, suite
from mlxhog.mad.tasks.dataset import unigram
from mlxhog.mad.training.candidate import train
from mlxhog.mad.training.run_plan import make_run_plan
from mlxhog.models.mad.sequence import parse

BACKENDS = ("torch:cpu", "mlx:cpu")
LAYERS = "mlstm swiglu mlstm swiglu"  # the mLSTM has its causal convolution
SOLVED = 0.99
LOOK_EVERY = 10


@dataclass(frozen=True)
class Oracle:
    """A task that has to be learnt, and the steps within which the median seed has to."""

    task: str
    within: int
    suite: str = "smoke"
    label: str = "baseline"


ORACLES = (
    Oracle("in-context-recall", 300),
    Oracle("memorization", 200),
    Oracle("selective-copying", 600),
    Oracle("depo", 400, "knowledge", "hops=1"),
    Oracle("mano", 200, "knowledge", "operations=1"),
    Oracle("multi-query-associative-recall", 300, "recall", "n_pairs=4, dim=64"),
    Oracle("selective-grammar", 300, "recall", "gap_prob=0.0"),
)


def configured(
    oracle: Oracle, backend: str, seed: int, *, look_every: int = LOOK_EVERY
) -> RunConfig:
    """The run of an oracle, which ends as soon as it passes."""
    chosen = only(suite(oracle.suite), [oracle.task])
    settings = tuple(one for one in chosen.settings if one.label == oracle.label)
    runs = expand(
        replace(chosen, settings=settings),
        parse(LAYERS),
        [seed],
        workers=backend,
        protocol={
            "steps": smallest(
                2, 2 * oracle.within
            ),  # one seed may take longer than the median has to
            "eval_every": smallest(2, look_every),
            "stop_accuracy": SOLVED,
        },
    )
    return next(runs)


def trained(oracle: Oracle, backend: str, seed: int) -> tuple[RunResult, float]:
    """The run of one seed, and the accuracy of the best constant answer."""
    config = configured(oracle, backend, seed)
    result = train(config)
    return replace(result, curve=()), unigram(make_run_plan(config).task_rows.dataset())


def measure(findings: Findings, chosen: Namespace) -> None:
    """Train every oracle on both backends, and say whether all pass in time."""
    seeds = range(chosen.seed, chosen.seed + smallest(1, chosen.seeds))
    with (
        thread_limits(1),
        ProcessPoolExecutor(len(cores()), mp_context=get_context("spawn")) as pool,
    ):
        waiting = {
            (oracle, backend): [pool.submit(trained, oracle, backend, seed) for seed in seeds]
            for backend in BACKENDS
            for oracle in ORACLES
        }
        rows = []
        for (oracle, backend), futures in waiting.items():
            runs_done = [future.result() for future in futures]
            rows.append(row(oracle, backend, runs_done))
            steps = Sample.of([row_steps(result) for result, _ in runs_done])
            what = f"{backend} {oracle.task}: median steps to {SOLVED}"
            findings.at_most(what, steps.median, oracle.within, timing=False)
    print(f"\n{'':10} {'task':20} {'steps to pass':>16} {'accuracy':>9} {'constant':>9}")
    for line in rows:
        steps = line["steps"]
        print(
            f"{line['backend']:10} {line['task']:20} {steps.spelt('.0f'):>16} "
            f"{line['acc_token']:9.3f} {line['chance']:9.3f}"
        )
    findings.results |= {"layers": LAYERS, "seeds": list(seeds), "oracles": rows}


def main() -> int:
    """Read the flags, and measure."""
    parser = flags(__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each oracle")
    parser.add_argument("--seed", type=int, default=0, help="the first of them")
    return measured("mad_oracles", parser.parse_args(), measure, packages=("torch", "mlx"))


def row_steps(result: RunResult) -> float:
    """Steps until it passed; infinite where it did not."""
    return result.steps if result.acc_token >= SOLVED else float("inf")


def row(oracle: Oracle, backend: str, outcomes: list[tuple[RunResult, float]]) -> dict[str, Any]:
    """What the table and the JSON line say of an oracle."""
    return {
        "task": oracle.task,
        "backend": backend,
        "within": oracle.within,
        "steps": Sample.of([row_steps(result) for result, _ in outcomes]),
        "seconds": Sample.of([result.seconds for result, _ in outcomes]),
        "acc_token": min(result.acc_token for result, _ in outcomes),
        "chance": sum(chance for _, chance in outcomes) / len(outcomes),
    }


if __name__ == "__main__":
    raise SystemExit(main())
