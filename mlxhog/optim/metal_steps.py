"""Optimizer steps through Metal kernels: from NumPy gradients to launches on the adopted arena.

Neighbouring dense parameters share a launch; each parameter with touched rows has its own. The
parameters and the segments of moments, private or shared, are adopted once, and kernels write them
in place; only gradients and rates are copied to the engine. A launch ends before the next begins.

A GPU uses the arena in place only if the system lets it import the memory without a copy
(`NotShared`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mlxhog.arena import Arena
from mlxhog.errors import EnvironmentLacks, ShapeError
from mlxhog.metal import engine as engines
from mlxhog.metal.engine import Engine, adoptable
from mlxhog.metal.kernels.adds import dense_axpy
from mlxhog.metal.kernels.arguments import LEAST
from mlxhog.metal.kernels.step_rules import FLAG_FLOATS, HP
from mlxhog.metal.kernels.steps import (
    ADAM,
    ADAM_SHARED,
    MOMENTUM,
    MUON,
    MUON_SHARED,
    RECORDED,
    SGD,
    Rule,
    channel_scale_apply,
    muon_direction,
)
from mlxhog.optim.gradients import Float32, Rows
from mlxhog.optim.updates import Slot

__all__ = [
    "ADAM", "ADAM_SHARED", "MOMENTUM", "MUON", "MUON_SHARED", "RECORDED", "SGD", "MetalSteps",
    "NotShared", "Rule", "check_live_reads", "decay_flags", "runs", "steps_of_worker",
]  # fmt: skip
_COPY = "one of CPU and GPU does not see the writes of the other"


class NotShared(EnvironmentLacks):
    """A GPU cannot use this arena in place; the message is the reason."""


def check_live_reads(arena: Arena, slot: int) -> None:
    """Test that MLX on the GPU sees changes of the arena's parameters.

    Args:
        arena: of the run.
        slot: of the worker that will read them.

    Raises:
        NotShared: it does not see them.
    """
    try:
        gpu = engines.create("mlx")
        _refuse_straddling(arena, ["params"])
        params = gpu.adopt(adoptable(arena.params))
        shared = engines.shares_memory(gpu, params, arena.params, arena.layout.self_check(slot))
    except EnvironmentLacks as error:
        raise NotShared(str(error)) from error
    if not shared:
        raise NotShared(_COPY)


def steps_of_worker(
    arena: Arena,
    rule: Rule,
    decay: frozenset[str],
    *,
    engine: str,
    threads: int,
    slot: int,
    recorded: Sequence[str],
) -> MetalSteps:
    """Return the writer of a worker's steps, with imported memory and built kernels.

    Args:
        arena: of the run.
        rule: of the optimizer.
        decay: names of the parameters that weight decay applies to.
        engine: one of `mlxhog.metal.engine.NAMES`.
        threads: OS threads of an emulated engine.
        slot: of the worker; a strategy with one state for all uses that of slot 1.
        recorded: segments that take the last steps, see `Target.record`.

    Raises:
        NotShared: the engine cannot import the memory, and is not emulated.
        EnvironmentLacks: the GPU, or the C++ compiler of an emulated one, is missing.
        MetalError: a kernel does not compile.
    """
    gpu = engines.create(engine, threads=threads)
    private = (f"{name}.{one}" for name in rule.private for one in {slot, 1})
    names = [*private, *rule.shared, *recorded]
    try:
        if not gpu.emulated:
            _refuse_straddling(arena, ["params", *names])
        steps = MetalSteps(gpu, arena.params, arena.layout.slots, decay)
        for name in names:  # now, while the CPU can still take over
            steps.adopt(arena.segment(name))
        at = arena.layout.self_check(slot)
        shared = engines.shares_memory(gpu, steps.arena, arena.params, at)
    except EnvironmentLacks as error:
        if gpu.emulated:
            raise
        raise NotShared(str(error)) from error
    if not shared:
        raise NotShared(_COPY)
    steps.warm_up(rule)
    if recorded:
        steps.warm_up(RECORDED["sgd" if rule.muon else rule.name])
    return steps


def _refuse_straddling(arena: Arena, names: Sequence[str]) -> None:
    """Refuse segments that no GPU should import as one range; see `mlxhog.arena.layout`.

    Raises:
        EnvironmentLacks: a segment straddles two pieces.
    """
    for name in names:
        if arena.layout.straddles(name):
            nbytes = arena.layout.segments[name].nbytes
            raise EnvironmentLacks(
                f"segment {name} has {nbytes:,} bytes, and shared memory of macOS consists of "
                "pieces of 4 GiB, which a GPU imports one by one; smaller models fit"
            )


class MetalSteps:
    """Writes of one engine to the parameters. Belongs to the worker that made it."""

    def __init__(
        self, engine: Engine, flat: Float32, slots: Mapping[str, Slot], decay: frozenset[str]
    ) -> None:
        """Adopt the parameters.

        Args:
            engine: runs the kernels.
            flat: (n,) float32, the whole parameter segment, shared.
            slots: every parameter by name.
            decay: names of the parameters that weight decay applies to.

        Raises:
            EnvironmentLacks: the engine cannot import this memory.
            ShapeError: a parameter does not start on a boundary of 32 floats.
        """
        self.engine = engine
        self.arena = engine.adopt(adoptable(flat))
        self._decays = engine.array(decay_flags(slots, decay, flat.size))
        self._failures = engine.array(np.zeros(LEAST, np.uint32))
        self._adopted: dict[int, Any] = {}

    def adopt(self, flat: Float32) -> Any:
        """Return a segment of the arena as the engine's own array; adopted once.

        Raises:
            EnvironmentLacks: the engine cannot import this memory.
        """
        address = flat.ctypes.data
        if address not in self._adopted:
            self._adopted[address] = self.engine.adopt(adoptable(flat))
        return self._adopted[address]

    def apply(
        self,
        rule: Rule,
        pairs: Sequence[tuple[Slot, Float32 | Rows]],
        state: Mapping[str, Float32],
        hp: Float32,
        grad_scale: float,
        record: tuple[Float32, Float32] | None = None,
    ) -> None:
        """Apply one step of a rule, in place.

        Args:
            rule: of the kernels.
            pairs: parameters with their gradients, rows ascending and each once.
            state: the rule's segments by name, each (n,) float32, laid out as the parameters.
            hp: (8,) float32, the rule's rates.
            grad_scale: factor of every gradient.
            record: takes the steps of dense parameters, see `Target.record`.

        Raises:
            MetalError: a kernel failed.
            KeyError: there is a record, and no kernel of this rule writes one.

        Concurrency: no add is lost beside others of one GPU, nor in emulation; `mlxhog doctor`
        measures whether one is lost beside a CPU. Only this worker may write its private segments;
        another process that reads one meanwhile sees each element before or after the step.
        """
        rates = {"decays": self._decays, "hp": self.engine.array(hp), "grad_scale": grad_scale}
        for run in runs(pairs):
            slot, grad = run[0]
            if isinstance(grad, Rows):
                self._rows(rule, slot, grad, state, rates)
            elif record is None or slot.kind == "rows":
                self._dense(rule, run, state, rates)
            else:
                recorded = {**state, "last": record[0], "prev": record[1]}
                self._dense(RECORDED[rule.name], run, recorded, rates)

    def _dense(
        self,
        rule: Rule,
        run: Sequence[tuple[Slot, Any]],
        state: Mapping[str, Float32],
        rates: Mapping[str, Any],
    ) -> None:
        """One launch over neighbouring parameters; the padding between them has gradient zero."""
        first, last = run[0][0], run[-1][0]
        staged = np.zeros(last.offset + last.size - first.offset, np.float32)
        for slot, grad in run:
            at = slot.offset - first.offset
            staged[at : at + slot.size] = grad.reshape(-1)
        x = {"g": self.engine.array(staged), **self._state(rule, state)}
        self.engine.run(rule.dense(x, **rates, offset=first.offset))

    def _rows(
        self,
        rule: Rule,
        slot: Slot,
        grad: Rows,
        state: Mapping[str, Float32],
        rates: Mapping[str, Any],
    ) -> None:
        """One launch over the touched rows of a parameter."""
        touched = {
            "rows": self.engine.array(grad.index),
            "g": self.engine.array(grad.values),
        }
        x = {**touched, **self._state(rule, state)}
        self.engine.run(rule.rows(x, **rates, offset=slot.offset, height=slot.shape[0]))

    def directions(
        self,
        pairs: Sequence[tuple[Slot, Float32]],
        m_flat: Float32,
        hp: Float32,
        grad_scale: float,
        *,
        shared: bool,
    ) -> list[Float32]:
        """Update the means of some matrices in place; return Muon's directions x, on the host.

        Args:
            pairs: parameters with their gradients.
            m_flat: (n,) float32, the means, laid out as the parameters.
            hp: (8,) float32, Muon's rates.
            grad_scale: factor of every gradient.
            shared: whether other workers write the same means.

        Raises:
            MetalError: the kernel failed.
        """
        rates = {"hp": self.engine.array(hp), "grad_scale": grad_scale}
        means = {"m": self.adopt(m_flat), **({"failures": self._failures} if shared else {})}
        directions = []
        for slot, grad in pairs:
            x = {"g": self.engine.array(grad), **means}
            outputs = self.engine.run(muon_direction(x, **rates, offset=slot.offset))
            directions.append(self.engine.host(outputs["x_out"]).reshape(slot.shape))
        return directions

    def scale_channels(
        self, slot: Slot, g: Float32, factors: Float32, *, coef: float, decay: float
    ) -> None:
        """Apply APOLLO's step of a matrix, `w += coef * (g * factors) - decay * w`, in place.

        Args:
            slot: the matrix.
            g: (r, c) float32.
            factors: (r, 1), (1, c) or (1, 1) float32.
            coef: minus the step size.
            decay: step size times weight decay.

        Raises:
            MetalError: the kernel failed.
        """
        along_rows, along_columns = factors.shape
        axis = 0 if along_rows > 1 else 1 if along_columns > 1 else None
        s = self.engine.array(factors.reshape(-1))
        self.engine.run(
            channel_scale_apply(
                self.arena,
                self.engine.array(g),
                s,
                axis=axis,
                coef=coef,
                decay=decay,
                offset=slot.offset,
            )
        )

    def add(self, offset: int, values: Float32) -> None:
        """Add values to floats of the parameter segment from `offset` on, by the steps' kernel."""
        self.engine.run(dense_axpy(self.arena, self.engine.array(values), scale=1.0, offset=offset))

    def warm_up(self, rule: Rule) -> None:
        """Build the kernels of a rule, by launches on scratch memory."""
        array = self.engine.array
        n = FLAG_FLOATS
        x = {name: array(np.zeros(n, np.float32)) for name in ("arena", *rule.written)}
        x |= {"g": array(np.zeros((1, n), np.float32))} | self._failed(rule)
        rates = {"decays": array(np.zeros(1, np.uint8)), "hp": array(np.ones(HP, np.float32))}
        self.engine.run(rule.dense(x, **rates, offset=0))
        if rule.records:
            return
        if rule.muon:
            means = {"g": x["g"], "m": x["m"], **self._failed(rule)}
            self.engine.run(muon_direction(means, hp=rates["hp"], offset=0))
            self.warm_up(SGD)
        x |= {"rows": array(np.zeros(1, np.int32))}
        self.engine.run(rule.rows(x, **rates, offset=0, height=1))

    def _state(self, rule: Rule, state: Mapping[str, Float32]) -> dict[str, Any]:
        """The arrays that a launch writes in place."""
        written = {name: self.adopt(state[name]) for name in rule.written}
        return {"arena": self.arena, **written, **self._failed(rule)}

    def _failed(self, rule: Rule) -> dict[str, Any]:
        return {"failures": self._failures} if rule.shared else {}


def runs(
    pairs: Sequence[tuple[Slot, Float32 | Rows]],
) -> Iterator[list[tuple[Slot, Float32 | Rows]]]:
    """Group gradients into launches: neighbouring dense ones together, each `Rows` alone."""
    run: list[tuple[Slot, Float32 | Rows]] = []
    for slot, grad in sorted(pairs, key=lambda pair: pair[0].offset):
        alone = isinstance(grad, Rows)
        if run and (alone or not _follows(slot, run[-1][0])):
            yield run
            run = []
        run.append((slot, grad))
        if alone:
            yield run
            run = []
    if run:
        yield run


def _follows(slot: Slot, before: Slot) -> bool:
    """Whether one launch can write both."""
    return slot.offset == _next_boundary(before) and slot.kind == before.kind


def _next_boundary(slot: Slot) -> int:
    end = slot.offset + slot.size
    return end + -end % FLAG_FLOATS


def decay_flags(slots: Mapping[str, Slot], decay: frozenset[str], floats: int) -> Any:
    """Whether weight decay applies, uint8, one flag per 32 floats of the parameter segment.

    Raises:
        ShapeError: a parameter does not start on a boundary of 32 floats.
    """
    flags = np.zeros(-(-floats // FLAG_FLOATS), np.uint8)
    for name, slot in slots.items():
        if slot.offset % FLAG_FLOATS:
            raise ShapeError(
                f"parameter {name!r} starts at float {slot.offset}; Metal steps want parameters at "
                f"multiples of {FLAG_FLOATS}, as in an arena's layout"
            )
        begin = slot.offset // FLAG_FLOATS
        flags[begin : _next_boundary(slot) // FLAG_FLOATS] = name in decay
    return flags
