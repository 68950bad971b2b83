"""Common parts of optimizers: `Optimizer`, `UpdateTarget`, and an update's `UpdateStep`.

An update is applied to a target: shared parameters, their locks, the optimizer's state. Native code
computes most directions element-wise and writes them in the same pass; other optimizers compute
theirs in NumPy, and `write` applies them by the same kernels, locks and write modes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeAlias

from mlxhog import _native
from mlxhog.errors import ShapeError
from mlxhog.optim.gradients import Float32, Grads, Rows, dense
from mlxhog.optim.updates import WRITE_MODES, check, row_width

if TYPE_CHECKING:
    from mlxhog.arena.layout import Slot
    from mlxhog.arena.workers import Entry
    from mlxhog.optim.metal_steps import MetalSteps

OPERATIONS = 150
"""Matmul FLOPs that cost as much as one parameter element under AdamW (average, norm, update)."""

Coefficients = tuple[tuple[float, float, float], ...]
"""(a, b, c) of each odd quintic a s + b s^3 + c s^5."""

Orthogonalize = Callable[[Sequence[Float32], Sequence[float], Coefficients], list[Float32]]
"""`f(xs, scales, coefficients)`: each x orthogonalized, perhaps in place, times its scale."""

Pairs: TypeAlias = "Sequence[tuple[Slot, Float32 | Rows]]"
"""Parameters with their gradients, checked; rows ascending, each once."""

Shapes = Mapping[str, tuple[int, ...]]


class StepTrace(NamedTuple):
    """The last two updates of all workers, (n,) float32, shared and laid out as the parameters.

    Parameters that are written by rows are not traced: their elements stay 0.
    """

    last: Float32
    prev: Float32  # the update before


class Write(NamedTuple):
    """How a direction u is written: `w -= lr * (scale * u + coupled * w) + decoupled * w`."""

    lr: float
    scale: float = 1.0
    coupled: float = 0.0
    decoupled: float = 0.0


class ElementwiseUpdate(NamedTuple):
    """An element-wise update: coefficients of the write, and of the direction's kernel."""

    write: Write
    rates: tuple[float, ...] = ()


class DirectionKernel(NamedTuple):
    """A direction that native code computes, `metal/native/updates/moments.h`."""

    name: str  # "gradient" is the gradient itself
    state: tuple[str, ...] = ()  # names of the segments of its moments
    shared: bool = False  # whether all workers have one set of them


GRADIENT = DirectionKernel("gradient")


@dataclass(frozen=True)
class UpdateStep:
    """The scalars of one update."""

    lr: float  # learning rate, > 0
    count: int  # number of updates of the private state, this one included, from 1
    shared_count: int  # the same count for the shared state
    seed: int  # chooses the start of the pass; differs between workers and steps
    grad_scale: float  # factor of every gradient, from clipping
    feedback: float = 0.0  # share of an update that is added in advance (`delay_feedback.py`)


class StepWatch:
    """Measures the time to compute updates, without that to write them, in `entry.optimizer_ns`.

    A fused pass counts as computing, the write of a finished direction as writing; waits for locks
    count as neither.
    """

    def __init__(self, entry: Entry) -> None:
        self._entry, self._written_ns = entry, 0

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Measure a block, without the writes in it."""
        began_ns = self._now_ns() - self._written_ns
        yield
        spent_ns = self._now_ns() - self._written_ns - began_ns
        self._entry.optimizer_ns += max(0, spent_ns)  # threads may wait for locks at once

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Leave out a block."""
        began_ns = self._now_ns()
        yield
        self._written_ns += self._now_ns() - began_ns

    def _now_ns(self) -> int:
        """A clock that stops while this worker waits."""
        return monotonic_ns() - self._entry.wait_ns


@dataclass(frozen=True)
class UpdateTarget:
    """The part of the arena that an optimizer reads and writes.

    State is laid out as `flat`, or by `places`. With `pending` the parameters are only read,
    without a lock. Updates are traced under the locks of the parameters.
    """

    flat: Float32  # (n,) float32, the parameter segment with its tables, shared
    slots: Mapping[str, Slot]  # every parameter by name
    locks: _native.Locks | None  # this worker's; may be None unless `mode` is lossless
    mode: int  # a value of `updates.WRITE_MODES`, the arena's
    private: Mapping[str, Float32]  # this worker's state by segment, (n,) float32 each
    shared: Mapping[str, Float32]  # that of all workers, likewise
    decay: frozenset[str]  # names of the parameters that weight decay applies to
    metal: MetalSteps | None = None  # writes by Metal kernels; None by native code
    pending: Float32 | None = None  # (n,) float32 of this worker, written in place of `flat`
    record: StepTrace | None = None  # of the updates of dense parameters
    places: Mapping[str, Mapping[str, Slot]] = field(default_factory=dict)  # of state, by parameter
    watch: StepWatch | None = None
    orthogonalize: Orthogonalize | None = None  # on the worker's device; None: on the CPU
    threads: int = 1  # of one pass over a dense parameter, whose result is the same

    @classmethod
    def alone(
        cls, rule: Optimizer, flat: Float32, slots: Mapping[str, Slot], decay: frozenset[str]
    ) -> Self:
        """Make the target of one process without an arena: no locks, state of zeros as `flat`."""
        import numpy as np

        from mlxhog.arena.layout import place_state

        shapes = rule.state_shapes({name: slot.shape for name, slot in slots.items()})
        placed = {name: place_state(shapes[name]) for name in rule.state_segments if name in shapes}
        sizes = dict.fromkeys((*rule.state_segments, *rule.shared_segments), flat.size)
        sizes |= {name: size for name, (_, size) in placed.items()}
        state = {name: np.zeros(size, flat.dtype) for name, size in sizes.items()}
        return cls(
            flat=flat,
            slots=slots,
            locks=None,
            mode=WRITE_MODES["racy"],
            private={name: state[name] for name in rule.state_segments},
            shared={name: state[name] for name in rule.shared_segments},
            decay=decay,
            places={name: places for name, (places, _) in placed.items()},
        )

    def state(self, name: str, slot: Slot) -> Float32:
        """One parameter's part of a private segment, in its shape there."""
        return parameter(self.private[name], self.places.get(name, self.slots)[slot.name])

    def pairs(self, grads: Grads) -> list[tuple[Slot, Float32 | Rows]]:
        """Each gradient with its slot and summed rows; all are checked before the first write."""
        pairs: list[tuple[Slot, Float32 | Rows]] = []
        for name, grad in grads.items():
            slot = self.slots.get(name)
            if slot is None:
                raise ShapeError(
                    f"gradient for {name!r}, which is not a parameter of this arena; "
                    "build the model and the arena from the same config"
                )
            check(slot, grad)
            pairs.append((slot, grad.coalesced() if isinstance(grad, Rows) else grad))
        return pairs

    def step(
        self,
        kernel: DirectionKernel,
        pairs: Pairs,
        form: Callable[[bool], ElementwiseUpdate],
        step: UpdateStep,
    ) -> None:
        """Update parameters along the directions of a kernel, in one pass, or one launch.

        `form(decays)` has the coefficients of parameters with and without weight decay.
        """
        forms = {decays: form(decays) for decays in (True, False)}
        of_each = [(slot, grad, forms[slot.name in self.decay]) for slot, grad in pairs]
        with nullcontext() if kernel.state else self.writing():  # a gradient is a direction
            if self.metal is None:
                for slot, grad, own in of_each:
                    self.native(kernel, slot, grad, own, step)
                return
            if kernel.state:
                pairs = [
                    (slot, self.direction(kernel, slot, grad, own.rates, step))
                    for slot, grad, own in of_each
                ]
            self.metal.write(pairs, forms[True].write, forms[False].write, self.record)

    def direction(
        self,
        kernel: DirectionKernel,
        slot: Slot,
        grad: Any,
        rates: tuple[float, ...],
        step: UpdateStep,
    ) -> Any:
        """Update the moments of a parameter, and return its direction without applying it."""
        import numpy as np

        if isinstance(grad, Rows) or self.metal is None:
            u = np.empty_like(grad.values if isinstance(grad, Rows) else grad)
        else:
            u = self.metal.direction(slot)
        target = replace(self, pending=None, record=None)
        if not kernel.shared:
            target = replace(target, locks=None, mode=WRITE_MODES["racy"])
        target.native(
            kernel, slot, grad, ElementwiseUpdate(Write(0.0), rates), step, out=u.reshape(-1)
        )
        return Rows(grad.index, u) if isinstance(grad, Rows) else u

    def native(
        self, kernel: DirectionKernel, slot: Slot, grad: Float32 | Rows, form: ElementwiseUpdate,
        step: UpdateStep, out: Float32 | None = None,
    ) -> None:  # fmt: skip
        """Update a parameter by native code, or leave its direction in `out`."""
        index, values = (grad.index, grad.values) if isinstance(grad, Rows) else (None, grad)
        rows, record = None, self.record or (None, None)
        if index is not None or slot.kind != "dense":
            rows, record = (index, row_width(slot), slot.row_word0, slot.size), (None, None)
        last, prev, pending = (
            None if flat is None else parameter(flat, slot).reshape(-1)
            for flat in (*record, self.pending)
        )
        moments = [
            parameter(self.shared[name], slot) if kernel.shared else self.state(name, slot)
            for name in kernel.state
        ]
        _native.step(
            kernel.name, form.rates, form.write, self.locks, self.mode, self.flat, slot.offset,
            values, [part.reshape(-1) for part in moments], rows=rows, shared=kernel.shared,
            seed=step.seed, threads=self.threads, last=last, prev=prev, pending=pending, out=out,
        )  # fmt: skip

    def probe(self, offset: int, count: int, *, scattered: bool) -> None:
        """Add 1.0 to `count` elements of the arena's lost-update probe, as updates are written.

        `scattered` says whether the run adds to single elements of parameters.
        """
        import numpy as np

        ones = np.ones(count, np.float32)
        if self.metal is not None:
            self.metal.add(offset, ones)
        elif scattered:
            each, whole = np.arange(count, dtype=np.int32), (offset, count, count, None)
            _native.add_at(self.locks, self.mode, self.flat, *whole, each, ones)
        else:
            _native.add(self.locks, self.mode, self.flat, offset, ones)

    def writing(self) -> AbstractContextManager[None]:
        """Measure a block as the write of finished directions, unless they go to `pending`."""
        if self.watch is None or self.pending is not None:
            return nullcontext()
        return self.watch.writing()


def parameter(flat: Float32, slot: Slot) -> Float32:
    """The view of a parameter in a segment that is laid out as the parameters."""
    return flat[slot.offset : slot.offset + slot.size].reshape(slot.shape)


class Optimizer(ABC):
    """An update rule; its state lives in the arena, not in the object."""

    scratch_arrays: int = 0  # arrays of the parameters' size that it has beside its state

    @property
    def state_segments(self) -> tuple[str, ...]:
        """Private state: one segment per worker and name; see also `state_shapes`."""
        return ()

    @property
    def shared_segments(self) -> tuple[str, ...]:
        """Shared state: one segment per name, laid out as the parameters."""
        return ()

    @abstractmethod
    def update(self, target: UpdateTarget, pairs: Pairs, step: UpdateStep) -> None:
        """Apply one update of some parameters, with the promises of `step`."""

    def state_shapes(self, shapes: Shapes) -> Mapping[str, Shapes]:
        """Segment -> parameter -> shape, of private state not laid out as the parameters."""
        return {}

    def cost(self, slot: Slot) -> float:
        """Cost of averaging and updating a parameter, in elements under AdamW."""
        return slot.size

    def step(
        self,
        target: UpdateTarget,
        grads: Grads,
        *,
        lr: float,
        step: int,
        seed: int = 0,
        grad_scale: float = 1.0,
        shared_step: int | None = None,
        feedback: float = 0.0,
    ) -> None:
        """Apply one update, in place.

        Of each parameter `grads` has a float32 gradient of its shape, or `Rows`; names may be
        missing. `step` is the `count` of `UpdateStep`, and `shared_step` its `shared_count`, by
        default the same.

        Raises:
            ShapeError: a gradient does not belong to its parameter; nothing has been written.

        Concurrency: parameters and shared state are written as the arena's mode promises; the
        update is computed under the same lock that guards the write.
        """
        count = step if shared_step is None else shared_step
        scalars = UpdateStep(lr, step, count, seed, grad_scale, feedback)
        with nullcontext() if target.watch is None else target.watch.computing():
            self.update(target, target.pairs(grads), scalars)


class OptimizerWrapper(Optimizer):
    """An optimizer around another, `rule`, with the state of that and perhaps `own`."""

    own: tuple[str, ...] = ()

    def __init__(self, rule: Optimizer) -> None:
        self.rule, self.scratch_arrays = rule, rule.scratch_arrays

    @property
    def state_segments(self) -> tuple[str, ...]:
        return (*self.rule.state_segments, *self.own)

    @property
    def shared_segments(self) -> tuple[str, ...]:
        return self.rule.shared_segments

    def state_shapes(self, shapes: Shapes) -> Mapping[str, Shapes]:
        return self.rule.state_shapes(shapes)

    def cost(self, slot: Slot) -> float:
        return self.rule.cost(slot)


def directions(
    target: UpdateTarget,
    pairs: Pairs,
    state: Sequence[str],
    formula: Callable[..., tuple[Float32, ...]],
) -> Iterator[tuple[Slot, Float32 | Rows]]:
    """Update the state of parameters, of touched rows only, and yield their directions.

    A formula maps a gradient and its parts of the private segments `state` to a direction and the
    new parts.
    """
    for slot, grad in pairs:
        at, g = (grad.index, grad.values) if isinstance(grad, Rows) else (slice(None), grad)
        parts = [target.state(name, slot) for name in state]
        u, *moved = formula(g, *(part[at] for part in parts))
        for part, value in zip(parts, moved, strict=True):
            part[at] = value
        yield slot, Rows(grad.index, u) if isinstance(grad, Rows) else u


def write(
    target: UpdateTarget,
    directions: Iterable[tuple[Slot, Float32 | Rows]],
    step: UpdateStep,
    *,
    lr: float,
    weight_decay: float = 0.0,
) -> None:
    """Write directions as plain SGD writes a gradient: `w -= lr * (u + weight_decay * w)`."""

    def form(decays: bool) -> ElementwiseUpdate:
        return ElementwiseUpdate(Write(lr, coupled=weight_decay * decays))

    # Metal kernels write all at once, in few launches.
    for batch in ((pair,) for pair in directions) if target.metal is None else [list(directions)]:
        target.step(GRADIENT, batch, form, step)


def split(
    pairs: Pairs, hidden: frozenset[str]
) -> tuple[list[tuple[Slot, Float32]], list[tuple[Slot, Float32 | Rows]]]:
    """Split off the hidden matrices, each with a gradient of its shape; the rest stays as it is."""
    whole = [(slot, dense(grad, slot.shape)) for slot, grad in pairs if slot.name in hidden]
    return whole, [(slot, grad) for slot, grad in pairs if slot.name not in hidden]
