"""Faults that `mlxhog parity judge` misses, false alarms, and kinds of faults guessed right.

    python benchmarks/conformance.py            every planted fault, 200 random cases: half an hour
    python benchmarks/conformance.py --quick    20 faults, 20 cases: minutes

A planted fault is one changed line in a copy of our operators (`tests/parity/implementations.py`):
of the float64 reference, or of the eager operators of PyTorch or MLX in float32. It computes every
case of its equations in the vectors, and some result has to depart. If it is of a kind that the
judge knows, the first guess has to name it.

Random cases have the vectors' equations, other sizes, lengths and seeds, and are judged as theirs.
Right programs are eager and native operators of both frameworks, in float32 and in mixed precision
(inputs and results in bfloat16, sums, gates and states in float32), and products of factors in
bfloat16, as of matrix units. No result of them may depart. In float32 a tenth of the cases are of
layers.
"""

import multiprocessing
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, nullcontext
from functools import cache

import numpy as np
from harness.estimates import Share
from harness.frame import run, say
from harness.machine import smallest

from mlxhog.conformance.vectors import faults
from mlxhog.conformance.vectors.cells import CELLS
from mlxhog.conformance.vectors.equations import DENORMAL, Kind
from mlxhog.conformance.vectors.export import make
from mlxhog.conformance.vectors.judge import judged
from mlxhog.conformance.vectors.layers import LAYERS
from mlxhog.models.ops.eager.ops_float64 import one_thread
from tests.parity.implementations import EVERY, FAULTS, computed, right_ops, rounded_factors

CASES, QUICK = 200, 20
PROGRAMS = [(backend, form) for backend in ("torch", "mlx") for form in ("eager", "native")]
UNITS = ("torch", "matrix units")
"""A program whose products have factors in bfloat16, as in kernels for matrix units."""
MIN_GUESSED = 0.8


def compared(case, ops, dtype="float32"):
    """The results of all checks of a case by some operators, judged."""
    checks = [check for check in EVERY if case.checks[check]]
    results = computed(case, ops, dtype, checks)
    return faults.Judged(case, results, judged(case, results, dtype, checks))


@cache
def cases(name):
    """Return the cases of some equations in the vectors."""
    return [make(CELLS[name], kind) for kind in smallest(["one"], CELLS[name].kinds)]


def find(fault):
    """Plant a fault; return what departed, and the guesses."""
    with one_thread():
        entries = [compared(case, fault.ops()) for case in cases(fault.equations)]
        departed = sum(len(entry.failed()) for entry in entries)
        row = {"equations": fault.equations, "backend": fault.backend}
        row |= {"line": fault.new.strip()[:100], "departed": departed, "kind": fault.kind}
        return row | {"guesses": [guess.kind for guess in faults.guesses(entries)]}


def drawn(number):
    """Return a random case; the number decides everything, every tenth is of a layer."""
    r = np.random.default_rng((number, 84))
    known = LAYERS if number % 10 == 9 else CELLS
    equations = known[str(r.choice(list(known)))]
    has_state = bool(r.random() < 0.6)
    sizes = {"B": r.integers(1, 4), "S": r.integers(1, 33), "H": r.integers(1, 4)}
    sizes |= {axis: r.integers(1, 17) for axis in "KVEN"}
    kind = Kind(
        about="drawn at random", sizes={axis: int(size) for axis, size in sizes.items()},
        state=has_state, carry=bool(r.random() < 0.5),
        resets=bool(r.random() < 0.4) and sizes["S"] > 1, large=bool(r.random() < 0.3),
        factor=float(r.choice([*[1.0] * 8, 0.0, DENORMAL])), share=0.5,
    )  # fmt: skip
    return make(equations, f"random-{number}", number, kind)


def examine(number):
    """Judge every right program on a random case.

    Returns:
        The largest error over tolerance by dtype, and a line for each program that failed.
    """
    with one_thread():
        case, nearest, failed = drawn(number), {}, []
        for dtype in [one for one in ("float32", "bfloat16") if one in case.tolerances]:
            if dtype == "bfloat16" and case.equations in LAYERS:
                continue
            for backend, form in [*PROGRAMS, *[UNITS] * (dtype == "bfloat16")]:
                with rounded_factors() if form == UNITS[1] else nullcontext():
                    ops = right_ops(backend, "native" if form == "native" else "eager")
                    rows = compared(case, ops, dtype).rows
                worst = max(rows, key=lambda row: row.tolerance_ratio)
                nearest[dtype] = max(nearest.get(dtype, 0.0), worst.tolerance_ratio)
                if not worst.ok:
                    by = f"{dtype} {backend} {form}"
                    failed.append(f"{by}: {worst.what}: {worst.tolerance_ratio:.2f}")
    return nearest, failed


def measure(findings, chosen):
    """Plant faults, then draw right cases until each dtype has had enough."""
    planted = smallest(FAULTS[:1], FAULTS[:: 3 if chosen.quick else 1])
    wanted = chosen.runs or smallest(1, QUICK if chosen.quick else CASES)
    with ExitStack() as stack:
        spread = map
        if chosen.jobs > 1:
            spawn = multiprocessing.get_context("spawn")
            spread = stack.enter_context(ProcessPoolExecutor(chosen.jobs, spawn)).map
        rows = []
        for row in spread(find, planted):
            rows.append(row)
            what = row["kind"] or "no known kind"
            say(f"{row['equations']}: {row['departed']} depart; {what}: {row['guesses']}")
        seen, alarms, nearest, number = Counter(), [], Counter(), 0
        while min(seen["float32"], seen["bfloat16"]) < wanted:
            for near, failed in spread(examine, range(number, number + chosen.jobs)):
                seen.update(near.keys())
                alarms += failed
                for dtype, ratio in near.items():
                    nearest[dtype] = max(nearest[dtype], ratio)
                say(f"{dict(seen)} right cases: {len(alarms)} false alarms; {'; '.join(failed)}")
            number += chosen.jobs
    missed = [row for row in rows if not row["departed"]]
    findings.exact("planted faults that are not found", len(missed), 0, n=len(rows))
    known = [row for row in rows if row["kind"]]
    guessed = sum(row["kind"] in "".join(row["guesses"][:1]) for row in known)
    findings.at_least("share of faults of known kinds whose kind is guessed",
                      Share.of(guessed, len(known)), MIN_GUESSED, timing=False)  # fmt: skip
    for dtype, n in seen.items():
        own = [alarm for alarm in alarms if alarm.startswith(dtype)]
        name = f"false alarms on right programs in {dtype}"
        findings.exact(name, len(own), 0, n=n * len([*PROGRAMS, *[UNITS] * (dtype == "bfloat16")]))
    findings.results |= {
        "faults": rows, "false_alarms": alarms, "cases": dict(seen),
        "nearest_to_failing": {dtype: round(ratio, 3) for dtype, ratio in nearest.items()},
    }  # fmt: skip


if __name__ == "__main__":
    run(
        __doc__, measure, modes={"quick": f"every third fault, {QUICK} cases"},
        options={
            "--runs": {"type": int, "help": f"random cases in each dtype [{CASES}]"},
            "--jobs": {"type": int, "default": 1, "help": "processes [1]"},
        },
        packages=("torch", "mlx"),
    )  # fmt: skip
