"""Common parts of optimizers: interface (`Optimizer`), `Target`, numbers of an update (`Step`).

A step is applied to a target: shared parameters, their locks, the optimizer's state. `rule_of`
turns the choice of a run into the rule that takes its steps. One class may be both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import singledispatch
from typing import NamedTuple

import numpy as np

from mlxhog import _native
from mlxhog.arena.layout import place_state
from mlxhog.arena.process import monotonic_ns
from mlxhog.arena.workers import Entry
from mlxhog.config.optimizer import OptimizerChoice
from mlxhog.errors import ShapeError
from mlxhog.optim import metal_steps
from mlxhog.optim.metal_steps import MetalSteps
from mlxhog.optim.updates import Float32, Grads, Int32, Rows, Slot, check, row_width

Coefficients = tuple[tuple[float, float, float], ...]
"""(a, b, c) of each odd quintic a s + b s^3 + c s^5."""

Polar = Callable[[Sequence[Float32], Sequence[float], Coefficients], list[Float32]]
"""`polar(xs, scales, coefficients)`: each x orthogonalised, times its scale; see `optim.muon`."""


class StepTrace(NamedTuple):
    """The last two steps of all workers, (n,) float32, shared and laid out as the parameters.

    Of a dense parameter they are the last step and the one before, element by element. Parameters
    that are written by rows are not recorded: their elements stay 0.
    """

    last: Float32
    prev: Float32


class StepWatch:
    """Tells the time to compute steps apart from the time to write them, in a worker's entry.

    A rule that computes a direction writes it in a pass of its own, which counts as writing. The
    fused pass of AdamW or momentum computes and writes at once: it counts as computing. Waits for
    locks count as neither.
    """

    def __init__(self, entry: Entry) -> None:
        """Count in `entry.optimizer_ns`."""
        self._entry, self._written_ns = entry, 0

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Count a block, without the writes in it."""
        began_ns, before_ns = self._now_ns(), self._written_ns
        yield
        spent_ns = self._now_ns() - began_ns - (self._written_ns - before_ns)
        self._entry.optimizer_ns += max(0, spent_ns)  # threads may wait for locks at once

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Leave out a block."""
        began_ns = self._now_ns()
        yield
        self._written_ns += self._now_ns() - began_ns

    def _now_ns(self) -> int:
        """A clock that stands still while this worker waits."""
        return monotonic_ns() - self._entry.wait_ns


@dataclass(frozen=True)
class Target:
    """The part of the arena that one optimizer step uses.

    Attributes:
        flat: (n,) float32, the whole parameter segment, shared.
        slots: every parameter by name.
        locks: this worker's locks; may be None unless `mode` is lossless.
        mode: a value of `updates.WRITE_MODES`, the arena's.
        private: this worker's state by segment name, each (n,) float32, laid out as `flat`, or by
            `places`.
        shared: state of all workers by segment name, with the same layout.
        decay: names of the parameters that weight decay applies to.
        metal: applies the steps by Metal kernels; None applies them by native code.
        pending: (n,) float32 of this worker, laid out as `flat`: steps are added to it, and the
            parameters are only read, without a lock. None adds steps to the parameters.
        record: takes the steps that are added to dense parameters, under the same locks.
        places: private segments that are not laid out as `flat`, name -> parameter -> place.
        watch: counts the time of steps; None counts nothing.
        polar: orthogonalises on the worker's own device; None does so on the CPU.
        threads: of one pass over a dense parameter; the result does not depend on their number.
    """

    flat: Float32
    slots: Mapping[str, Slot]
    locks: _native.Locks | None
    mode: int
    private: Mapping[str, Float32]
    shared: Mapping[str, Float32]
    decay: frozenset[str]
    metal: MetalSteps | None = None
    pending: Float32 | None = None
    record: StepTrace | None = None
    places: Mapping[str, Mapping[str, Slot]] = field(default_factory=dict)
    watch: StepWatch | None = None
    polar: Polar | None = None
    threads: int = 1

    def moments(self, *, shared: bool) -> Mapping[str, Float32]:
        """The optimizer's state by segment name: shared by all workers, or private."""
        return self.shared if shared else self.private

    def state(self, name: str, slot: Slot) -> Float32:
        """One parameter's part of a private segment, in its shape there."""
        return parameter(self.private[name], self.places.get(name, self.slots)[slot.name])

    def pairs(self, grads: Grads) -> list[tuple[Slot, Float32 | Rows]]:
        """Each gradient with its slot and summed rows; all are checked before the first write."""
        return list(self._pairs(grads))

    def _pairs(self, grads: Grads) -> Iterator[tuple[Slot, Float32 | Rows]]:
        for name, grad in grads.items():
            slot = self.slots.get(name)
            if slot is None:
                raise ShapeError(
                    f"gradient for {name!r}, which is not a parameter of this arena; "
                    "build the model and the arena from the same config"
                )
            check(slot, grad)
            yield slot, grad.coalesced() if isinstance(grad, Rows) else grad

    def apply(
        self,
        rule: metal_steps.Rule,
        slot: Slot,
        grad: Float32 | Rows,
        state: Sequence[Float32],
        hp: Float32,
        step: Step,
    ) -> None:
        """Take a native step by the slot's exclusion unit and the gradient's form.

        Args:
            rule: by its name.
            slot: the parameter.
            grad: its gradient.
            state: the moments of the rule, laid out as `flat`.
            hp: (8,) float32, the rates; `mlxhog.metal.kernels.step_rules`.
            step: the numbers of the update.
        """
        m, v = (*state, None, None)[:2]
        common = (rule.name, self.locks, self.mode, self.flat, slot.offset)
        index, values = (grad.index, grad.values) if isinstance(grad, Rows) else (None, grad)
        if index is not None or slot.kind == "rows":
            _native.step_rows(
                *common, row_width(slot), slot.row_word0, index, values, m, v, hp,
                grad_scale=step.grad_scale, seed=step.seed, pending=self.pending,
            )  # fmt: skip
        else:
            last, prev = self.record or (None, None)
            _native.step(
                *common, values, m, v, hp, grad_scale=step.grad_scale, seed=step.seed,
                threads=self.threads, pending=self.pending, last=last, prev=prev,
            )  # fmt: skip

    def writing(self) -> AbstractContextManager[None]:
        """Count a block as the write of finished steps, unless they go to `pending`."""
        if self.watch is None or self.pending is not None:
            return nullcontext()
        return self.watch.writing()

    def add(self, slot: Slot, at: slice | Int32, delta: Float32) -> None:
        """Add a step to distinct rows without locks, for the references: one worker only."""
        written = parameter(self.flat if self.pending is None else self.pending, slot)
        written[at] += delta
        if self.record is not None and slot.kind != "rows" and at == slice(None):
            last, prev = (parameter(flat, slot) for flat in self.record)
            prev[...] = last
            last[...] = delta


def new_state(
    names: Sequence[str], shapes: Mapping[str, Mapping[str, tuple[int, ...]]], floats: int
) -> tuple[dict[str, Float32], dict[str, Mapping[str, Slot]]]:
    """Private state of a worker without an arena, all zero, and the places of a `Target`.

    Args:
        names: an optimizer's `state_segments`.
        shapes: its `state_shapes`.
        floats: length of the parameter segment.
    """
    placed = {name: place_state(shapes[name]) for name in names if name in shapes}
    sizes = {name: placed[name][1] if name in placed else floats for name in names}
    private = {name: np.zeros(size, np.float32) for name, size in sizes.items()}
    return private, {name: slots for name, (slots, _) in placed.items()}


def touched(grad: Float32 | Rows) -> tuple[slice | Int32, Float32]:
    """The rows that a gradient touches, as an index of the parameter, and their gradient."""
    return (grad.index, grad.values) if isinstance(grad, Rows) else (slice(None), grad)


def parameter(flat: Float32, slot: Slot) -> Float32:
    """The view of a parameter in a segment that is laid out as the parameters."""
    return flat[slot.offset : slot.offset + slot.size].reshape(slot.shape)


def float32(value: float) -> np.float32:
    """Round once from float64, as the native steps round their rates."""
    return np.float32(value)


Pairs = Sequence[tuple[Slot, Float32 | Rows]]
"""Parameters with their gradients, checked; rows ascending, each once."""

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Step:
    """The numbers of one update.

    Attributes:
        lr: step size, > 0.
        count: number of updates of the private state, this one included, from 1.
        shared_count: the same count for the shared state.
        seed: chooses the start of the pass; differs between workers and steps.
        grad_scale: factor of every gradient, from clipping.
        feedback: share of a late step that is added in advance, see `mlxhog.optim.delay_feedback`.
    """

    lr: float
    count: int
    shared_count: int
    seed: int
    grad_scale: float
    feedback: float = 0.0


class Optimizer(ABC):
    """One update rule; its state lives in the arena, not in the object."""

    @property
    @abstractmethod
    def state_segments(self) -> tuple[str, ...]:
        """Private state: one segment per worker and name.

        It is laid out as the parameters, unless `state_shapes` gives it other shapes.
        """

    @property
    @abstractmethod
    def shared_segments(self) -> tuple[str, ...]:
        """Shared state: one segment per name, laid out as the parameters."""

    @property
    @abstractmethod
    def metal_rule(self) -> metal_steps.Rule:
        """The Metal kernels of this rule, for targets with `metal`."""

    @abstractmethod
    def update(self, target: Target, pairs: Pairs, step: Step) -> None:
        """Apply one update of some parameters, with the promises of `step`."""

    def state_shapes(self, shapes: Shapes) -> Mapping[str, Shapes]:
        """Shapes of private state that is not laid out like the parameters.

        Args:
            shapes: of the parameters, by name.

        Returns:
            Segment -> parameter -> shape; segments laid out like the parameters are missing.
        """
        return {}

    def step(
        self,
        target: Target,
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

        Args:
            target: the parameters, their locks, and the state.
            grads: per parameter a float32 gradient of its shape, or `Rows`; names may be missing.
            lr: step size, > 0.
            step: number of updates of the private state, this one included, from 1.
            seed: chooses the start of the pass; differs between workers and steps.
            grad_scale: factor of every gradient, from clipping.
            shared_step: the same count for the shared state; None is `step`.
            feedback: of `Step`.

        Raises:
            ShapeError: a gradient does not belong to its parameter; nothing has been written.

        Concurrency: the parameters (and shared state) are written as the arena's mode promises;
        the step is computed from the values under the same lock that guards the write.
        """
        numbers = Step(
            lr=lr,
            count=step,
            shared_count=step if shared_step is None else shared_step,
            seed=seed,
            grad_scale=grad_scale,
            feedback=feedback,
        )
        with nullcontext() if target.watch is None else target.watch.computing():
            self.update(target, target.pairs(grads), numbers)


class Fused(Optimizer):
    """A rule that computes and writes its step in one native pass, or one launch.

    Attributes:
        weight_decay: decoupled or not, as `rates` says.
        native: False takes the rule's formula in NumPy, for one worker only.
    """

    weight_decay: float
    native: bool

    @abstractmethod
    def rates(self, step: Step, weight_decay: float) -> Float32:
        """The rates of a step, (8,) float32; `mlxhog.metal.kernels.step_rules`."""

    def update(self, target: Target, pairs: Pairs, step: Step) -> None:
        """Apply one update."""
        rule = self.metal_rule
        moments = target.moments(shared=bool(rule.shared))
        state = {name: moments[name] for name in (*rule.private, *rule.shared)}
        decayed, plain = self.rates(step, self.weight_decay), self.rates(step, 0.0)
        if target.metal is not None:
            target.metal.apply(rule, pairs, state, decayed, step.grad_scale, target.record)
            return
        for slot, grad in pairs:
            hp = decayed if slot.name in target.decay else plain
            if self.native:
                target.apply(rule, slot, grad, list(state.values()), hp, step)
            else:
                at, g = touched(grad)
                w, *parts = (parameter(flat, slot) for flat in (target.flat, *state.values()))
                scaled = np.float32(step.grad_scale) * g
                delta, *new = rule.formula(hp, w[at], scaled, True, *(part[at] for part in parts))
                for part, value in zip(parts, new, strict=True):
                    part[at] = value
                target.add(slot, at, delta)


class Around(Optimizer):
    """An optimizer around a rule; its state and its kernels are those of the rule."""

    def __init__(self, rule: Optimizer) -> None:
        """Wrap a rule."""
        self.rule = rule

    @property
    def state_segments(self) -> tuple[str, ...]:
        """Those of the rule."""
        return self.rule.state_segments

    @property
    def shared_segments(self) -> tuple[str, ...]:
        """Those of the rule."""
        return self.rule.shared_segments

    @property
    def metal_rule(self) -> metal_steps.Rule:
        """That of the rule."""
        return self.rule.metal_rule

    def state_shapes(self, shapes: Shapes) -> Mapping[str, Shapes]:
        """Those of the rule."""
        return self.rule.state_shapes(shapes)


class OwnOptimizer(OptimizerChoice, Optimizer):
    """An optimizer of one's own: one class has the numbers and takes the steps.

    It is a frozen dataclass with a `name`, a line `about` it, and `option` fields for its numbers.
    Without state it needs `update` only; see examples/my_optimizer.py.
    """

    state_segments: tuple[str, ...] = ()
    shared_segments: tuple[str, ...] = ()
    metal_rule: metal_steps.Rule = metal_steps.SGD


@dataclass(frozen=True, kw_only=True)
class Use:
    """Values of a run that an optimizer needs beside its numbers.

    Attributes:
        hidden: names of the model's hidden matrices.
        threads: number of threads that the rule may use.
        seed: of the run.
        shared: whether all workers have one pair of moments.
    """

    hidden: frozenset[str] = frozenset()
    threads: int = 1
    seed: int = 0
    shared: bool = False


@singledispatch
def rule_of(choice: OptimizerChoice, use: Use) -> Optimizer:
    """Return the rule that takes the steps of a choice.

    A choice that is an `Optimizer` itself takes them. For others the file of the rule registers a
    function that builds it from the choice: `@rule_of.register(optimizers.Lion)`.
    """
    assert isinstance(choice, Optimizer), f"no file of mlxhog.optim registers {choice.name}"
    return choice
