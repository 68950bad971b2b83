"""The state of a run, out of a quiesced arena and into one: checkpoint, resume, other strategies.

A checkpoint may be resumed by another number of workers or with another kind of moments: they begin
with the average of the private ones, or with those of the worker with the most steps if they have
no average; a message says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlxhog import optim
from mlxhog.arena import Arena
from mlxhog.arena.layout import Segment
from mlxhog.arena.ledger import Ledger, Position
from mlxhog.base import mapped
from mlxhog.config.budget import Budget
from mlxhog.display.views import Tell
from mlxhog.errors import CheckpointError
from mlxhog.models.families import trainable_spec
from mlxhog.models.spec import ParamSpec, initial_value
from mlxhog.optim import updates
from mlxhog.optim.delay_feedback import FEEDBACK
from mlxhog.optim.sparsified import RESIDUAL
from mlxhog.strategies import prediction, strategy_of
from mlxhog.training.plan.resume import text_kind
from mlxhog.training.plan.saved_state import taking_over
from mlxhog.training.plan.values import TextPlan
from mlxhog.training.supervisor.monitor import Monitor

MEAN_FLOATS = 1 << 20  # of each worker's moments that are averaged at a time, in private memory
Arrays = Mapping[str, NDArray[np.float32]]
"""By "segment/parameter"."""


def load(plan: TextPlan, arena: Arena, ledger: Ledger, note: Tell = lambda message: None) -> None:
    """Write the first parameters, moments and data position into a new arena."""
    strategy = plan.strategy
    if plan.resumption is None:
        _initialize(plan, arena)
        strategy.begin(arena)
        return
    saved = plan.resumption.checkpoint
    for name, value in saved.params.items():
        mapped.copy(value, arena.param(name))
    waiting = {RESIDUAL: 1.0, FEEDBACK: -1.0}  # updates not written yet, or written in advance
    for key, value in saved.optimizer.items():
        segment, _, name = key.partition("/")
        kind = segment.partition(".")[0]
        is_kept = kind in plan.optimizer.state_segments and not plan.config.reset_optimizer
        if kind in waiting and not is_kept:
            arena.param(name)[...] += np.float32(waiting[kind]) * value
    if plan.sidecar is not None and "cluster" in saved.state:
        from mlxhog.cluster.outer_state import OuterState

        with taking_over(saved.path):
            OuterState(arena).resume(
                saved.optimizer,
                saved.state["cluster"],
                seconds=saved.state["used"]["seconds"],
                is_last=plan.resumption.run.ended_with(saved.path),  # nothing was trained after it
            )
    arena.counters.store("version", int(saved.state["version"]))

    fresh = Position(epoch=0, watermark=0, done=[], torn=0, n=ledger.n)
    at = plan.resumption.position(ledger.n, plan.config.sequences_per_ticket)
    state = {**saved.state, "ledger": at or fresh}
    if plan.resumption.text != "same":  # it counts tickets of the text before
        state["position"] = None
    with taking_over(saved.path):
        position = strategy.resume(arena, ledger, state)
    if position is not None:
        for segment in strategy.kept_segments():
            if segment in prediction.SEGMENTS and plan.config.reset_optimizer:
                continue  # steps of an optimizer that is reset
            _fill(arena, [segment], [segment], saved.optimizer)
    with taking_over(saved.path):
        strategy.begin(arena, position)
    if plan.config.reset_optimizer:
        arena.counters.store("moments_since", arena.counters.load("version"))
        note("the optimizer restarts without moments")
    else:
        steps = {int(slot): int(n) for slot, n in saved.state["opt_steps"].items()}
        moments = _Moments(steps, saved.state.get("moments_since"), saved.optimizer)
        _load_moments(plan, arena, moments, note)
    with taking_over(saved.path):
        strategy.restore_state(arena, state)


def _initialize(plan: TextPlan, arena: Arena) -> None:
    """Draw the first parameters; those that a text or `init_from` gives are written over them."""

    def draw(spec: ParamSpec) -> None:
        arena.param(spec.name)[...] = initial_value(spec, plan.config.seed)

    with ThreadPoolExecutor(2) as pool:  # drawing releases the GIL
        list(pool.map(draw, trainable_spec(plan.model).values()))
    if plan.initial_weights is not None:
        plan.initial_weights.fill(arena, plan.model)


class _Moments(NamedTuple):
    """The optimizer's state of a quiesced run."""

    steps: dict[int, int]  # of each slot's own state
    since: int | None  # version at which shared moments began; None if each worker has its own
    arrays: Arrays


def _moments_of(plan: TextPlan, arena: Arena) -> _Moments:
    """The moments in a quiesced arena, as views."""
    slots = plan.strategy.state_slots(arena)
    segments = [f"{kind}.{slot}" for kind in plan.optimizer.state_segments for slot in slots]
    arrays = {
        f"{segment}/{name}": view
        for segment in (*segments, *plan.optimizer.shared_segments, *plan.strategy.kept_segments())
        for name, view in arena.views(segment).items()
    }
    steps = {slot: arena.workers.entry(slot).opt_step for slot in slots}
    since = arena.counters.load("moments_since") if plan.optimizer.shared_segments else None
    return _Moments(steps, since, arrays)


def change(old: TextPlan, new: TextPlan, arena: Arena) -> None:
    """Lay out the arena of a quiesced run for another strategy, which continues with the moments.

    Both plans have the same kept segments; all others are cleared. Moments are averaged where they
    are; those for which the new layout has no such place are copied first.
    """

    def place(segment: Segment) -> tuple[str, int, int]:
        return segment.name.partition(".")[0], segment.offset, segment.count

    moments, stay = _moments_of(old, arena), set[tuple[str, int, int]]()
    kinds = {*old.optimizer.state_segments, *old.optimizer.shared_segments}
    segments = list(new.layout.segments.values())[new.layout.n_kept :]
    places, arrays = {place(one) for one in segments}, dict[str, NDArray[np.float32]]()
    for key, array in moments.arrays.items():
        where = place(old.layout.segments[key.partition("/")[0]])
        if where[0] in kinds:
            arrays[key] = array if where in places else array.copy()
            stay |= {where} & places
    arena.lay_out(new.layout)
    for segment in segments:
        if place(segment) not in stay:
            arena.segment(segment.name).fill(0)
    filled = _load_moments(new, arena, moments._replace(arrays=arrays), lambda message: None)
    for segment in segments:
        if place(segment) in stay and segment.name not in filled:
            arena.segment(segment.name).fill(0)


def _load_moments(plan: TextPlan, arena: Arena, saved: _Moments, note: Tell) -> set[str]:
    """Give every worker its moments, or the average if the workers have changed.

    Private moments become their average if the new run shares them; shared moments are copied to
    every worker if the new run keeps them private. What is read for a parameter may be what is
    written for it, and nothing else of it. Returns the segments that were filled.
    """
    version, steps, saved_slots = arena.counters.load("version"), saved.steps, list(saved.steps)
    mean_of_all = round(sum(steps.values()) / len(steps))
    since = max(0, version - mean_of_all) if saved.since is None else saved.since
    become_private = saved.since is not None and not plan.optimizer.shared_segments
    # one slot stands for all where their moments are the same
    now = list(plan.strategy.state_slots(arena))
    same = saved_slots == now
    slots = sorted({*range(1, plan.strategy.workers + 1), *now})
    averaged, optimizer = saved_slots, optim.optimizer_of(plan.config)
    if optimizer.has_own_bases:
        averaged = [max(saved_slots, key=lambda slot: steps[slot])]
    filled = set(plan.optimizer.shared_segments)
    with_average = [slot for slot in slots if not (same and slot in steps)]
    alone = [([slot], [slot]) for slot in slots if slot not in with_average]
    for sources, of in (*alone, (averaged, with_average)):
        mean_steps = round(sum(steps[s] for s in sources) / len(sources))
        for slot in of:
            arena.workers.entry(slot).opt_step = version - since if become_private else mean_steps
        for kind in plan.optimizer.state_segments:
            shared_out = kind in (RESIDUAL, FEEDBACK) and not same  # keeps the sum
            segments = [f"{kind}.{s}" for s in (saved_slots if shared_out else sources)]
            names = [f"{kind}.{slot}" for slot in of]
            _fill(arena, names, [*segments, kind], saved.arrays)
            filled.update(names)
            for name in names if shared_out else ():
                arena.segment(name)[...] *= np.float32(len(saved_slots) / len(now))
    for kind in plan.optimizer.shared_segments:
        _fill(arena, [kind], [kind, *(f"{kind}.{s}" for s in saved_slots)], saved.arrays)
    arena.counters.store("moments_since", since)
    if same or become_private or not plan.optimizer.state_segments:
        return filled
    if len(saved_slots) == 1:
        note(f"one worker's moments were copied to each of {len(slots)} workers")
    elif optimizer.has_own_bases:
        note(
            f"the moments of the worker with the most steps were copied to each of {len(slots)} "
            f"workers: {optimizer.name} keeps them in a basis of each worker, without an average"
        )
    else:
        note(f"{len(saved_slots)} workers' moments were averaged for {len(slots)} workers")
    return filled


def _fill(arena: Arena, segments: list[str], sources: list[str], saved: Arrays) -> None:
    """Set segments to the mean of saved ones, parameter by parameter; zero without any."""
    views = [arena.views(segment) for segment in segments]
    for name, view in views[0].items() if views else ():
        parts = [saved[key] for s in sources if (key := f"{s}/{name}") in saved]
        if not parts:
            continue
        if parts[0].shape != view.shape:
            raise CheckpointError(
                f"the checkpoint's optimizer state {sources[0]}/{name} has shape "
                f"{parts[0].shape}, this run keeps {view.shape}; resume with the optimizer's "
                "options that the run has, or add --reset-optimizer to begin without moments"
            )
        if len(parts) == 1:
            for one in views:
                mapped.copy(parts[0], one[name])
            continue
        flat = [part.reshape(-1) for part in parts]  # of our own checkpoints: contiguous
        for first in range(0, view.size, MEAN_FLOATS):
            piece = slice(first, first + MEAN_FLOATS)
            mean = np.mean([mapped.in_memory(part[piece]) for part in flat], axis=0)
            for one in views:
                one[name].reshape(-1)[piece] = mean


def dump(
    plan: TextPlan, arena: Arena, ledger: Ledger, budget: Budget, monitor: Monitor
) -> tuple[Arrays, dict[str, Any]]:
    """The optimizer's arrays and the state that `load` reads, after the strategy has settled.

    No process may write parameters meanwhile; workers may read them.
    """
    counters, config, stored = arena.counters, plan.config, plan.stored
    moments, position = _moments_of(plan, arena), ledger.position()
    outer: dict[str, NDArray[np.float32]] = {}
    cluster: dict[str, Any] = {}
    if plan.sidecar is not None:
        from mlxhog.cluster.outer_state import OuterState

        outer, saved = OuterState(arena).saved()
        cluster = {"cluster": saved}
    earlier = {} if plan.resumption is None else plan.resumption.checkpoint.state
    spent = counters.load("steps"), counters.load("tokens"), monitor.clock.seconds()
    rest: dict[str, float | None] = {
        unit: None if (limit := getattr(budget, unit)) is None else limit - used
        for unit, used in zip(("steps", "tokens", "seconds"), spent, strict=True)
    }
    if budget.steps is not None and config.steps is None:  # converted from epochs or tokens
        rest["batches_per_step"] = plan.strategy.batches_per_step()
        rest["steps_before"] = budget.progress_before + counters.load("steps")
    chosen = strategy_of(stored)
    state: dict[str, Any] = {
        "version": counters.load("version"),
        **cluster,
        "optimizer": optim.optimizer_of(config).name,
        "strategy": {"strategy": "auto"} if chosen is None else chosen.stored(),
        "regime": plan.strategy.name if plan.other else None,
        **({} if moments.since is None else {"moments_since": moments.since}),
        "used": dict(zip(("steps", "tokens", "seconds"), monitor.totals(), strict=True)),
        "budget": {unit: getattr(config, unit) for unit in ("steps", "tokens", "time", "epochs")},
        "left": rest,
        "over": monitor.over,
        "val_bits_per_byte": monitor.state.val_bits_per_byte,
        "val_step": monitor.state.val_step,
        "validation": asdict(plan.validation),
        "ledger": position,
        "followed": config.follow is not None,
        "ledgers": {**earlier.get("ledgers", {}), text_kind(config): position},
        **plan.strategy.state(arena),
        "writers": {"gpu_write": plan.writers.gpu_write, "write": plan.writers.write},
        "emulated": plan.emulated,
        "joined": (counters.load("workers") or plan.strategy.workers) - plan.strategy.workers,
        "opt_steps": {str(slot): steps for slot, steps in moments.steps.items()},
        "text": {
            "documents": plan.data.train.header["documents"],
            "rows": plan.data.train.n_sequences(config.seq_len),
            "grown": [asdict(one) for one in plan.grown],
        },
        "tokens_sha256": plan.data.train.digest,
        "val_sha256": plan.data.val.digest,
    }
    return {**moments.arrays, **outer}, state


def inherit(arena: Arena, slot: int, private: tuple[str, ...], *, one_state: bool = False) -> None:
    """Give a free slot the optimizer state of the worker with the most steps; all are quiesced.

    Updates that a worker still has to write, or wrote in advance (error feedback), stay its own.
    Where all workers have `one_state`, that of slot 1, there is nothing to give.
    """
    if one_state:
        return
    workers = [one for one in arena.workers.training() if one.slot != slot]
    source = max(workers, key=lambda one: one.opt_step)
    for kind in private:
        state = arena.segment(f"{kind}.{slot}")
        if kind in (RESIDUAL, FEEDBACK):
            state.fill(0.0)
        else:
            updates.snapshot(state, arena.segment(f"{kind}.{source.slot}"))
    arena.workers.entry(slot).opt_step = source.opt_step
