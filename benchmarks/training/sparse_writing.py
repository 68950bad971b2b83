"""One way of writing, measured in one process: loss, supports, and the time of a step.

A lane holds a trained model, the batches it was trained on, and an optimizer that writes into an
arena of its own, with its locks, as a worker does.

Two processes write recorded supports into one arena without locks: what share is lost?

Each adds 1.0 to the elements that a worker's steps wrote, step after step, by the kernel that a run
uses for such a step, and computes nothing in between. So the two write all the time, which no run
does: an upper estimate of what a racy run of two workers loses.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlxhog import TrainConfig, backends, optim
from mlxhog.arena import Arena, ArenaHandle, Layout, Slot
from mlxhog.backends.backend import Grads
from mlxhog.checkpoint import checkpoint
from mlxhog.config.strategies import Hogwild
from mlxhog.data import heldout
from mlxhog.data.batch import Batch
from mlxhog.data.batches import Batches
from mlxhog.machine.processes import follow_parent
from mlxhog.models import families
from mlxhog.models.families import param_spec
from mlxhog.optim import Target, gradients, updates
from mlxhog.optim.updates import Float32, Int32, Rows
from mlxhog.strategies.disjoint import block_groups
from mlxhog.theory.analysis.written import WrittenSteps
from mlxhog.training.plan import make_plan

LATER_EPOCH = 1 << 20  # an order of the batches that training has not used
PATIENCE_S = 120.0
RACY = updates.WRITE_MODES["racy"]
Bits = NDArray[np.uint8]
Move = tuple[Slot, "Int32 | None", "Float32 | Rows"]
"""A parameter, the elements written of it (None: by its whole rows, or all), and the ones."""


@dataclass
class Times:
    """CPU seconds of steps, by part."""

    gradient: list[float]
    write: list[float]


class Lane:
    """A trained model and its worker's way of writing."""

    def __init__(self, config: TrainConfig, saved: Path) -> None:
        """Load the parameters of a checkpoint; the caller closes the lane."""
        planned = make_plan(config)
        self.config, self.layout, self.model = config, planned.layout, planned.model
        self.decay = frozenset(n for n, spec in param_spec(self.model).items() if spec.decay)
        self.backend = backends.create(
            planned.workers[0].backend, threads=1, kernels=planned.kernels[0], cpu_blas="auto"
        )
        self.backend.bind(
            self.model, self.layout.slots, self.layout.n_floats, None, planned.sampled
        )
        for name, value in checkpoint.load(saved).params.items():
            slot = self.layout.slots[name]
            self.backend.inbox[slot.offset : slot.offset + slot.size] = value.reshape(-1)
        self.backend.refresh()
        self.train = Batches.open(
            planned.data.train,
            seq_len=config.seq_len,
            batch_size=config.micro_batch,
            seed=config.seed,
        )
        self.held_out = planned.data.open(config.seq_len)[1]
        self.groups: list[frozenset[str]] | None = None
        if isinstance(config.strategy, Hogwild) and config.strategy.blocks == "disjoint":
            parts = block_groups(self.model, len(planned.workers))
            self.groups = [frozenset(n for block in group for n in block.params) for group in parts]
        self.arena = Arena.create(self.layout, write="lossless")
        self.arena.params[...] = self.backend.inbox
        self.optimizer = optim.build(config, families.hidden_matrices(self.model))
        self.target = Target(
            flat=self.arena.params,
            slots=self.layout.slots,
            locks=self.arena.locks(),
            mode=updates.WRITE_MODES["lossless"],
            private={name: self.arena.segment(f"{name}.1") for name in planned.private_state},
            shared={},
            decay=self.decay,
        )
        self.times = Times([], [])

    def close(self) -> None:
        """Give the arena back."""
        self.backend.close()
        self.arena.close()

    def batch(self, number: int) -> Batch:
        """A training batch, numbered from 0."""
        epoch, ticket = divmod(number, self.train.n_tickets)
        return self.train.at(LATER_EPOCH + epoch, ticket)

    def loss(self, tokens: int) -> float:
        """Nats per token of held-out text, spread over it, full softmax."""
        nats, targets = 0.0, 0
        for batch in heldout.batches(
            self.held_out, seq_len=self.config.seq_len, batch_size=8, eval_tokens=tokens
        ):
            score = self.backend.evaluate(batch)
            nats, targets = nats + score.nats, targets + score.targets
        return nats / targets

    def timed_step(self, number: int) -> None:
        """One step on the arena, of a worker that holds the group whose turn it is."""
        began = time.process_time()
        _, grads = self.backend.loss_and_grads(self.batch(number))
        computed = time.process_time()
        grads = self._held(grads, number)
        scale = gradients.clip_factor(gradients.global_norm(grads), self.config.clip)
        lr = self.config.top_lr
        self.optimizer.step(
            self.target, grads, lr=lr, step=number + 1, seed=number, grad_scale=scale
        )
        self.times.gradient.append(computed - began)
        self.times.write.append(time.process_time() - computed)

    def supports(self, number: int, skip: int, worker: int) -> list[NDArray[np.uint8]]:
        """Packed supports of what one worker writes, over the whole parameter segment.

        Args:
            number: of supports.
            skip: steps before the first, in which a residual reaches its usual size.
            worker: 0 or 1; they compute on different batches, and hold different groups.
        """
        written = WrittenSteps(
            self.config,
            self.layout.slots,
            self.backend.inbox,
            self.decay,
            families.hidden_matrices(self.model),
        )
        rows = []
        for step in range(skip + number):
            _, grads = self.backend.loss_and_grads(self.batch(2 * step + worker))
            masks = written.masks(self._held(grads, worker))
            if step >= skip:
                rows.append(self._packed(masks))
        return rows

    def _held(self, grads: Grads, turn: int) -> Grads:
        if self.groups is None:
            return grads
        held = self.groups[turn % len(self.groups)]
        return {name: grad for name, grad in grads.items() if name in held}

    def _packed(self, masks: Mapping[str, NDArray[np.bool_]]) -> NDArray[np.uint8]:
        whole = np.zeros(self.layout.n_floats, np.bool_)
        for name, mask in masks.items():
            slot = self.layout.slots[name]
            whole[slot.offset : slot.offset + slot.size] = mask.reshape(-1)
        return np.packbits(whole, bitorder="little")


def in_turns(lanes: Sequence[Lane], rounds: int) -> None:
    """Steps of all lanes, one after another, so that what disturbs one disturbs all."""
    for number in range(rounds):
        for lane in lanes:
            lane.timed_step(number)


def lost_share(layout: Layout, supports: Sequence[Bits], rounds: int) -> float:
    """Share of the adds that never arrived.

    Args:
        layout: of the parameters.
        supports: of each process, (steps, bytes) as in `Supports`.
        rounds: steps of each; the supports repeat.
    """
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(len(supports))
    with Arena.create(layout, write="racy") as arena:
        processes = [
            context.Process(target=_write, args=(arena.handle(), bits, rounds, k + 1, barrier))
            for k, bits in enumerate(supports)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        codes = [process.exitcode for process in processes]
        assert codes == [0] * len(processes), f"exit codes of the writers: {codes}"
        arrived = float(arena.params.sum(dtype=np.float64))
    sizes = [np.bitwise_count(bits).sum(axis=1) for bits in supports]
    expected = sum(float(each[k % len(each)]) for each in sizes for k in range(rounds))
    return 1.0 - arrived / expected


def _write(handle: ArenaHandle, bits: Bits, rounds: int, worker: int, barrier: Barrier) -> None:
    follow_parent()
    arena = Arena.from_handle(handle, write="racy")
    steps = [list(_moves(arena.layout, row)) for row in bits]
    barrier.wait(PATIENCE_S)
    for k in range(rounds):
        seed = worker << 32 | k
        for slot, index, ones in steps[k % len(steps)]:
            if index is None:
                updates.add(arena.params, slot, ones, locks=None, mode=RACY, seed=seed)
            else:
                assert not isinstance(ones, Rows)
                updates.add_at(arena.params, slot, index, ones, locks=None, mode=RACY, seed=seed)
    arena.close()


def _moves(layout: Layout, row: Bits) -> Sequence[Move]:
    """A step's adds, in the form in which a worker makes them."""
    whole = np.unpackbits(row, bitorder="little", count=layout.n_floats).astype(bool)
    moves: list[Move] = []
    for slot in layout.slots.values():
        mask = whole[slot.offset : slot.offset + slot.size].reshape(slot.shape[0], -1)
        touched = mask.any(axis=1)
        if mask.all():
            moves.append((slot, None, np.ones(slot.shape, np.float32)))
        elif len(slot.shape) == 2 and touched.any() and mask[touched].all():
            ones = np.ones((int(touched.sum()), mask.shape[1]), np.float32)
            moves.append((slot, None, Rows(np.flatnonzero(touched).astype(np.int32), ones)))
        elif touched.any():
            index = np.flatnonzero(mask).astype(np.int32)
            moves.append((slot, index, np.ones(len(index), np.float32)))
    return moves
