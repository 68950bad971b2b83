"""Speed of a search: parallel runs, their start, a step, rows, the scheduler.

    python benchmarks/mad_search.py                about ten minutes on two cores
    python benchmarks/mad_search.py --quick        fewer turns: about five minutes
    python benchmarks/mad_search.py --baseline     Test 3 at the benchmark's own sizes: hours
    python benchmarks/mad_search.py --only steps rows

    throughput   ten layer sequences, five epochs each: serial against two at once, in turns; the
                 accuracies of both; how soon a worker that is used again takes its first step
    steps        attention + swiglu at B 128, T 128, d 128 against `mad/reference.py`, the
                 reference's model and step in plain torch; one thread and two
    rows         of several tasks, generated in one process; of in-context recall against 20 times
                 the 3,500 rows per second of the reference's generator
    scheduler    a thousand trivial runs, while another process reads the store

What the layers learn, and in how many steps: python benchmarks/mad_oracles.py
"""

from __future__ import annotations

import tempfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from harness.claims import Findings, flags, measured
from mad import scheduler, step, throughput


def main() -> int:
    """Measure what the flags ask for."""
    parser = flags(__doc__, parts=PARTS, quick="fewer and shorter turns")
    parser.add_argument("--baseline", action="store_true", help="Test 3 at B 128, T 128, d 128")
    chosen = parser.parse_args()
    return measured("mad_search", chosen, measure, packages=("torch", "mlx"), quiet=True)


def measure(findings: Findings, chosen: Namespace) -> None:
    """Measure the parts."""
    findings.results["learnability"] = "python benchmarks/mad_oracles.py"
    with tempfile.TemporaryDirectory(prefix="mlxhog-mad-") as folder:
        for name in chosen.only or PARTS:
            print(f"\n{name}", flush=True)
            PARTS[name](findings, Path(folder), chosen)


def _throughput(findings: Findings, folder: Path, chosen: Namespace) -> None:
    rounds = 1 if chosen.quick or chosen.baseline else 2
    throughput.throughput(findings, folder, rounds=rounds, baseline=chosen.baseline)


def _steps(findings: Findings, folder: Path, chosen: Namespace) -> None:
    turns, seconds = (3, 1.0) if chosen.quick else (5, 3.0)
    step.steps(findings, turns=turns, seconds=seconds)


def _rows(findings: Findings, folder: Path, chosen: Namespace) -> None:
    step.rows(findings, turns=3 if chosen.quick else 5)


def _scheduler(findings: Findings, folder: Path, chosen: Namespace) -> None:
    scheduler.scheduler(findings, folder)


PARTS: dict[str, Callable[[Findings, Path, Namespace], None]] = {
    "steps": _steps,
    "rows": _rows,
    "scheduler": _scheduler,
    "throughput": _throughput,
}


if __name__ == "__main__":
    raise SystemExit(main())
