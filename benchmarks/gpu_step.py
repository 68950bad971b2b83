"""What a step costs a GPU worker: counts and ratios on this machine, none of a Mac's time.

    python benchmarks/gpu_step.py                    every part, about twenty minutes
    python benchmarks/gpu_step.py --quick            fewer turns, and no emulated processor
    python benchmarks/gpu_step.py --only gradients   some of the parts

`before` is the commit that the parts changed (`harness/commits.py`), which the repository needs to
have. Steps take turns, each in a process of its own. What this machine lacks a tool for is not
measured, and says so.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from harness.claims import Findings, Sample, flags, measured
from harness.estimates import Ratio
from harness.interleaved import Program, in_turns, once
from harness.machine import ROOT, smallest
from language_models.directions import BESIDE_OURS, DRAWN, GRADED
from language_models.mlx_graphs import MLSTM, SLSTM

from mlxhog.metal.registry import KERNELS
from mlxhog.optim.muon import ORTHOGONALIZATIONS

BEFORE = "2a3bab36b9c5a977fcff0975a5384f15df0c0ea4"
GRAPHS = "language_models.mlx_graphs"
STEP = {"name": "160m", "batch": 2, "seq": 256}
SHORT, LONG = 512, 2048
THREADS = 2
TOUCHED = ROOT / "tests" / "metal" / "kernels" / "traffic.json"
LINES_BEFORE, BYTES_BEFORE = 31.48, 1_882_666
"""Of the sLSTM's forward and the mLSTM's backward kernels before, counted in the same way."""


def step_size() -> dict[str, Any]:
    """The step that is measured."""
    return smallest({"name": "tiny", "batch": 1, "seq": 64}, STEP)


def before() -> str | None:
    """The commit that this one is compared with; this one itself with `--tiny`."""
    return smallest(None, BEFORE)


def counted(function: str, **options: Any) -> Any:
    """A count of `mlx_graphs`, from a process of its own."""
    return once(Program(GRAPHS, function, options, ("mlx.core",)), threads=1)


def gradients(findings: Findings, chosen: Namespace) -> None:
    """Gradients that leave MLX row-major: a step of 160m with the plain operators."""
    programs = {
        name: Program(GRAPHS, "step", {**step_size(), "commit": commit}, ())
        for name, commit in (("before", before()), ("after", None))
    }
    turns = in_turns(programs, threads=THREADS, turns=3 if chosen.quick else 7, seconds=0.0)
    seconds = {name: Sample.of(values) for name, values in turns.seconds.items()}
    findings.same("160m: step before, seconds", turns.seconds["before"], turns.again)
    findings.results["160m, S 256, B 2, seconds"] = seconds
    for name, sample in seconds.items():
        print(f"  160m, S 256, B 2, {THREADS} threads, {name}: {sample.spelt('.2f')} s")
    findings.at_least("160m: step before / after", turns.ratio("before", "after"), 1.5)
    copied = {c: counted("copied", **step_size(), commit=c) for c in (before(), None)}
    print(f"  gradients of a block that NumPy copies: {copied[before()]} before")
    findings.exact("160m: gradients of a block that NumPy copies", copied[None], 0)


def chunks(findings: Findings, chosen: Namespace) -> None:
    """Backward passes that are linear in the number of chunks."""
    for gpu, where in ((False, "of a CPU"), (True, "of a GPU")):
        step = {
            c: counted("step_nodes", **step_size(), commit=c, gpu=gpu) for c in (before(), None)
        }
        name = f"160m: dispatched nodes of a step, with the norms {where}"
        findings.results[name] = step[None]
        print(f"  {name}: {step[before()]} before, {step[None]} now")
    findings.at_most(name, step[None], 1500, timing=False)
    cell = {
        (c, seq): counted("cell_nodes", kind=MLSTM, seq=seq, commit=c)
        for c in (before(), None)
        for seq in (256, LONG)
    }
    print(f"  mLSTM, 32 chunks: dispatched nodes forward: {cell[before(), LONG]} before")
    more = cell[None, LONG] - cell[None, 256]
    findings.results["mLSTM, 32 chunks: nodes forward"] = cell[None, LONG]
    findings.exact("mLSTM: nodes of 32 chunks beyond those of 4", more, 0)
    for kind in (MLSTM, SLSTM):
        short, long = (
            counted("peak_per_position", kind=kind, seq=seq, commit=None) for seq in (SHORT, LONG)
        )
        name = f"{kind}: peak bytes of backward per position, S {LONG} / S {SHORT}"
        findings.at_most(name, long / short, 1.1, timing=False)


def muon(findings: Findings, chosen: Namespace) -> None:
    """Muon beside a GPU of 0.03 s per gradient: counted operations over rates (docs/apple.md)."""
    from tools.muon_counts import cpu_share

    for product in ("our own product", "Accelerate"):
        print(f"  10m: the CPU's share of a step with {product}: {cpu_share('10m', product):.0%}")
    share = cpu_share("10m", None)
    findings.at_most("10m: the CPU's share of a Muon step", share, 0.2, timing=False)


def polar(findings: Findings, chosen: Namespace) -> None:
    """Muon's directions by a worker's framework: beside ours, and both beside float64."""
    from tests.tolerances import POLAR_DEVICE_F32, POLAR_GRADED_F32

    for backend in ("mlx:cpu", "torch:cpu"):
        for method in list(ORTHOGONALIZATIONS)[: smallest(1, None)]:
            for kind in (DRAWN, GRADED):
                options = {"backend": backend, "method": method, "kind": kind}
                off = once(Program("language_models.directions", "apart", options, ()), threads=1)
                name = f"{backend}, {method}, {kind} matrices"
                findings.results[f"directions of {name}"] = off
                print(f"  {name}:", ", ".join(f"{pair} {x:.1e}" for pair, x in off.items()))
                if kind == DRAWN:
                    most = POLAR_DEVICE_F32.atol
                    findings.at_most(f"{name}: beside ours", off[BESIDE_OURS], most, timing=False)
                else:
                    worst = max(off["ours"], off["device"])
                    most = POLAR_GRADED_F32[method].of_largest
                    findings.at_most(f"{name}: beside float64", worst, most, timing=False)


def metal(findings: Findings, chosen: Namespace) -> None:
    """What Metal kernels move, of updates and of cells; `tests/metal/kernels` counts both."""
    for kernel, most in (("adam_apply", 28.1), ("momentum_apply", 20.1), ("muon_direction", 16.1)):
        moved = KERNELS[kernel].bytes_per_element
        findings.at_most(f"{kernel}: bytes per parameter", moved, most, timing=False)
    touched = json.loads(TOUCHED.read_text())
    forward = touched["slstm_forward"]
    lines = forward["line_bytes"] / 128 / forward["accesses"]
    backward = [numbers for name, numbers in touched.items() if name.startswith("mlstm_bwd_")]
    loaded = sum(numbers["loaded"] + numbers["stored"] for numbers in backward)
    print(f"  sLSTM forward, DH 192: {LINES_BEFORE} lines of an access before, {lines:.2f} now")
    name = "sLSTM forward: cache lines of an access, before / now"
    findings.at_least(name, LINES_BEFORE / lines, 8, timing=False)
    print(f"  mLSTM backward, 128 x 256: {BYTES_BEFORE:,} bytes before, {loaded:,.0f} now")
    name = "mLSTM backward: bytes loaded and stored for a position, before / now"
    findings.at_least(name, BYTES_BEFORE / loaded, 4, timing=False)


def stores(findings: Findings, chosen: Namespace) -> None:
    """Stores in the product loops of gemm and few_rows, in the assembly for an M1."""
    suite(findings, "stores in product loops for apple_m1", "tests/arm64/test_assembly.py")


def arm64(findings: Findings, chosen: Namespace) -> None:
    """All native operators as arm64's instructions, which qemu runs; not with --quick."""
    if not chosen.quick:
        suite(findings, "native operators under qemu", "tests/arm64/test_qemu.py")


def kernels(findings: Findings, chosen: Namespace) -> None:
    """Metal kernels beside NumPy, and what chaotic scheduling makes them lose."""
    suite(findings, "Metal kernels in the shim", "tests/metal/kernels")


def suite(findings: Findings, name: str, path: str) -> None:
    """Run tests: none may fail, and if all are skipped, the reason is the result."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        command += [f"--junitxml={report}", path, *smallest(["--collect-only"], [])]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if not report.exists():
            raise SystemExit(f"{name}: pytest wrote no report: {ended.stderr.strip()[-500:]}")
        cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    skipped = [reason for case in cases if (reason := case.find("skipped")) is not None]
    bad = [c for c in cases if c.find("failure") is not None or c.find("error") is not None]
    if len(skipped) == len(cases) and skipped:
        not_measured(findings, name, str(skipped[0].get("message")))
        return
    print(f"  {name}: {len(cases) - len(skipped)} tests run, {len(skipped)} skipped")
    findings.exact(f"{name}: tests that fail", len(bad) if cases else float("nan"), 0)


def not_measured(findings: Findings, name: str, why: str) -> None:
    """Say why there is no number."""
    findings.results[name] = why
    print(f"  {name}: {why}")


def stripes(findings: Findings, chosen: Namespace) -> None:
    """Norm, AdamW's step and read of 160m on the CPU: one thread against two, in pairs."""
    options = {"name": step_size()["name"], "turns": 5 if chosen.quick else 15}
    program = Program("language_models.worker_side", "pairs", options, ("mlxhog.optim",))
    seconds: dict[str, list[list[float]]] = once(program, threads=THREADS)
    for name, (one, two) in seconds.items():
        ratio = Ratio.of(one, two)
        findings.results[f"160m, {name}: seconds by 1 and by 2 threads"] = [
            Sample.of(one), Sample.of(two),
        ]  # fmt: skip
        findings.results[f"160m, {name}: one thread / two"] = ratio
        print(
            f"  160m, {name}: {Sample.of(one).spelt('.4f')} s by one thread, "
            f"{Sample.of(two).spelt('.4f')} s by two; {ratio} times as fast"
        )
        if name == "all three":
            findings.at_least("160m: CPU side of a step, one thread / two", ratio, 1.8)


PARTS: dict[str, Callable[[Findings, Namespace], None]] = {
    "gradients": gradients,
    "chunks": chunks,
    "muon": muon,
    "polar": polar,
    "metal": metal,
    "stores": stores,
    "arm64": arm64,
    "kernels": kernels,
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
