"""Fill a new arena: from the initialiser, or from a run's last checkpoint.

A checkpoint may be taken up by another number of workers. Private moments then have no owner to go
to, so every worker starts from their average, and the message says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog import strategies
from mlxhog.arena import Arena
from mlxhog.checkpoint import checkpoint
from mlxhog.config.budget import Budget
from mlxhog.data.ledger import Ledger
from mlxhog.files import mapped
from mlxhog.models.families import param_spec
from mlxhog.models.spec import ParamSpec, initial_value
from mlxhog.optim.sparsified import RESIDUAL
from mlxhog.strategies import course, disjoint, sync
from mlxhog.training.plan import Plan

NUMBERED = ("sync", "round_robin", "avg_runs")
"""Strategies that deal batches out by number."""


@dataclass(frozen=True)
class Start:
    """Where a call to `train` begins, and what the user should know of it."""

    budget: Budget
    messages: tuple[str, ...] = ()


def restore(plan: Plan, arena: Arena, ledger: Ledger) -> Start:
    """Write the first parameters, moments and data position into the arena.

    Raises:
        CheckpointError: the checkpoint is damaged, or of another architecture or corpus.
    """
    config = plan.config
    if plan.checkpoint is None:
        _initialise(plan, arena)
        course.begin(config, len(plan.workers), arena)
        return Start(Budget(steps=config.steps, tokens=config.tokens, seconds=config.time))
    found = plan.checkpoint
    for name, value in found.params.items():
        mapped.copy(value, arena.param(name))
    state = found.state
    arena.counters.store("version", int(state["version"]))
    position, kept = state["ledger"], _kept(plan, state)
    if config.async_after > 0 and state.get("went_async"):
        sync.pass_over(arena.segment("sync.words"), len(plan.workers))
    elif config.async_after > 0 or (config.strategy in NUMBERED and kept is None):
        # batches are dealt out by number, so single ones that are done cannot be skipped
        position = {**position, "done": []}
    ledger.restore(position)
    arena.counters.store("first_ticket", position["epoch"] * ledger.n + position["watermark"])
    if kept is not None:
        for segment in course.kept_segments(config, len(plan.workers)):
            _fill(arena, segment, [segment], found.optimizer)
    course.begin(config, len(plan.workers), arena, kept)
    message = _restore_moments(plan, arena, found)
    if RESIDUAL not in plan.private_state:
        _write_residuals(arena, found)
    if config.blocks == "disjoint":
        each = dict.fromkeys(arena.layout.slots, arena.workers.entry(1).opt_step)
        disjoint.restore_steps(arena, state.get("block_steps", each))
    lines = [_opening(plan, found), *([message] if message else [])]
    return Start(_budget(plan, state), tuple(lines))


def _initialise(plan: Plan, arena: Arena) -> None:
    """Draw the first parameters into the arena, two at a time: drawing leaves Python's lock."""

    def draw(spec: ParamSpec) -> None:
        arena.param(spec.name)[...] = initial_value(spec, plan.config.seed)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(draw, param_spec(plan.model).values()))


def _kept(plan: Plan, state: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Where the strategy stood, if the same one goes on with as many workers."""
    found: Mapping[str, Any] | None = state.get("course")
    wanted = (plan.config.strategy, len(plan.workers))
    same = found is not None and (found["strategy"], found["workers"]) == wanted
    return found if same else None


def _restore_moments(plan: Plan, arena: Arena, found: checkpoint.Checkpoint) -> str | None:
    """Give every worker its moments back, or the average where the workers are not the same."""
    steps = {int(slot): int(n) for slot, n in found.state["opt_steps"].items()}
    saved_slots = list(steps)
    slots = [k + 1 for k in range(len(plan.workers))]
    # where one slot's moments are those of all, it stands for the others, too
    now = list(strategies.state_slots(plan.config, len(slots), arena))
    same = saved_slots == now
    for slot in slots:
        sources = [slot] if same and slot in steps else saved_slots
        entry = arena.workers.entry(slot)
        entry.opt_step = round(sum(steps[s] for s in sources) / len(sources))
        for kind in plan.private_state:
            _fill(arena, f"{kind}.{slot}", [f"{kind}.{s}" for s in sources], found.optimizer)
            if kind == RESIDUAL and not same:  # what all have not written yet stays as much
                arena.segment(f"{kind}.{slot}")[...] *= np.float32(len(saved_slots) / len(now))
    for kind in plan.shared_state:
        _fill(arena, kind, [kind], found.optimizer)
    if same or not plan.private_state:
        return None
    if len(saved_slots) == 1:
        return f"one worker's moments were given to each of {len(slots)} workers"
    return f"{len(saved_slots)} workers' moments were averaged for {len(slots)} workers"


def _write_residuals(arena: Arena, found: checkpoint.Checkpoint) -> None:
    """Add what the workers of a sparsified run had not written yet, as this run would never."""
    for key, value in found.optimizer.items():
        segment, _, name = key.partition("/")
        if segment.startswith(f"{RESIDUAL}."):
            arena.param(name)[...] += value


def _fill(
    arena: Arena,
    segment: str,
    sources: list[str],
    saved: Mapping[str, NDArray[np.float32]],
) -> None:
    """Set a segment to the mean of saved ones, parameter by parameter; zero without any."""
    flat = arena.segment(segment)
    for name, slot in arena.layout.slots.items():
        parts = [saved[key] for s in sources if (key := f"{s}/{name}") in saved]
        if parts:
            view = flat[slot.offset : slot.offset + slot.size].reshape(slot.shape)
            mapped.copy(parts[0] if len(parts) == 1 else np.mean(parts, axis=0), view)


def _budget(plan: Plan, state: Mapping[str, Any]) -> Budget:
    """What this call may add: what it was given, or the rest of the run's own budget."""
    config, used = plan.config, state["used"]
    given = Budget(steps=config.steps, tokens=config.tokens, seconds=config.time)
    return replace(
        plan.rest or given,
        steps_before=used["steps"],
        tokens_before=used["tokens"],
        seconds_before=used["seconds"],
    )


def _opening(plan: Plan, found: checkpoint.Checkpoint) -> str:
    """Say where the run goes on.

    The held-out text was evaluated when the checkpoint was saved already: the run's result knows.
    """
    state, bits = found.state, found.state.get("val_bits_per_byte")
    status = {} if plan.run is None else plan.run.read_status()
    if status.get("checkpoint") == str(found.path):
        bits = status.get("result", {}).get("val_bits_per_byte") or bits
    held_out = "" if bits is None else f" (held-out {bits:.3f})"
    only = ", its training is over: only the evaluation is left"
    rest = only if plan.rest is not None and plan.rest.is_used_up else ""
    return f"resuming from step {state['used']['steps']}{held_out}{rest}"
