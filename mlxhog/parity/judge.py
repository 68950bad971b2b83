"""Who is compared with whom.

every side                  with the reference, NumPy where it runs
every side                  with whatever was recorded
an MLX side                 with the PyTorch side of the same kernels
every side                  with PyTorch's plain kernels, in what the reference does not compute
every side, step by step    with itself, over the whole sequence
every side's optimizers     with their formulas, on that side's gradients
every side's operators      with the reference where it is NumPy, in units in the last place
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from mlxhog.machine.workers import GPU_BACKENDS
from mlxhog.models.xlstm_v1 import XLSTMV1Config
from mlxhog.parity import compare
from mlxhog.parity.compare import Row
from mlxhog.parity.sides import NUMPY, Side
from mlxhog.parity.subject import ModelPlan, Results, Subject

PLAIN = "torch:cpu+reference"
STEPWISE = "stepwise/"
ELSEWHERE = ("operator/", "step/")
"""What stands before names of results that have comparisons of their own."""
WHOLE = ("", "recurrent/", "sequence/")
"""What stands before a name of the whole sequence: of a model, of either cell."""


def rows(
    subject: Subject,
    sides: Sequence[Side],
    computed: Mapping[str, Results],
    conditions: Mapping[str, float],
) -> Iterator[Row]:
    """Compare all that can be compared.

    Args:
        subject: what was computed.
        sides: who computed it, the reference first.
        computed: results by the name of their side.
        conditions: of the reference, see `conditioning.py`.
    """
    reference, *others = sides
    for side in others:
        if reference.float64:
            yield from compare.operator_rows(
                side.name,
                computed[side.name],
                reference.name,
                computed[reference.name],
                gpu=side.backend in GPU_BACKENDS,
            )
        yield from _pair(subject, side, reference, computed, conditions)
        yield from compare.step_rows(side.name, computed[side.name])
    for side in sides:
        for name, recorded in subject.recorded.items():
            precision = _precision(subject, side, name)
            yield from compare.rows(
                side.name,
                computed[side.name],
                name,
                recorded,
                precision=precision,
                start=subject.inputs,
                conditions=conditions,
                pairs=_pairs(computed[side.name], recorded, precision),
            )
    by_name = {side.name: side for side in others}
    for side in others:
        twin = by_name.get(_twin(side.name))
        if twin is not None:
            yield from _pair(subject, side, twin, computed, conditions)
        plain = by_name.get(PLAIN)
        if plain is not None and plain not in (side, twin):
            known = computed[reference.name]
            yield from _pair(subject, side, plain, computed, conditions, leave_out=known)
    for side in sides:
        mine = computed[side.name]
        if side.backend == NUMPY and not isinstance(subject.plan, ModelPlan):
            continue  # its cells know no other way than step by step
        yield from compare.rows(
            side.name,
            mine,
            side.name,
            mine,
            precision="float64" if side.float64 else "float32",
            start=subject.inputs,
            conditions=conditions,
            pairs=_steps(mine),
            inexact=1 if side.float64 else 2,
        )


def first_bad(found: Sequence[Row], computed: Mapping[str, Results]) -> Row | None:
    """Return the disagreement that comes first in the order of the computation."""
    places = [{name: place for place, name in enumerate(mine)} for mine in computed.values()]

    def place(row: Row) -> int:
        return min((names[row.what] for names in places if row.what in names), default=0)

    return min((row for row in found if not row.ok), key=place, default=None)


def _pair(
    subject: Subject,
    a: Side,
    b: Side,
    computed: Mapping[str, Results],
    conditions: Mapping[str, float],
    leave_out: Results | None = None,
) -> Iterator[Row]:
    mine, theirs = computed[a.name], computed[b.name]
    precision = "float64" if a.float64 and b.float64 else "float32"
    pairs = [
        (name, other)
        for name, other in _pairs(mine, theirs, precision)
        if leave_out is None or (name not in leave_out and other not in leave_out)
    ]
    return compare.rows(
        a.name,
        mine,
        b.name,
        theirs,
        precision=precision,
        start=subject.inputs,
        conditions=conditions,
        pairs=pairs,
        steps=subject.plan.steps if isinstance(subject.plan, ModelPlan) else 0,
        inexact=1 if a.float64 or b.float64 else 2,
    )


def _pairs(mine: Results, theirs: Results, precision: str) -> list[tuple[str, str]]:
    """Names that belong together: equal ones, or another form of a cell and the recurrent one."""
    # The parallel form takes eps at another scale, which float64 can see.
    forms = ("chunkwise",) if precision == "float64" else ("chunkwise", "parallel")

    def recurrent(name: str) -> str:
        form, slash, rest = name.partition("/")
        return f"recurrent{slash}{rest}" if form in forms else name

    pairs = []
    for name in dict.fromkeys([*mine, *theirs]):
        if name.startswith(ELSEWHERE):
            continue
        a, b = (name if name in side else recurrent(name) for side in (mine, theirs))
        if a in mine and b in theirs:
            pairs.append((a, b))
    return pairs


def _precision(subject: Subject, side: Side, recorded: str) -> str:
    if not (side.float64 and recorded.endswith("_f64")):
        return "float32"
    plan = subject.plan
    # The xlstm package runs the v1 stack with the parallel form of the cell, we the recurrence.
    parallel = isinstance(plan, ModelPlan) and isinstance(plan.cfg, XLSTMV1Config)
    return "forms" if parallel else "float64"


def _twin(name: str) -> str:
    """Name of the PyTorch side that an MLX side is compared with; "" for others."""
    backend, plus, form = name.partition("+")
    twin = {"mlx:cpu": "torch:cpu", "mlx:gpu": "torch:mps"}.get(backend)
    return f"{twin}{plus}{form}" if twin else ""


def _steps(mine: Results) -> list[tuple[str, str]]:
    """Names of results step by step, and of what they are over the whole sequence."""
    pairs = []
    for name in mine:
        rest = name.removeprefix(STEPWISE)
        whole = next((before + rest for before in WHOLE if before + rest in mine), None)
        if rest != name and whole is not None:
            pairs.append((name, whole))
    return pairs
