"""The CPU side of a step: norm, AdamW with its add to the arena, read of all parameters.

The gradient of an embedding has the rows of `TOKENS` words, as that of a batch has.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from mlxhog import arena
from mlxhog.arena import Arena
from mlxhog.models import families
from mlxhog.models.registry import load_architecture
from mlxhog.optim import AdamW, Target, gradients, updates
from mlxhog.optim.updates import Rows, Slot, row_width

TOKENS = 512


def pairs(threads: int, name: str, turns: int) -> dict[str, list[list[float]]]:
    """Seconds of each part, and of all, by one thread and by `threads`, turn by turn.

    Args:
        threads: of the second.
        name: of the model.
        turns: of both, one after the other; the order changes from turn to turn.
    """
    spec = families.param_spec(load_architecture(name))
    layout = arena.plan(spec, max_workers=1, n_tickets=1)
    rng = np.random.default_rng(0)
    with Arena.create(layout) as shared:
        shared.params[...] = 0.01

        def gradient(slot: Slot) -> gradients.Float32 | Rows:
            if slot.kind != "rows":
                return rng.standard_normal(slot.shape, dtype=np.float32)
            words = min(TOKENS, slot.shape[0])
            index = np.sort(rng.choice(slot.shape[0], words, replace=False)).astype(np.int32)
            return Rows(index, rng.standard_normal((words, row_width(slot)), dtype=np.float32))

        grads = {slot.name: gradient(slot) for slot in layout.slots.values()}
        one = Target(
            flat=shared.params,
            slots=layout.slots,
            locks=shared.locks(1),
            mode=updates.WRITE_MODES[shared.write],
            private={name: np.zeros(layout.n_floats, np.float32) for name in ("m", "v")},
            shared={},
            decay=frozenset(layout.slots),
        )
        inbox = np.zeros(layout.n_floats, np.float32)
        rule, targets = AdamW(), {1: one, threads: replace(one, threads=threads)}

        def parts(count: int, step: int) -> dict[str, Callable[[], object]]:
            return {
                "norm": lambda: gradients.global_norm(grads, count),
                "AdamW": lambda: rule.step(targets[count], grads, lr=1e-5, step=step, seed=step),
                "read": lambda: updates.snapshot(inbox, shared.params, threads=count),
            }

        seconds: dict[str, dict[int, list[float]]] = {
            part: {1: [], threads: []} for part in (*parts(1, 1), "all three")
        }
        for turn in range(turns + 1):
            for count in (1, threads) if turn % 2 else (threads, 1):
                total = 0.0
                for part, work in parts(count, turn + 1).items():
                    began = time.perf_counter()
                    work()
                    spent = time.perf_counter() - began
                    total += spent
                    if turn:  # the first one touches the pages
                        seconds[part][count].append(spent)
                if turn:
                    seconds["all three"][count].append(total)
        return {part: [by[1], by[threads]] for part, by in seconds.items()}
