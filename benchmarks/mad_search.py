"""Speed of a search: a step, rows, the scheduler.

    python benchmarks/mad_search.py                a few minutes on two cores
    python benchmarks/mad_search.py --quick        fewer turns
    python benchmarks/mad_search.py --only steps rows

    steps        attention + swiglu at B 128, T 128, d 128 against `mad/reference.py`, the
                 reference's model and step in plain torch; one thread and two
    rows         rows of tasks, generated in one process, against 200k per second, or 20 times
                 those of the reference's generator
    scheduler    a thousand trivial runs, while another process reads the store

Ten layer sequences, serial against several at once: experiments/architecture_search.py. What the
layers learn, and in how many steps: mad_oracles.py.
"""

import tempfile
from pathlib import Path

from harness.claims import flags, measured
from mad import scheduler, step


def main():
    """Measure what the flags ask for."""
    parser = flags(__doc__, parts=PARTS, quick="fewer and shorter turns")
    chosen = parser.parse_args()
    return measured("mad_search", chosen, measure, packages=("torch", "mlx"), quiet=True)


def measure(findings, chosen):
    """Measure the parts."""
    findings.results["learnability"] = "python benchmarks/mad_oracles.py"
    with tempfile.TemporaryDirectory(prefix="mlxhog-mad-") as folder:
        for name in chosen.only or PARTS:
            print(f"\n{name}", flush=True)
            PARTS[name](findings, Path(folder), chosen)


def _steps(findings, folder, chosen):
    turns, seconds = (3, 1.0) if chosen.quick else (5, 3.0)
    step.steps(findings, turns=turns, seconds=seconds)


def _rows(findings, folder, chosen):
    step.rows(findings, turns=3 if chosen.quick else 5)


def _scheduler(findings, folder, chosen):
    scheduler.scheduler(findings, folder)


PARTS = {
    "steps": _steps,
    "rows": _rows,
    "scheduler": _scheduler,
}


if __name__ == "__main__":
    raise SystemExit(main())
