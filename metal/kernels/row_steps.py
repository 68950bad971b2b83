"""Optimizer steps of the rows of an embedding that a gradient touches; see `steps.py`.

Arguments as there, but

    rows    (r,) int32, ascending, each once: a step updates a row's state once. Checked in NumPy
            arrays; of others that repeat a row, one repetition gives the row's new state
    g       (r, d) float32
    m, v    the whole parameter's private state, height * d values; the rows' new values are the
            outputs `m_out`, `v_out` (r, d); all other rows keep theirs, as in torch's SparseAdam
    offset  first float of the parameter in the arena
    height  rows of the parameter

The output `done` is 1 for every row that was updated and 0 for one outside the parameter, which was
left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mlxhog.metal.kernel import Argument, Kernel, Launch
from mlxhog.metal.kernels import steps_reference as reference
from mlxhog.metal.kernels.hyper import Float32
from mlxhog.metal.kernels.ranges import check_range, check_rows, check_size, row_group
from mlxhog.metal.kernels.steps import (
    ARENA,
    DONE,
    FLAG_FLOATS,
    M_OUT,
    RATES,
    SAMPLE_ADAM,
    SAMPLE_MOMENTUM,
    SAMPLE_SGD,
    SHARED_V,
    V_OUT,
    G,
    M,
    V,
    check_rates,
    normal,
    sample_rates,
    shared_moment,
    step_kernel,
    uint,
)

_ROWS = Argument(name="rows", dtype="int32")
_RUN = (*RATES, uint("d"), uint("n_rows"), uint("height"), uint("offset"))


def sgd_apply_rows(
    arena: Any,
    rows: Any,
    g: Any,
    *,
    decays: Any,
    hp: Any,
    grad_scale: Any = 1.0,
    offset: int,
    height: int,
) -> Launch:
    """Launch `steps.sgd_apply` on some rows.

    Raises:
        ShapeError: arrays that do not fit each other, a parameter outside the arena, or (NumPy
            only) rows that do not ascend or lie outside the parameter.
    """
    return _rows(SGD_APPLY_ROWS, arena, rows, g, {}, decays, hp, grad_scale, offset, height)


def momentum_apply_rows(
    arena: Any,
    rows: Any,
    g: Any,
    m: Any,
    *,
    decays: Any,
    hp: Any,
    grad_scale: Any = 1.0,
    offset: int,
    height: int,
) -> Launch:
    """Launch `steps.momentum_apply` on some rows; outputs `done` and `m_out`.

    Raises:
        ShapeError: as `sgd_apply_rows`.
    """
    private = {"m": m}
    return _rows(
        MOMENTUM_APPLY_ROWS, arena, rows, g, private, decays, hp, grad_scale, offset, height
    )


def adam_apply_rows(
    arena: Any,
    rows: Any,
    g: Any,
    m: Any,
    v: Any,
    *,
    decays: Any,
    hp: Any,
    grad_scale: Any = 1.0,
    offset: int,
    height: int,
) -> Launch:
    """Launch `steps.adam_apply` on some rows; outputs `done`, `m_out` and `v_out`.

    Raises:
        ShapeError: as `sgd_apply_rows`.
    """
    private = {"m": m, "v": v}
    return _rows(ADAM_APPLY_ROWS, arena, rows, g, private, decays, hp, grad_scale, offset, height)


def adam_shared_apply_rows(
    arena: Any,
    v: Any,
    failures: Any,
    rows: Any,
    g: Any,
    m: Any,
    *,
    decays: Any,
    hp: Any,
    grad_scale: Any = 1.0,
    offset: int,
    height: int,
) -> Launch:
    """Launch `steps.adam_shared_apply` on some rows; outputs `done` and `m_out`.

    Here `v` is the whole shared segment, laid out as the arena.

    Raises:
        ShapeError: as `sgd_apply_rows`.
    """
    private, shared = {"m": m}, shared_moment(arena, v, failures)
    return _rows(
        ADAM_SHARED_APPLY_ROWS,
        arena,
        rows,
        g,
        private,
        decays,
        hp,
        grad_scale,
        offset,
        height,
        shared,
    )


def _rows(
    kernel: Kernel,
    arena: Any,
    rows: Any,
    g: Any,
    private: Mapping[str, Any],
    decays: Any,
    hp: Any,
    grad_scale: Any,
    offset: int,
    height: int,
    shared: Mapping[str, Any] | None = None,
) -> Launch:
    n_rows, d = check_rows(rows, g, height, distinct=True)
    check_range("the arena", arena, offset, height * d)
    check_rates(decays, hp, offset + height * d)
    for name, state in private.items():
        check_size(name, state, height * d)
    return Launch(
        kernel=kernel,
        inputs={
            "arena": arena,
            "rows": rows,
            "g": g,
            **private,
            **(shared or {}),
            "decays": decays,
            "hp": hp,
            "grad_scale": grad_scale,
            "d": d,
            "n_rows": n_rows,
            "height": height,
            "offset": offset,
        },
        outputs={o.name: (n_rows,) if o is DONE else (n_rows, d) for o in kernel.outputs},
        grid=(d, n_rows, 1),
        group=row_group(d),
    )


def _sample(
    rng: np.random.Generator, n: int, hp: Float32, *state: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """An embedding of which about half of the rows are touched, n elements; arrays and rates."""
    d = 16
    r = max(1, n // d)
    height = 2 * r
    arrays: dict[str, Any] = {
        "arena": normal(rng, height * d + 8),
        "rows": np.sort(rng.choice(height, r, replace=False)).astype(np.int32),
        "g": normal(rng, r, d),
    }
    for name in state:
        floats = height * d + (8 if name == "shared v" else 0)
        arrays[name.removeprefix("shared ")] = np.square(normal(rng, floats))
    more = {"offset": 5, "height": height}
    return arrays, {**sample_rates(rng, height * d + FLAG_FLOATS, hp), **more}


def _sample_sgd(rng: np.random.Generator, n: int) -> Launch:
    arrays, rates = _sample(rng, n, SAMPLE_SGD)
    return sgd_apply_rows(**arrays, **rates)


def _sample_momentum(rng: np.random.Generator, n: int) -> Launch:
    arrays, rates = _sample(rng, n, SAMPLE_MOMENTUM, "m")
    return momentum_apply_rows(**arrays, **rates)


def _sample_adam(rng: np.random.Generator, n: int) -> Launch:
    arrays, rates = _sample(rng, n, SAMPLE_ADAM, "m", "v")
    return adam_apply_rows(**arrays, **rates)


def _sample_adam_shared(rng: np.random.Generator, n: int) -> Launch:
    arrays, rates = _sample(rng, n, SAMPLE_ADAM, "m", "shared v")
    return adam_shared_apply_rows(**arrays, failures=np.zeros(8, np.uint32), **rates)


def _kernel(
    inputs: tuple[Argument, ...],
    outputs: tuple[Argument, ...],
    reference: Callable[..., None],
    sample: Callable[[np.random.Generator, int], Launch],
    bytes_per_element: float,
) -> Kernel:
    at = "thread_position_in_grid"
    return step_kernel("row_steps.h", inputs, outputs, at, reference, sample, bytes_per_element)


# Bytes as in `steps.py`; the row's number, flag and `done` come on top, once per row.
SGD_APPLY_ROWS = _kernel(
    (ARENA, _ROWS, G, *_RUN), (DONE,), reference.sgd_apply_rows, _sample_sgd, 12
)
MOMENTUM_APPLY_ROWS = _kernel(
    (ARENA, _ROWS, G, M, *_RUN),
    (DONE, M_OUT),
    reference.momentum_apply_rows,
    _sample_momentum,
    20,
)
ADAM_APPLY_ROWS = _kernel(
    (ARENA, _ROWS, G, M, V, *_RUN),
    (DONE, M_OUT, V_OUT),
    reference.adam_apply_rows,
    _sample_adam,
    28,
)
ADAM_SHARED_APPLY_ROWS = _kernel(
    (ARENA, *SHARED_V, _ROWS, G, M, *_RUN),
    (DONE, M_OUT),
    reference.adam_shared_apply_rows,
    _sample_adam_shared,
    28,
)
KERNELS = (SGD_APPLY_ROWS, MOMENTUM_APPLY_ROWS, ADAM_APPLY_ROWS, ADAM_SHARED_APPLY_ROWS)
