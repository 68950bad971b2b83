"""What a step costs a GPU worker: counts and ratios on this machine, none of a Mac's time.

    python benchmarks/gpu_step.py                    every part, about ten minutes
    python benchmarks/gpu_step.py --quick            fewer turns
    python benchmarks/gpu_step.py --only stripes     some of the parts: gradients, chunks, stripes

`before` is the commit that the parts changed (`harness/commits.py`), which the repository needs to
have. Steps take turns, each in a process of its own.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from typing import Any

from harness.claims import Findings, Mean, Sample, flags, measured
from harness.interleaved import Program, in_turns, once
from language_models.mlx_graphs import MLSTM, SLSTM

BEFORE = "2a3bab36b9c5a977fcff0975a5384f15df0c0ea4"
GRAPHS = "language_models.mlx_graphs"
STEP = {"name": "160m", "batch": 2, "seq": 256}
SHORT, LONG = 512, 2048
THREADS = 2


def counted(function: str, **options: Any) -> Any:
    """A count of `mlx_graphs`, from a process of its own."""
    return once(Program(GRAPHS, function, options, ("mlx.core",)), threads=1)


def gradients(findings: Findings, chosen: Namespace) -> None:
    """Gradients that leave MLX row-major: a step of 160m with the plain operators."""
    programs = {
        name: Program(GRAPHS, "step", {**STEP, "commit": commit}, ())
        for name, commit in (("before", BEFORE), ("after", None))
    }
    turns = in_turns(programs, threads=THREADS, turns=3 if chosen.quick else 7, seconds=0.0)
    seconds = {name: Sample.of(values) for name, values in turns.seconds.items()}
    findings.results["160m, S 256, B 2, seconds"] = seconds
    for name, sample in seconds.items():
        print(f"  160m, S 256, B 2, {THREADS} threads, {name}: {sample.spelt('.2f')} s")
    findings.at_least("160m: step before / after", turns.ratio("before", "after"), 1.5)
    copied = {c: counted("copied", **STEP, commit=c) for c in (BEFORE, None)}
    print(f"  gradients of a block that NumPy copies: {copied[BEFORE]} before")
    findings.exact("160m: gradients of a block that NumPy copies", copied[None], 0)


def chunks(findings: Findings, chosen: Namespace) -> None:
    """Backward passes that are linear in the number of chunks."""
    step = {c: counted("step_nodes", **STEP, commit=c) for c in (BEFORE, None)}
    print(f"  160m: dispatched nodes of a step: {step[BEFORE]} before")
    findings.at_most("160m: dispatched nodes of a step", step[None], 1500, timing=False)
    cell = {
        (c, seq): counted("cell_nodes", kind=MLSTM, seq=seq, commit=c)
        for c in (BEFORE, None)
        for seq in (256, LONG)
    }
    print(f"  mLSTM, 32 chunks: dispatched nodes forward: {cell[BEFORE, LONG]} before")
    more = cell[None, LONG] - cell[None, 256]
    findings.results["mLSTM, 32 chunks: nodes forward"] = cell[None, LONG]
    findings.exact("mLSTM: nodes of 32 chunks beyond those of 4", more, 0)
    for kind in (MLSTM, SLSTM):
        short, long = (
            counted("peak_per_position", kind=kind, seq=seq, commit=None) for seq in (SHORT, LONG)
        )
        name = f"{kind}: peak bytes of backward per position, S {LONG} / S {SHORT}"
        findings.at_most(name, long / short, 1.1, timing=False)


def stripes(findings: Findings, chosen: Namespace) -> None:
    """Norm, AdamW's step and read of 160m on the CPU: one thread against two, in pairs."""
    options = {"name": STEP["name"], "turns": 5 if chosen.quick else 15}
    program = Program("language_models.worker_side", "pairs", options, ("mlxhog.optim",))
    seconds: dict[str, list[list[float]]] = once(program, threads=THREADS)
    for name, (one, two) in seconds.items():
        ratios = [a / b for a, b in zip(one, two, strict=True)]
        ratio, mean = Sample.of(ratios), Mean.of(ratios)
        findings.results[f"160m, {name}: seconds by 1 and by 2 threads"] = [
            Sample.of(one), Sample.of(two),
        ]  # fmt: skip
        findings.results[f"160m, {name}: 95 % interval of the ratio"] = [mean.low, mean.high]
        print(
            f"  160m, {name}: {Sample.of(one).spelt('.4f')} s by one thread, "
            f"{Sample.of(two).spelt('.4f')} s by two; {ratio.spelt('.2f')} times as fast, "
            f"mean {mean.mean:.2f} ({mean.low:.2f} to {mean.high:.2f})"
        )
        if name == "all three":
            findings.at_least("160m: CPU side of a step, one thread / two", ratio.median, 1.8)


PARTS: dict[str, Callable[[Findings, Namespace], None]] = {
    "gradients": gradients,
    "chunks": chunks,
    "stripes": stripes,
}


def measure(findings: Findings, chosen: Namespace) -> None:
    """Every part that was asked for."""
    for name in chosen.only or PARTS:
        print(f"\n{PARTS[name].__doc__}")
        PARTS[name](findings, chosen)


def main() -> int:
    """Measure what the flags ask for."""
    chosen = flags(__doc__, parts=PARTS, quick="fewer turns").parse_args()
    return measured("gpu_step", chosen, measure, packages=("mlx", "torch"), quiet=True)


if __name__ == "__main__":
    raise SystemExit(main())
