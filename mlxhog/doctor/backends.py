"""Check every backend's gradient in child processes: its error, speed and repeatability."""

import math
import time
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mlxhog.arena.child import START_S, Child, Lane
from mlxhog.backends import create, create_alone
from mlxhog.base import float32
from mlxhog.base.capabilities import CPU_DECODES, GPU_ENGINES, CellShape, CellTimes
from mlxhog.base.machine import Machine
from mlxhog.base.workers import BACKENDS, missing
from mlxhog.conformance.engines import FrameworkEngine, ModelEngine, NumPyEngine
from mlxhog.data.batch import Batch
from mlxhog.doctor.checks import Check, CheckResult, check, check_child
from mlxhog.models.families import init_params, param_count
from mlxhog.models.registry import load_architecture
from mlxhog.training.plan.batch_size import faster_half, times_of

Gradient = dict[str, NDArray[Any]]

MODEL: Final = "tiny"
BATCH, LENGTH = 2, 256
LIMIT_S: Final = START_S + 60.0  # for the gradients of one backend
ALLOWED: Final = 1e-3
"""Largest error of a gradient as a share of the parameter's largest entry; float32 has 1e-5 here,
and operands cut to 10 bits 5e-3."""
_EXPECTED = f"the gradient of the model {MODEL} within {ALLOWED:g} of the reference in float64"

CELL_MODELS: Final = ("minute", "10m", "30m", "160m", "400m", "5m-v1", "30m-v1")
"""Presets whose cells are measured without `--model`; those of the others are near."""
CELLS_S: Final = START_S + 300.0  # for all cells of a backend, with the time to compile kernels

DECODED: Final = "10m"  # model that both decoders of a Mac generate with
DECODE_S: Final = 1.0  # for each


@dataclass
class MeasuredGradients:
    """Checks and speeds of this machine's backends."""

    checks: list[Check] = field(default_factory=list)
    tokens_per_s: dict[str, float] = field(default_factory=dict)
    """Speed of a worker with one thread: native kernels on a CPU, eager operators on a GPU."""
    metal: dict[str, float] = field(default_factory=dict)
    """Speeds of GPUs with mlxhog's Metal kernels, where they compute the gradient."""
    repeats: dict[str, dict[str, bool]] = field(default_factory=dict)
    """Whether two processes computed the same bits, by GPU backend and kernels."""
    decoding: dict[str, Any] | None = None
    """The row `decoding` of the record: tokens/s of MLX on the GPU and of the native decoder."""
    cells: list[CellTimes] = field(default_factory=list)
    """By GPU backend and cell, by which a run chooses the kernels of each operator."""


def check_backends(
    machine: Machine,
    gradients: int,
    agreed: Collection[str] = (),
    cells: Collection[CellShape] = (),
) -> MeasuredGradients:
    """Compare a gradient of each backend with the reference, then measure its speed.

    Each computes some more `gradients` for that, with one thread; GPU workers on the Metal engines
    `agreed`, where every kernel agreed with its reference, also with our Metal kernels. There the
    times of `cells` are measured, eager and by these kernels.
    """
    measured, expected = MeasuredGradients(), reference()
    for name in BACKENDS:
        if (lack := missing(name, machine)) is not None:
            measured.checks.append(Check(f"backend {name}", CheckResult.ABSENT, lack, _EXPECTED))
            continue
        metal = ["metal"] if GPU_ENGINES.get(name) in agreed else []
        for form in ["eager", *metal] if name in GPU_ENGINES else ["auto"]:
            _measure(measured, name, form, gradients, expected)
        if metal and cells:
            _measure_cells(measured, name, cells)
    if measured.tokens_per_s.keys() >= {"mlx:cpu", "mlx:gpu"}:
        measured.decoding = _measure_decoding(measured.checks)
    return measured


def _measure_cells(measured: MeasuredGradients, name: str, cells: Collection[CellShape]) -> None:
    def measure() -> tuple[bool, str]:
        with Child(promises=False) as child:
            times = child.call(CELLS_S, cell_times, name, list(cells))
        measured.cells.extend(times)
        faster = sum(one.metal_s < one.eager_s for one in times)
        return True, f"Metal kernels are faster in {faster} of {len(times)}"

    expected = "forward and backward passes of each, eager and by Metal kernels"
    consequence = "with --kernels auto a worker measures those of its model when it starts"
    title = f"cells of {name}"
    measured.checks.append(check_child(title, measure, expected, consequence, CheckResult.WARN))


def cell_times(lane: Lane, name: str, cells: list[CellShape]) -> list[CellTimes]:
    """In a child: measure cells on a GPU backend."""
    return create(name, threads=1, kernels="metal").measure_cells(cells)


def _measure_decoding(checks: list[Check]) -> dict[str, Any] | None:
    """Measure the decoders, MLX on the GPU and the native one; None if one of them fails."""
    speeds = dict[str, float]()

    def measure() -> tuple[bool, str]:
        for name in ("mlx:gpu", "mlx:cpu"):
            with Child(promises=False) as child:
                speeds[name] = child.call(LIMIT_S, measure_decoder, name, DECODE_S)
        return True, ", ".join(f"{name} {speed:,.0f} tokens/s" for name, speed in speeds.items())

    expected = f"both write tokens of {DECODED}, so that generate and serve take the faster one"
    consequence = f"they take the CPU below {CPU_DECODES:,} parameters"
    checks.append(check_child("decoders", measure, expected, consequence, CheckResult.WARN))
    if len(speeds) < 2:
        return None
    size = param_count(load_architecture(DECODED))
    return {"model": DECODED, "n_params": size, "tokens_per_s": speeds}


def _measure(
    measured: MeasuredGradients, name: str, form: str, gradients: int, expected: Gradient
) -> None:
    """Add checks and speeds of one backend with one implementation of the kernels."""
    title, speeds, otherwise = f"backend {name}", measured.tokens_per_s, CheckResult.FAIL
    consequence = float32.user_note() or (
        f"--workers {name} cannot be trained here; `mlxhog parity {MODEL}` names the operators"
    )
    if form == "metal":
        title, speeds, otherwise = f"{title}, Metal kernels", measured.metal, CheckResult.WARN
        consequence = f"--kernels auto is eager on {name}, and metal fails"
    results = list[Gradient]()

    def measure() -> tuple[bool, str]:
        with ExitStack() as stack:
            children = [stack.enter_context(Child()) for _ in range(1 + (name in GPU_ENGINES))]
            for child in children:
                child.start(compute_gradient, name, form)
            results.extend([child.await_result(LIMIT_S) for child in children])
        with Child(promises=False) as child:  # as fast as in training
            speed = child.call(LIMIT_S, measure_speed, name, form, gradients)["tokens_per_s"]
        error, where = max((_error(results[0][key], expected[key]), key) for key in expected)
        if ok := error <= ALLOWED:
            speeds[name] = speed
        return ok, f"error {error:.1g} ({where}), {speed:,.0f} tokens/s with one thread"

    measured.checks.append(check_child(title, measure, _EXPECTED, consequence, otherwise))
    if len(results) == 2:
        same = all(results[0][key].tobytes() == results[1][key].tobytes() for key in expected)
        measured.repeats.setdefault(name, {})[form] = same
        measured.checks.append(
            check(
                f"gradients of {name}, kernels {form}",
                same,
                "the same bits" if same else "other bits in the second process",
                "the same bits in two processes",
                f"no --determinism record with {name}",
                CheckResult.WARN,
            )
        )


def _error(actual: NDArray[Any], expected: NDArray[Any]) -> float:
    """Return the largest difference as a share of the largest entry; infinite with a NaN."""
    off = np.abs(actual.astype(np.float64) - expected).max()
    return float(off / max(np.abs(expected).max(), 1e-30)) if np.isfinite(off) else float("inf")


def reference() -> Gradient:
    """Return the loss ("loss") and the gradient of every parameter in float64."""
    return _gradient(NumPyEngine())


def compute_gradient(lane: Lane, name: str, form: str) -> Gradient:
    """In a child: return the loss and gradients of a backend's worker."""
    return _gradient(FrameworkEngine(name, form, 1))


def measure_speed(
    lane: Lane, name: str, form: str, gradients: int, model: str = MODEL, limit_s: float = math.inf
) -> dict[str, float]:
    """In a child: return the seconds of the first gradient, start included, and then tokens/s.

    The speed is the faster half's of `gradients`, or of those within `limit_s`.
    """
    began_s = time.perf_counter()
    engine = FrameworkEngine(name, form, 1)
    _gradient(engine, model)
    first_s = time.perf_counter() - began_s
    batch = Batch(*_tokens(), BATCH * LENGTH)
    times = times_of(
        engine.backend, batch, lambda times: len(times) >= gradients or sum(times) >= limit_s
    )
    return {"first_gradient_s": first_s, "tokens_per_s": BATCH * LENGTH / faster_half(times)}


def measure_decoder(lane: Lane, name: str, seconds: float) -> float:
    """In a child: return a backend's tokens/s for one sequence, alone on this machine."""
    backend, model = create_alone(name), load_architecture(DECODED)
    backend.load(model, init_params(model, 0))
    token, state, times = np.ones((1, 1), np.int32), None, list[float]()
    while len(times) < 5 or sum(times) < seconds:
        began_s = time.perf_counter()
        _, state = backend.logits(token, state)
        times.append(time.perf_counter() - began_s)
    return 1.0 / faster_half(times)


def _gradient(engine: ModelEngine, name: str = MODEL) -> Gradient:
    model = load_architecture(name)
    engine.load(model, init_params(model, 0))
    loss, grads = engine.differentiate(*_tokens())
    return {"loss": np.array(loss), **{name: np.array(grad) for name, grad in grads.items()}}


def _tokens() -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    tokens = np.random.default_rng(0).integers(0, 256, (BATCH, LENGTH + 1), dtype=np.int32)
    return np.ascontiguousarray(tokens[:, :-1]), np.ascontiguousarray(tokens[:, 1:])
