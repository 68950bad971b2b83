"""Take a checkpoint of a resting arena: parameters, moments, data position, what was used up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlxhog import strategies
from mlxhog.arena import Arena
from mlxhog.checkpoint import checkpoint
from mlxhog.checkpoint.run import Run
from mlxhog.data.ledger import Ledger
from mlxhog.data.tokens import TokenFile
from mlxhog.strategies import course
from mlxhog.strategies.disjoint import steps_taken
from mlxhog.training.monitor import Monitor
from mlxhog.training.plan import Plan
from mlxhog.training.resume import Start


def n_bytes(plan: Plan) -> int:
    """Return about how large a checkpoint will be."""
    workers = len(plan.workers)
    copies = 1 + workers * len(plan.private_state) + len(plan.shared_state)
    copies += len(course.kept_segments(plan.config, workers))
    return 4 * plan.parameters * copies


def save(
    plan: Plan, run: Run, arena: Arena, ledger: Ledger, start: Start, monitor: Monitor
) -> Path:
    """Save what `resume.restore` reads back, of an arena that `course.settle` has settled.

    Nobody may write parameters meanwhile; workers may read them.

    Raises:
        EnvironmentLacks: the disk is full; the previous checkpoint is whole.
    """
    workers = len(plan.workers)
    counters, budget = arena.counters, start.budget
    slots = strategies.state_slots(plan.config, workers, arena)
    segments = [f"{kind}.{slot}" for kind in plan.private_state for slot in slots]
    segments += [*plan.shared_state, *course.kept_segments(plan.config, workers)]
    moments: dict[str, NDArray[np.float32]] = {}
    for segment in segments:
        flat = arena.segment(segment)
        for name, slot in arena.layout.slots.items():
            view = flat[slot.offset : slot.offset + slot.size].reshape(slot.shape)
            moments[f"{segment}/{name}"] = view
    config = plan.config
    seconds = monitor.seconds()
    used = dict(zip(("steps", "tokens", "seconds"), monitor.totals(), strict=True))
    version = counters.load("version")
    left = {
        "steps": None if budget.steps is None else budget.steps - counters.load("steps"),
        "tokens": None if budget.tokens is None else budget.tokens - counters.load("tokens"),
        "seconds": None if budget.seconds is None else budget.seconds - seconds,
    }
    return checkpoint.save(
        run,
        step=version,
        params={name: arena.param(name) for name in arena.layout.slots},
        model_config=plan.model.to_dict(),
        optimizer=moments,
        state={
            "version": version,
            "used": used,
            "budget": {"steps": config.steps, "tokens": config.tokens, "time": config.time},
            "left": left,
            "over": monitor.over,
            "val_bits_per_byte": monitor.val_bits_per_byte,
            "ledger": ledger.position(),
            "course": course.position(plan.config, workers, arena),
            "writers": {"gpu_write": plan.writers.gpu_write, "write": plan.writers.write},
            "emulated": plan.emulated,
            "went_async": config.async_after > 0 and len(slots) > 1,
            **({"block_steps": steps_taken(arena)} if config.blocks == "disjoint" else {}),
            "opt_steps": {str(slot): arena.workers.entry(slot).opt_step for slot in slots},
            "tokens_sha256": TokenFile.open(plan.data.train).digest,
        },
        tokenizer=plan.data.tokenizer,
        keep_last=config.keep_last,
    )
