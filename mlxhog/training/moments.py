"""The optimizer's state of a run at rest: from a checkpoint or another strategy into an arena.

Other workers than before, or another kind of moments, begin with the average of the private ones,
or with those of the worker with the most steps if they have no average; a message says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlxhog.arena import Arena
from mlxhog.base import mapped
from mlxhog.checkpoint import checkpoint
from mlxhog.config import optimizers
from mlxhog.errors import CheckpointError
from mlxhog.optim.delay_feedback import FEEDBACK
from mlxhog.optim.sparsified import RESIDUAL
from mlxhog.optim.tables import MEANS
from mlxhog.training.plan import Plan


class Moments(NamedTuple):
    """The optimizer's state of a run at rest.

    Attributes:
        steps: of each slot's own state.
        since: updates of the parameters before the moments of all workers began; None if each
            worker has its own.
        arrays: by "segment/parameter".
    """

    steps: dict[int, int]
    since: int | None
    arrays: Mapping[str, NDArray[np.float32]]


def of_arena(plan: Plan, arena: Arena) -> Moments:
    """The moments in an arena at rest, as views."""
    slots = plan.strategy.state_slots(arena)
    segments = [f"{kind}.{slot}" for kind in plan.private_state for slot in slots]
    arrays: dict[str, NDArray[np.float32]] = {}
    for segment in (*segments, *plan.shared_state, *plan.strategy.kept_segments()):
        flat = arena.segment(segment)
        for name, slot in arena.layout.parts(segment).items():
            view = flat[slot.offset : slot.offset + slot.size].reshape(slot.shape)
            arrays[f"{segment}/{name}"] = view
    steps = {slot: arena.workers.entry(slot).opt_step for slot in slots}
    since = arena.counters.load("moments_since") if plan.shared_state else None
    return Moments(steps, since, arrays)


def restore(plan: Plan, arena: Arena, saved: checkpoint.Checkpoint) -> str | None:
    """Restore every worker's moments, or give it the average if the workers have changed.

    Private moments become their average if the new run shares them; shared moments are copied to
    every worker if the new run keeps them private.
    """
    if plan.config.reset_optimizer:
        arena.counters.store("moments_since", arena.counters.load("version"))
        return "the optimizer restarts without moments"
    steps = {int(slot): int(n) for slot, n in saved.state["opt_steps"].items()}
    return _fill_moments(
        plan, arena, Moments(steps, saved.state.get("moments_since"), saved.optimizer)
    )


def carry_over(old: Plan, new: Plan, arena: Arena) -> None:
    """Give a run at rest the moments and the segments of another of its candidate strategies.

    Segments that only one of them has overlap, so moments are copied out of the arena first.
    """
    moments = of_arena(old, arena)
    moments = moments._replace(arrays={name: one.copy() for name, one in moments.arrays.items()})
    slots = range(1, new.strategy.slots + 1)
    for segment in (
        *new.strategy.segments(len(new.layout.slots)),
        *new.shared_state,
        *(f"{kind}.{slot}" for kind in new.private_state for slot in slots),
    ):
        arena.segment(segment).fill(0)
    _fill_moments(new, arena, moments)


def _fill_moments(plan: Plan, arena: Arena, saved: Moments) -> str | None:
    """Fill the arena's moments; see `restore`."""
    version, steps, saved_slots = arena.counters.load("version"), saved.steps, list(saved.steps)
    mean_of_all = round(sum(steps.values()) / len(steps))
    since = max(0, version - mean_of_all) if saved.since is None else saved.since
    become_private = saved.since is not None and not plan.shared_state
    # one slot stands for all where their moments are the same
    now = list(plan.strategy.state_slots(arena))
    same = saved_slots == now
    slots = sorted({*range(1, len(plan.workers) + 1), *now})
    averaged, optimizer = saved_slots, optimizers.of(plan.config)
    if optimizer.has_own_bases:
        averaged = [max(saved_slots, key=lambda slot: steps[slot])]
    for slot in slots:
        sources = [slot] if same and slot in steps else averaged
        entry = arena.workers.entry(slot)
        mean_steps = round(sum(steps[s] for s in sources) / len(sources))
        entry.opt_step = version - since if become_private else mean_steps
        for kind in plan.private_state:
            shared_out = kind in (RESIDUAL, FEEDBACK) and not same  # keeps the sum
            segments = [f"{kind}.{s}" for s in (saved_slots if shared_out else sources)]
            fill(arena, f"{kind}.{slot}", [*segments, kind], saved.arrays)
            if shared_out:
                arena.segment(f"{kind}.{slot}")[...] *= np.float32(len(saved_slots) / len(now))
    for kind in plan.shared_state:
        fill(arena, kind, [kind, *(f"{kind}.{s}" for s in saved_slots)], saved.arrays)
    arena.counters.store("moments_since", since)
    if same or become_private or not plan.private_state:
        return None
    if len(saved_slots) == 1:
        return f"one worker's moments were copied to each of {len(slots)} workers"
    if optimizer.has_own_bases:
        return (
            f"the moments of the worker with the most steps were copied to each of {len(slots)} "
            f"workers: {optimizer.name} keeps them in a basis of each worker, without an average"
        )
    return f"{len(saved_slots)} workers' moments were averaged for {len(slots)} workers"


def restore_means(plan: Plan, arena: Arena, saved: checkpoint.Checkpoint) -> None:
    """Restore the running means of tables; they begin anew with the optimizer.

    Raises:
        CheckpointError: they are missing, or those of another number of tables.
    """
    if not arena.layout.tables or plan.config.reset_optimizer:
        return
    means, ours = saved.optimizer.get(MEANS), arena.segment(MEANS)
    if means is None or means.shape != ours.shape:
        raise CheckpointError(
            f"{saved.path} has no running means of {len(ours)} tables ({MEANS}); resume another "
            "checkpoint, or add --reset-optimizer to begin without them"
        )
    ours[...] = means


def fill(
    arena: Arena,
    segment: str,
    sources: list[str],
    saved: Mapping[str, NDArray[np.float32]],
) -> None:
    """Set a segment to the mean of saved ones, parameter by parameter; zero without any.

    Raises:
        CheckpointError: a saved part has another shape than in this run.
    """
    flat = arena.segment(segment)
    for name, slot in arena.layout.parts(segment).items():
        parts = [saved[key] for s in sources if (key := f"{s}/{name}") in saved]
        if parts:
            if parts[0].shape != slot.shape:
                raise CheckpointError(
                    f"the checkpoint's optimizer state {sources[0]}/{name} has shape "
                    f"{parts[0].shape}, this run keeps {slot.shape}; resume with the optimizer's "
                    "options that the run has, or add --reset-optimizer to begin without moments"
                )
            view = flat[slot.offset : slot.offset + slot.size].reshape(slot.shape)
            mapped.copy(parts[0] if len(parts) == 1 else np.mean(parts, axis=0), view)
