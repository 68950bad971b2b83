"""Compares every side of parity with what transformers and the xlstm package recorded.

    python -m tests.models.recorded tests/golden/xlstm/hf_a.safetensors

prints a line per disagreement and a verdict; exit code 1 if anything disagrees. Everything is
computed in this process.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from mlxhog.models import families
from mlxhog.models.spec import initial_value
from mlxhog.models.xlstm_v1 import XLSTMV1Config
from mlxhog.parity import compare, compute, tolerances
from mlxhog.parity.engines import NumPyEngine
from mlxhog.parity.subject import ModelPlan, ParitySide
from mlxhog.parity.tolerances import Tolerance
from tests.models import cases
from tests.models.cases import GREEDY, RECORDED

SIDES = (
    ParitySide("numpy", "numpy"),
    ParitySide("torch:cpu", "torch:cpu", "native"),
    ParitySide("torch:cpu+reference", "torch:cpu", "reference"),
    ParitySide("mlx:cpu", "mlx:cpu", "native"),
    ParitySide("mlx:cpu+reference", "mlx:cpu", "reference"),
)
RANDOM = ("normal", "uniform")
PARALLEL = tolerances.FLOAT64 | {
    kind: Tolerance(
        "two float64 programs, one with the parallel form of the cell, in which eps has another "
        "scale: up to 5e-7 of an output, before later layers",
        atol=1e-6,
        of_largest=2e-6,
    )
    for kind in ("hidden", "logits", "loss", "grad")
}
"""Tolerances for the v1 stack in float64, which the xlstm package runs with the parallel form."""


def compared(case, sides=SIDES):
    """Compute a case by every side, and compare all that was recorded."""
    plan, rows = case.plan, []
    conditions = _conditions(case)
    for side in sides:
        mine = dict(_results(case, side))
        for name, expected in case.recorded.items():
            exact = side.float64 and name.endswith("_f64")
            v1 = isinstance(plan, ModelPlan) and isinstance(plan.cfg, XLSTMV1Config)
            table = "parallel" if exact and v1 else "float64" if exact else "float32"
            tolerances.TABLES["parallel"] = PARALLEL
            rows += compare.tensor_rows(
                side.name,
                mine,
                name,
                expected,
                precision=table,
                start=case.inputs,
                conditions=conditions,
                pairs=_pairs(mine, expected, exact=exact),
            )
    return rows


def _pairs(mine, expected, *, exact):
    """Pairs of equal names, or of another form of a cell and the recurrent one.

    In the parallel form eps has another scale, which float64 can see.
    """
    forms = ("chunkwise/",) if exact else ("chunkwise/", "parallel/")

    def alike(name):
        form = next((form for form in forms if name.startswith(form)), "")
        return f"recurrent/{name.removeprefix(form)}" if form else name

    names = dict.fromkeys([*mine, *expected])
    pairs = (
        [name if name in results else alike(name) for results in (mine, expected)] for name in names
    )
    return [(a, b) for a, b in pairs if a in mine and b in expected]


def _results(case, side):
    plan, fixed = case.plan, case.fixed
    if not isinstance(plan, ModelPlan):
        if side.float64:
            yield from plan.reference(case.inputs, fixed)
        else:
            yield from plan.computed(compute.engine_of(side), case.inputs, fixed)
        return
    if side.float64:
        yield from compute.exact(plan, case.inputs, fixed, tokenwise=True)
    else:
        yield from compute.side_results(side, plan, case.inputs, fixed)
    if "greedy_prompt" in fixed:
        engine = NumPyEngine() if side.float64 else compute.engine_of(side)
        engine.load(plan.cfg, case.inputs)
        yield GREEDY, _greedy(engine, fixed["greedy_prompt"], case.greedy)
    for name, spec in families.param_spec(plan.cfg).items() if side.float64 else ():
        if spec.init.partition(":")[0] not in RANDOM:
            yield f"init/{name}", initial_value(spec, seed=0)


def _greedy(engine, prompt, count):
    """The `count` most likely next tokens, (B, count) int32."""
    ids = []
    token, state = prompt, None
    while len(ids) < count:
        one = engine.forward(token, state)
        state = one.state
        token = one.logits[:, -1:].argmax(-1).astype(np.int32)
        ids.append(token)
    return np.concatenate(ids, 1)


def _conditions(case):
    """How far the reference moves when its inputs are rounded once more, by result."""
    plan = case.plan

    def reference(inputs):
        if isinstance(plan, ModelPlan):
            return compute.exact(plan, inputs, case.fixed)
        return plan.reference(inputs, case.fixed)

    measured = dict(tolerances.measure(dict(reference(case.inputs)), case.inputs, reference))
    known = tolerances.split(measured)[1]
    for name, condition in dict(known).items():  # those of a cell, without its form
        known.setdefault(name.partition("/")[2], condition)
    return known


def unmet(case, rows):
    """Recorded results that no side computes."""
    met = {(row.b, row.against) for row in rows}
    return [
        f"{side} {name}"
        for side, results in case.recorded.items()
        for name in results
        if (side, name) not in met
    ]


def main():
    """Print the verdict for one case."""
    parser = argparse.ArgumentParser(prog="python -m tests.models.recorded", description=__doc__)
    parser.add_argument("case", type=Path, help="a .safetensors file with its .json beside it")
    case = cases.read(parser.parse_args().case)
    rows = compared(case)
    bad = [row for row in rows if not row.ok]
    for row in bad:
        print(f"{row.what}{list(row.where)}: {row.a} has {row.got}, {row.b} {row.wanted}")
    lacking = unmet(case, rows)
    for name in lacking:
        print(f"no side computes {name}")
    verdict = "FAILED" if bad or lacking else "agree"
    print(f"{case.title}: {len(rows) - len(bad)} of {len(rows)}, {verdict}")
    return int(bool(bad or lacking))


__all__ = ["RECORDED", "compared", "main", "unmet"]

if __name__ == "__main__":
    sys.exit(main())
