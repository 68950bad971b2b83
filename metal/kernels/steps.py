"""Optimizer steps, fused with the atomic add that ends them: of runs and of rows of parameters.

The same rules and roundings as the native steps (`mlxhog.optim`), so that one writer gets the same
bits where a GPU does not fuse multiplication and addition. A dense launch covers a run of
neighbouring parameters; another kind steps the rows of an embedding that a gradient touches.
Muon's directions are not yet a step: they are orthogonalised, and then added by SGD's kernels.

Arrays of a step, by name:

    arena       (floats,) float32, shared, written in place
    g           float32: n values of any shape; of rows (r, d)
    m, v        float32, the moments, with the arena's layout, written in place; rows that a
                gradient does not touch keep theirs, as in torch's SparseAdam
    failures    beside moments that all workers share, (8 or more,) uint32: its first element is
                increased by the number of elements whose moment is unchanged, because 64 tries of a
                compare-and-swap failed
    last, prev  of a rule that records its steps: float32, with the arena's layout, written in
                place: the step, and the step recorded before it
    rows        (r,) int32, ascending, each once: a step updates a row's state once. Checked only in
                NumPy arrays; in others, if a row repeats, each of its moments is that after one of
                the repetitions

Rates of a step:

    decays      uint8, one flag per 32 floats of the arena (parameters start on such boundaries):
                whether weight decay applies
    hp          (8,) float32, the rule's rates (`step_rules.py`)
    grad_scale  float32, multiplies g first, such as the factor that clips

The output `done` of rows is 1 for every row that was updated, and 0 for a row outside the
parameter, which is skipped.

Concurrency: no add is lost beside others of the same GPU; w is read once, possibly between two
adds of others. A private moment is loaded and stored once, so only its worker may write it, by one
launch at a time; a reader sees each element whole, before or after the step. A shared moment is
updated by compare-and-swap, so nothing is lost unless it is counted in `failures`. Nothing orders
the writes of a launch: if it does not end, some elements have their whole step, some nothing, and
some only a part of it. No framework knows of writes in place. So an operation that still has to
read such an array is evaluated before the launch, and no array is passed twice to one that writes
it (refused).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mlxhog.errors import ShapeError
from mlxhog.metal.kernel import Kernel, Launch
from mlxhog.metal.kernels import step_rules
from mlxhog.metal.kernels.arguments import (
    DONE,
    arrays,
    check_range,
    check_rows,
    check_size,
    check_written,
    declare,
    floats,
    row_group,
    size,
    sizes,
    written,
)
from mlxhog.metal.kernels.step_rules import (
    FLAG_FLOATS,
    HP,
    Float32,
    adam_hp,
    momentum_hp,
    muon_hp,
    sgd_hp,
)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """An update rule, which has a kernel for runs of dense parameters and one for rows.

    Attributes:
        name: the kernels are `<name>_apply` and `<name>_apply_rows`.
        struct: of `steps.h`.
        formula: the same in NumPy.
        private: moments that only this worker writes.
        shared: moments that all workers write, with a counter of failed tries.
        records: whether the step is written to `last` and `prev`; then there is no kernel for rows.
        muon: whether some of the matrices are stepped by Muon's directions and SGD's kernels.
    """

    name: str
    struct: str
    formula: step_rules.Formula
    private: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    records: bool = False
    muon: bool = False

    @property
    def written(self) -> tuple[str, ...]:
        """Names of the arrays with the arena's layout that are written in place."""
        return (*(("last", "prev") if self.records else ()), *self.private, *self.shared)

    def dense(
        self, x: Mapping[str, Any], *, decays: Any, hp: Any, grad_scale: Any = 1.0, offset: int
    ) -> Launch:
        """Launch the step of the run of parameters that begins at float `offset` of the arena.

        Raises:
            ShapeError: arrays that do not fit each other, or a run outside the arena.
        """
        self._check_written(x)
        n = size(x["g"])
        rates = self._checked_rates(x, decays, hp, grad_scale, offset, n)
        return Launch(
            kernel=_DENSE[self.name],
            inputs={**x, **rates, "n": n, "offset": offset},
            outputs={"done": (1,)},
            grid=(n, 1, 1),
        )

    def rows(
        self,
        x: Mapping[str, Any],
        *,
        decays: Any,
        hp: Any,
        grad_scale: Any = 1.0,
        offset: int,
        height: int,
    ) -> Launch:
        """Launch the step of some rows of the parameter at float `offset` of the arena.

        It has `height` rows.

        Raises:
            ShapeError: arrays that do not fit each other, a parameter outside the arena, or (NumPy
                only) rows that do not ascend or lie outside the parameter.
        """
        self._check_written(x)
        n_rows, d = check_rows(x["rows"], x["g"], height, distinct=True)
        rates = self._checked_rates(x, decays, hp, grad_scale, offset, height * d)
        numbers = {"d": d, "n_rows": n_rows, "height": height, "offset": offset}
        return Launch(
            kernel=_ROWS[self.name],
            inputs={**x, **rates, **numbers},
            outputs={"done": (n_rows,)},
            grid=(d, n_rows, 1),
            group=row_group(d),
        )

    def _check_written(self, x: Mapping[str, Any]) -> None:
        for name in self.written:
            check_size(f"{name}, which is laid out as the arena,", x[name], size(x["arena"]))
            check_written(name, x[name])
        if self.shared:
            check_written("failures", x["failures"])

    def _checked_rates(
        self, x: Mapping[str, Any], decays: Any, hp: Any, grad_scale: Any, offset: int, floats: int
    ) -> dict[str, Any]:
        """Return the rates of a step of `floats` elements from `offset` on, which all fit."""
        end = offset + floats
        check_range("the arena", x["arena"], offset, floats)
        check_size("hp", hp, HP)
        flags = size(decays)
        if flags * FLAG_FLOATS < end:
            raise ShapeError(
                f"decays has {flags} flags, for {flags * FLAG_FLOATS} floats; the launch ends at "
                f"float {end} of the arena: pass one flag per {FLAG_FLOATS} floats of the arena"
            )
        return {"decays": decays, "hp": hp, "grad_scale": grad_scale}


SGD = Rule(name="sgd", struct="Sgd", formula=step_rules.sgd)
MOMENTUM = Rule(name="momentum", struct="Momentum", formula=step_rules.momentum, private=("m",))
ADAM = Rule(name="adam", struct="Adam", formula=step_rules.adam, private=("m", "v"))
ADAM_SHARED = Rule(
    name="adam_shared", struct="AdamShared<>", formula=step_rules.adam, shared=("m", "v")
)
MUON = replace(ADAM, muon=True)
"""For all parameters except hidden matrices Muon is AdamW."""
MUON_SHARED = replace(ADAM_SHARED, muon=True)
SGD_RECORDED = replace(SGD, name="sgd_recorded", records=True)
ADAM_SHARED_RECORDED = replace(ADAM_SHARED, name="adam_shared_recorded", records=True)
RULES = (SGD, MOMENTUM, ADAM, ADAM_SHARED, SGD_RECORDED, ADAM_SHARED_RECORDED)
RECORDED = {rule.name.removesuffix("_recorded"): rule for rule in RULES if rule.records}
"""Name of a rule -> the same rule, recording its steps."""


def muon_direction(x: Mapping[str, Any], *, hp: Any, grad_scale: Any = 1.0, offset: int) -> Launch:
    """Launch Muon's direction of a parameter; output `x_out`, (n,).

    With s = grad_scale * g, m moves to its exponential mean with s, and x = (1 - nesterov) m +
    nesterov s.

    Args:
        x: `g`, n values; `m`, float32, laid out as the arena, written in place; and `failures`, if
            other workers write the same m.
        hp: (8,) float32, Muon's rates.
        grad_scale: multiplies g first.
        offset: first float of the parameter.

    Raises:
        ShapeError: arrays that do not fit each other, or a parameter outside the arena.
    Source: Jordan 2024, https://kellerjordan.github.io/posts/muon/.
    """
    n = size(x["g"])
    check_range("m", x["m"], offset, n)
    check_size("hp", hp, HP)
    if "failures" in x:
        check_written("failures", x["failures"])
    return Launch(
        kernel=MUON_DIRECTION_SHARED if "failures" in x else MUON_DIRECTION,
        inputs={**x, "hp": hp, "grad_scale": grad_scale, "n": n, "offset": offset},
        outputs={"x_out": (n,)},
        grid=(n, 1, 1),
    )


def channel_scale_apply(
    arena: Any, g: Any, s: Any, *, axis: int | None, coef: Any, decay: Any = 0.0, offset: int
) -> Launch:
    """Launch APOLLO's step of a matrix, `w += coef * (g * s) - decay * w`.

    Args:
        arena: (floats,) float32, shared, written in place.
        g: (rows, cols) float32.
        s: float32 factors: (rows,) with axis 0, (cols,) with axis 1, (1,) with axis None.
        axis: axis of the factors.
        coef: minus the step size with bias correction and norm-growth limiter folded in.
        decay: lr * weight_decay.
        offset: first float of the matrix in the arena.

    Raises:
        ShapeError: arrays that do not fit each other, or a matrix outside the arena.
    Source: Zhu et al. 2024, arXiv:2412.05270.
    """
    if len(g.shape) != 2 or axis not in (0, 1, None):
        raise ShapeError(
            f"g has shape {tuple(g.shape)} and axis is {axis}; expected a matrix and 0, 1 or None"
        )
    rows, cols = g.shape
    check_size("s", s, 1 if axis is None else g.shape[axis])
    check_range("the arena", arena, offset, rows * cols)
    steps = {"row_step": int(axis == 0), "col_step": int(axis == 1)}
    numbers = {"coef": coef, "decay": decay, "cols": cols, **steps, "n": rows * cols}
    return Launch(
        kernel=CHANNEL_SCALE_APPLY,
        inputs={"arena": arena, "g": g, "s": s, **numbers, "offset": offset},
        outputs={"done": (1,)},
        grid=(rows * cols, 1, 1),
    )


# -- sample launches -------------------------------------------------------------------------------


_ADAM_HP = adam_hp(lr=0.1, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.2, bias1=0.19, bias2=0.1)
_SAMPLE_HP = {
    "sgd": sgd_hp(lr=0.1, weight_decay=0.2),
    "momentum": momentum_hp(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.2),
    "adam": _ADAM_HP,
    "adam_shared": _ADAM_HP,
    "sgd_recorded": sgd_hp(lr=0.1, weight_decay=0.2),
    "adam_shared_recorded": _ADAM_HP,
}


def _normal(rng: np.random.Generator, *shape: int) -> Float32:
    return rng.standard_normal(shape, dtype=np.float32)


def _state(rng: np.random.Generator, rule: Rule, floats: int) -> dict[str, Any]:
    """State of an arena; squares are not negative."""
    state: dict[str, Any] = {}
    for name in rule.written:
        values = _normal(rng, floats)
        state[name] = np.square(values) if name == "v" else values
    if rule.shared:
        state["failures"] = np.zeros(8, np.uint32)
    return state


def _rates(rng: np.random.Generator, rule: Rule, floats: int) -> dict[str, Any]:
    """Rates for a launch over an arena; half of its parameters decay."""
    flags = rng.integers(0, 2, -(-floats // FLAG_FLOATS), dtype=np.uint8)
    return {"decays": flags, "hp": _SAMPLE_HP[rule.name], "grad_scale": 0.75}


def _sample_dense(rule: Rule, rng: np.random.Generator, n: int) -> Launch:
    x = {"arena": _normal(rng, n + 8), "g": _normal(rng, n), **_state(rng, rule, n + 8)}
    return rule.dense(x, **_rates(rng, rule, n + 8), offset=3)


def _sample_rows(rule: Rule, rng: np.random.Generator, n: int) -> Launch:
    """The step of an embedding of which about half of the rows are touched, n elements."""
    d = 16
    r = max(1, n // d)
    height = 2 * r
    x = {
        "arena": _normal(rng, height * d + 8),
        "rows": np.sort(rng.choice(height, r, replace=False)).astype(np.int32),
        "g": _normal(rng, r, d),
        **_state(rng, rule, height * d + 8),
    }
    return rule.rows(x, **_rates(rng, rule, height * d + FLAG_FLOATS), offset=5, height=height)


def _sample_muon(rng: np.random.Generator, n: int, *, shared: bool = False) -> Launch:
    x: dict[str, Any] = {"g": _normal(rng, n), "m": _normal(rng, n + 8)}
    x |= {"failures": np.zeros(8, np.uint32)} if shared else {}
    return muon_direction(x, hp=muon_hp(beta1=0.9, nesterov=0.2), grad_scale=0.75, offset=3)


def _sample_channel(rng: np.random.Generator, n: int) -> Launch:
    cols = 16
    g = _normal(rng, max(1, n // cols), cols)
    s, arena = np.square(_normal(rng, len(g))), _normal(rng, g.size + 8)
    return channel_scale_apply(arena, g, s, axis=0, coef=-0.1, decay=0.02, offset=3)


# -- declarations ----------------------------------------------------------------------------------


_AT = "thread_position_in_grid.x"


def _kernel(rule: Rule, *, rows: bool) -> Kernel:
    """Declare one of the kernels of a rule."""
    moments = (*rule.private, *rule.shared, *(["failures"] if rule.shared else []))
    call = f"mlxhog::{rule.struct}{{{', '.join(['arena', *moments, 'decays, hp, grad_scale'])}}}"
    if rule.records:
        call = f"mlxhog::Recorded<mlxhog::{rule.struct}>{{{call}, last, prev}}"
    inputs = (
        written("arena"),
        *(written(segment) for segment in rule.written),
        *([written("failures", "uint32")] if rule.shared else ()),
        *(arrays("rows", "int32") if rows else ()),
        *arrays("g"),
        *arrays("decays", "uint8"),
        *arrays("hp"),
        *floats("grad_scale"),
    )
    if rows:
        name, call = (
            f"{rule.name}_apply_rows",
            f"mlxhog::step_rows({call}, rows, g, d, n_rows, height",
        )
    else:
        name, call = f"{rule.name}_apply", f"mlxhog::step_dense({call}, g, n"
    reference = step_rules.rows_reference if rows else step_rules.dense_reference
    sample = _sample_rows if rows else _sample_dense
    return Kernel(
        name=name,
        header="steps.h",
        source=f"{call}, offset, done, {'thread_position_in_grid' if rows else _AT});",
        inputs=(*inputs, *sizes("d n_rows height offset" if rows else "n offset")),
        outputs=(DONE,),
        reference=reference(rule.formula, (*rule.private, *rule.shared)),
        sample=lambda rng, n: sample(rule, rng, n),
    )


def _muon_kernel(name: str, *, shared: bool) -> Kernel:
    """Declare the kernel of Muon's directions, of a private or of a shared mean."""
    return declare(
        name,
        "steps.h",
        (written("m"), *([written("failures", "uint32")] if shared else ()), *arrays("g hp")),
        arrays("x_out"),
        (*floats("grad_scale"), *sizes("n offset")),
        at=_AT,
        reference=step_rules.muon_direction_reference,
        sample=lambda rng, n: _sample_muon(rng, n, shared=shared),
    )


_DENSE = {rule.name: _kernel(rule, rows=False) for rule in RULES}
_ROWS = {rule.name: _kernel(rule, rows=True) for rule in RULES if not rule.records}
MUON_DIRECTION = _muon_kernel("muon_direction", shared=False)
MUON_DIRECTION_SHARED = _muon_kernel("muon_direction_shared", shared=True)
CHANNEL_SCALE_APPLY = declare(
    "channel_scale_apply",
    "steps.h",
    (written("arena"), *arrays("g s")),
    (DONE,),
    (*floats("coef decay"), *sizes("cols row_step col_step n offset")),
    at=_AT,
    reference=step_rules.channel_scale_reference,
    sample=_sample_channel,
)
KERNELS = (
    *_DENSE.values(),
    MUON_DIRECTION,
    MUON_DIRECTION_SHARED,
    CHANNEL_SCALE_APPLY,
    *_ROWS.values(),
)
