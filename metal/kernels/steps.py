"""Optimizer steps of dense parameters, fused with the atomic add that ends them.

The same rules and roundings as the native steps (`mlxhog.optim`), so that one writer gets the same
bits where a GPU does not fuse multiplication and addition. One launch covers a run of neighbouring
parameters: `decays` says for every 32 floats of the arena (parameters start on such boundaries)
whether weight decay applies.

Arguments of every step here:

    arena       (floats,) float32, shared, written in place
    g           n values, float32, any shape
    m, v        n values, float32, private state; the new values are outputs `m_out`, `v_out` (n,)
    decays      uint8, one flag per 32 floats of the arena
    hp          (8,) float32, the rates; see `hyper.py`
    grad_scale  float32, multiplies g first, such as the factor that clips
    offset      first float of the run in the arena

Concurrency: no add is lost beside others of the same GPU; w is read once, possibly between two
adds of others. State that comes in and goes out belongs to one worker.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mlxhog.errors import ShapeError
from mlxhog.metal.kernel import Argument, Kernel, Launch
from mlxhog.metal.kernels import steps_reference as reference
from mlxhog.metal.kernels.hyper import HP, Float32, adam_hp, momentum_hp, sgd_hp
from mlxhog.metal.kernels.ranges import check_range, check_size, check_written, size

FLAG_FLOATS = reference.FLAG_FLOATS

ARENA = Argument(name="arena", writes=True)
G, M, V = Argument(name="g"), Argument(name="m"), Argument(name="v")
SHARED_V = (
    Argument(name="v", writes=True),
    Argument(name="failures", dtype="uint32", writes=True),
)
RATES = (
    Argument(name="decays", dtype="uint8"),
    Argument(name="hp"),
    Argument(name="grad_scale", scalar=True),
)
M_OUT, V_OUT = Argument(name="m_out"), Argument(name="v_out")
DONE = Argument(name="done", dtype="uint32")


def uint(name: str) -> Argument:
    """A number that is passed by value."""
    return Argument(name=name, dtype="uint32", scalar=True)


_RUN = (*RATES, uint("n"), uint("offset"))


def sgd_apply(
    arena: Any, g: Any, *, decays: Any, hp: Any, grad_scale: Any = 1.0, offset: int
) -> Launch:
    """Launch `w -= lr * (grad_scale * g + weight_decay * w)`.

    Raises:
        ShapeError: arrays that do not fit each other, or a run outside the arena.
    """
    return _run(SGD_APPLY, arena, g, {}, decays, hp, grad_scale, offset)


def momentum_apply(
    arena: Any, g: Any, m: Any, *, decays: Any, hp: Any, grad_scale: Any = 1.0, offset: int
) -> Launch:
    """Launch `m = momentum * m + d; w -= lr * m` with d as in `sgd_apply`; output `m_out`.

    With Nesterov's look-ahead w moves by `lr * (d + momentum * m)`.

    Raises:
        ShapeError: arrays that do not fit each other, or a run outside the arena.
    """
    return _run(MOMENTUM_APPLY, arena, g, {"m": m}, decays, hp, grad_scale, offset)


def adam_apply(
    arena: Any, g: Any, m: Any, v: Any, *, decays: Any, hp: Any, grad_scale: Any = 1.0, offset: int
) -> Launch:
    """Launch AdamW with private moments; outputs `m_out` and `v_out`.

    With s = grad_scale * g, m and v are the exponential means of s and s^2, and w loses
    lr * (weight_decay * w + (m / bias1) / (sqrt(v / bias2) + eps)).

    Raises:
        ShapeError: arrays that do not fit each other, or a run outside the arena.
    Source: Loshchilov and Hutter 2019, arXiv:1711.05101.
    """
    return _run(ADAM_APPLY, arena, g, {"m": m, "v": v}, decays, hp, grad_scale, offset)


def adam_shared_apply(
    arena: Any,
    v: Any,
    failures: Any,
    g: Any,
    m: Any,
    *,
    decays: Any,
    hp: Any,
    grad_scale: Any = 1.0,
    offset: int,
) -> Launch:
    """Launch AdamW with a second moment that all workers share; output `m_out`.

    Args:
        arena: as for every step here, likewise what is not named below.
        v: float32, laid out as the arena, shared, written in place.
        failures: (8 or more,) uint32; elements whose v was left as it is, since 64 tries of a
            compare-and-swap failed, are added to its first element.
        g: see above.
        m: see above.
        decays: see above.
        hp: see above.
        grad_scale: see above.
        offset: see above.

    Raises:
        ShapeError: arrays that do not fit each other, or a run outside the arena.

    Concurrency: each mean moves by compare-and-swap, so no square is lost unless it is counted.
    """
    shared = shared_moment(arena, v, failures)
    return _run(ADAM_SHARED_APPLY, arena, g, {"m": m}, decays, hp, grad_scale, offset, shared)


def channel_scale_apply(
    arena: Any, g: Any, s: Any, *, axis: int | None, coef: Any, decay: Any = 0.0, offset: int
) -> Launch:
    """Launch APOLLO's step of a matrix, `w += coef * (g * s) - decay * w`.

    Args:
        arena: (floats,) float32, shared, written in place.
        g: (rows, cols) float32.
        s: float32 factors: (rows,) with axis 0, (cols,) with axis 1, (1,) with axis None.
        axis: which way the factors go.
        coef: minus the step size with bias correction and norm-growth limiter folded in.
        decay: lr * weight_decay.
        offset: first float of the matrix in the arena.

    Raises:
        ShapeError: arrays that do not fit each other, or a matrix outside the arena.
    Source: Zhu et al. 2024, arXiv:2412.05270.
    """
    if len(g.shape) != 2 or axis not in (0, 1, None):
        raise ShapeError(
            f"g has shape {tuple(g.shape)} and axis is {axis}; wanted a matrix and 0, 1 or None"
        )
    rows, cols = g.shape
    check_size("s", s, 1 if axis is None else g.shape[axis])
    check_range("the arena", arena, offset, rows * cols)
    return Launch(
        kernel=CHANNEL_SCALE_APPLY,
        inputs={
            "arena": arena,
            "g": g,
            "s": s,
            "coef": coef,
            "decay": decay,
            "cols": cols,
            "row_step": int(axis == 0),
            "col_step": int(axis == 1),
            "n": rows * cols,
            "offset": offset,
        },
        outputs={"done": (1,)},
        grid=(rows * cols, 1, 1),
    )


def check_rates(decays: Any, hp: Any, end: int) -> None:
    """Refuse rates and flags that are too few.

    Raises:
        ShapeError: `hp` has not 8 floats, or `decays` ends before float `end` of the arena.
    """
    check_size("hp", hp, HP)
    if size(decays) * FLAG_FLOATS < end:
        raise ShapeError(
            f"decays has {size(decays)} flags, for {size(decays) * FLAG_FLOATS} floats; the launch "
            f"ends at float {end} of the arena: pass one flag per {FLAG_FLOATS} floats of the arena"
        )


def shared_moment(arena: Any, v: Any, failures: Any) -> dict[str, Any]:
    """The inputs of a shared second moment.

    Raises:
        ShapeError: `v` is not laid out as the arena, or `failures` is too small.
    """
    check_size("v, which is laid out as the arena,", v, size(arena))
    check_written("v", v)
    check_written("failures", failures)
    return {"v": v, "failures": failures}


def _run(
    kernel: Kernel,
    arena: Any,
    g: Any,
    private: Mapping[str, Any],
    decays: Any,
    hp: Any,
    grad_scale: Any,
    offset: int,
    shared: Mapping[str, Any] | None = None,
) -> Launch:
    n = size(g)
    check_range("the arena", arena, offset, n)
    check_rates(decays, hp, offset + n)
    for name, state in private.items():
        check_size(name, state, n)
    rates = {"decays": decays, "hp": hp, "grad_scale": grad_scale}
    return Launch(
        kernel=kernel,
        inputs={
            "arena": arena,
            "g": g,
            **private,
            **(shared or {}),
            **rates,
            "n": n,
            "offset": offset,
        },
        outputs={o.name: (1,) if o is DONE else (n,) for o in kernel.outputs},
        grid=(n, 1, 1),
    )


def normal(rng: np.random.Generator, *shape: int) -> Float32:
    """Random numbers of order 1."""
    return rng.standard_normal(shape, dtype=np.float32)


def sample_rates(rng: np.random.Generator, floats: int, hp: Float32) -> dict[str, Any]:
    """Rates for a sample launch over an arena; half of its parameters decay."""
    flags = rng.integers(0, 2, -(-floats // FLAG_FLOATS), dtype=np.uint8)
    return {"decays": flags, "hp": hp, "grad_scale": 0.75}


SAMPLE_SGD = sgd_hp(lr=0.1, weight_decay=0.2)
SAMPLE_MOMENTUM = momentum_hp(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.2)
SAMPLE_ADAM = adam_hp(
    lr=0.1, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.2, bias1=0.19, bias2=0.1
)


def _sample_sgd(rng: np.random.Generator, n: int) -> Launch:
    rates = sample_rates(rng, n + 8, SAMPLE_SGD)
    return sgd_apply(normal(rng, n + 8), normal(rng, n), **rates, offset=3)


def _sample_momentum(rng: np.random.Generator, n: int) -> Launch:
    rates = sample_rates(rng, n + 8, SAMPLE_MOMENTUM)
    return momentum_apply(normal(rng, n + 8), normal(rng, n), normal(rng, n), **rates, offset=3)


def _sample_adam(rng: np.random.Generator, n: int) -> Launch:
    arena, g, m = normal(rng, n + 8), normal(rng, n), normal(rng, n)
    rates = sample_rates(rng, n + 8, SAMPLE_ADAM)
    return adam_apply(arena, g, m, np.square(normal(rng, n)), **rates, offset=3)


def _sample_adam_shared(rng: np.random.Generator, n: int) -> Launch:
    arena, g, m = normal(rng, n + 8), normal(rng, n), normal(rng, n)
    v, failures = np.square(normal(rng, n + 8)), np.zeros(8, np.uint32)
    rates = sample_rates(rng, n + 8, SAMPLE_ADAM)
    return adam_shared_apply(arena, v, failures, g, m, **rates, offset=3)


def _sample_channel(rng: np.random.Generator, n: int) -> Launch:
    cols = 16
    g = normal(rng, max(1, n // cols), cols)
    s, arena = np.square(normal(rng, len(g))), normal(rng, g.size + 8)
    return channel_scale_apply(arena, g, s, axis=0, coef=-0.1, decay=0.02, offset=3)


def step_kernel(
    header: str,
    inputs: tuple[Argument, ...],
    outputs: tuple[Argument, ...],
    at: str,
    reference: Callable[..., None],
    sample: Callable[[np.random.Generator, int], Launch],
    bytes_per_element: float,
) -> Kernel:
    """Declare a kernel that is named as its reference and called with its arguments in order."""
    name = reference.__name__
    call = ", ".join([*(argument.name for argument in inputs + outputs), at])
    return Kernel(
        name=name,
        header=header,
        source=f"mlxhog::{name}({call});",
        inputs=inputs,
        outputs=outputs,
        reference=reference,
        sample=sample,
        bytes_per_element=bytes_per_element,
    )


def _kernel(
    inputs: tuple[Argument, ...],
    outputs: tuple[Argument, ...],
    reference: Callable[..., None],
    sample: Callable[[np.random.Generator, int], Launch],
    bytes_per_element: float,
) -> Kernel:
    at = "thread_position_in_grid.x"
    return step_kernel("steps.h", inputs, outputs, at, reference, sample, bytes_per_element)


_FLAG = 1 / FLAG_FLOATS  # bytes of an element's share in `decays`

# Bytes: w is read and written, what goes in is read, what goes out is written.
SGD_APPLY = _kernel((ARENA, G, *_RUN), (DONE,), reference.sgd_apply, _sample_sgd, 12 + _FLAG)
MOMENTUM_APPLY = _kernel(
    (ARENA, G, M, *_RUN), (M_OUT,), reference.momentum_apply, _sample_momentum, 20 + _FLAG
)
ADAM_APPLY = _kernel(
    (ARENA, G, M, V, *_RUN), (M_OUT, V_OUT), reference.adam_apply, _sample_adam, 28 + _FLAG
)
ADAM_SHARED_APPLY = _kernel(
    (ARENA, *SHARED_V, G, M, *_RUN),
    (M_OUT,),
    reference.adam_shared_apply,
    _sample_adam_shared,
    28 + _FLAG,
)
CHANNEL_SCALE_APPLY = _kernel(
    (
        ARENA,
        G,
        Argument(name="s"),
        Argument(name="coef", scalar=True),
        Argument(name="decay", scalar=True),
        uint("cols"),
        uint("row_step"),
        uint("col_step"),
        uint("n"),
        uint("offset"),
    ),
    (DONE,),
    reference.channel_scale_apply,
    _sample_channel,
    12,  # and the factors
)
KERNELS = (SGD_APPLY, MOMENTUM_APPLY, ADAM_APPLY, ADAM_SHARED_APPLY, CHANNEL_SCALE_APPLY)
