"""Blocks of a model, and its gradients on a real backend.

The functions that take a `Lane` run in a process of their own (`mlxhog/arena/child.py`), which
imports the framework and keeps it. A gradient never leaves that process: it returns the set of
elements that are not zero, as bits, and norms.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlxhog import backends, strategies
from mlxhog.arena import Slot
from mlxhog.arena.child import Lane
from mlxhog.backends.backend import Backend, Grads
from mlxhog.checkpoint import formats
from mlxhog.config.config import TrainConfig
from mlxhog.models import families
from mlxhog.models.families import ModelConfig, init_params, parameter_blocks
from mlxhog.optim import Groups, UpdateTarget, gradients
from mlxhog.optim.gradients import Rows
from mlxhog.optim.rule import parameter as view_of
from mlxhog.training.plan.values import Plan
from mlxhog.training.worker.steps import mean_gradient

# -- blocks of a model -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """Parameters that are reported together: those of `families.parameter_blocks`.

    An embedding and a dense layer differ so much that averages over the model mean nothing.
    Parameters outside the layers have blocks of their own.
    """

    name: str  # such as "embedding", "layer 0", "out_norm" or "head"
    cell: str | None  # "mlstm" or "slstm" for a layer with that cell
    slots: tuple[Slot, ...]  # of its parameters in the arena, ascending

    @property
    def parameters(self) -> int:
        """Number of its elements, n."""
        return sum(slot.size for slot in self.slots)


def blocks_of(model: ModelConfig, slots: Mapping[str, Slot]) -> tuple[Block, ...]:
    """Return the blocks of a model with these slots, in the order in which the model uses them."""
    grouped: dict[tuple[str, str | None], list[Slot]] = {}
    for group in parameter_blocks(model):
        for parameter in group.params:
            if slots[parameter].kind == "table":  # `conflicts` counts their rows
                continue
            name = group.name if group.is_layer else _outside(model, parameter)
            grouped.setdefault((name, group.cell), []).append(slots[parameter])
    return tuple(
        Block(name, cell, tuple(sorted(own, key=lambda slot: slot.offset)))
        for (name, cell), own in grouped.items()
    )


def _outside(model: ModelConfig, parameter: str) -> str:
    if parameter == families.embedding(model):
        return "embedding"
    if parameter in (families.head(model), families.head_bias(model)):
        return "head"
    return parameter.rpartition(".")[0].rpartition(".")[2] or parameter


# -- gradients -------------------------------------------------------------------------------------

Bits = NDArray[np.uint8]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Ticket = tuple[int, int]  # epoch and number of a batch


@dataclass(frozen=True)
class Subject:
    """The gradients to sample: a model at some parameters, and batches, one hyperedge each."""

    plan: Plan  # of a run of one worker
    steps: TrainConfig  # options of the optimizer that steps on these gradients
    blocks: tuple[Block, ...]  # parameters that are reported together
    checkpoint: Path | None  # of the parameters; None draws initial values


class Sampled(NamedTuple):
    """Supports of some gradients by block, as `Hypergraph.of_bitmaps` takes them; nats, norms."""

    bits: list[Bits]
    losses: Float64
    norms: Float64


class GradientSource:
    """A backend with the model's parameters in it, and the batches.

    Attributes:
        params: (n,) float32, laid out as in an arena.
        flat: the last gradient, likewise, without that of tables.
        grads: the same by parameter; valid until the next gradient.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject, plan = subject, subject.plan
        (worker,), (kernels,), layout = plan.workers, plan.kernels, plan.layout
        self.backend: Backend = backends.create(
            worker.backend, threads=worker.threads, kernels=kernels, dtype=plan.config.dtype
        )
        recompute = plan.config.recompute == "blocks"
        self.backend.bind(plan.model, layout, None, plan.sampled, recompute=recompute)
        self.params = np.zeros(layout.n_floats, np.float32)
        views = {name: view_of(self.params, slot) for name, slot in layout.slots.items()}
        if subject.checkpoint is None:
            for name, value in init_params(plan.model, plan.config.seed).items():
                views[name][...] = value
        else:
            formats.open(subject.checkpoint).copy_into(views)
        self.backend.copy_in(self.params)
        self.batches = plan.batches()
        self.flat = np.zeros(layout.n_dense, np.float32)
        self.grads: Grads = {}

    def gradient(self, ticket: Ticket) -> float:
        """Compute one update's gradient; returns its loss."""
        batch, rows = self.batches.at(*ticket), self.subject.plan.config.micro_batch
        parts = [batch.part(k, k + rows) for k in range(0, len(batch.x), rows)]
        loss, self.grads = mean_gradient(self.backend, parts)
        for name, slot in self.subject.plan.layout.dense.items():
            grad, view = self.grads[name], view_of(self.flat, slot)
            if isinstance(grad, Rows):
                view[...] = 0.0
                one = grad.coalesced()
                view[one.index] = one.values
            else:
                view[...] = grad
        return loss

    def move(self, step: Float32) -> None:
        """Apply an update, laid out as the parameters."""
        self.params += step
        self.backend.copy_in(self.params)


def source(lane: Lane, subject: Subject) -> GradientSource:
    """Return the lane's own source of gradients."""
    return lane.keep("source", lambda: GradientSource(subject))


def sample(lane: Lane, subject: Subject, tickets: Sequence[Ticket]) -> Sampled:
    """Compute the gradients of some batches, all at the same parameters."""
    ours = source(lane, subject)
    packed: list[list[Bits]] = [[] for _ in subject.blocks]
    losses, norms = [], []
    for ticket in tickets:
        losses.append(ours.gradient(ticket))
        norms.append(float(np.linalg.norm(ours.flat.astype(np.float64))))
        for rows, block in zip(packed, subject.blocks, strict=True):
            touched = [view_of(ours.flat, slot).reshape(-1) != 0 for slot in block.slots]
            rows.append(np.packbits(np.concatenate(touched), bitorder="little"))
    return Sampled([np.stack(rows) for rows in packed], np.array(losses), np.array(norms))


# -- the steps of a worker's optimizer -------------------------------------------------------------


class OwnSteps:
    """One worker's steps on parameters of its own; it writes no shared memory.

    Every step is computed at the same `params`, (n,) float32 in the layout of the slots. `decay`
    names those with weight decay; the others are as of `strategies.build_optimizer`.
    """

    def __init__(
        self,
        config: TrainConfig,
        slots: Mapping[str, Slot],
        params: Float32,
        decay: frozenset[str],
        hidden: frozenset[str] = frozenset(),
        groups: Groups | None = None,
        tokens_per_step: int | None = None,
    ) -> None:
        self._config, self._params, self._number = config, params, 0
        self.rule = strategies.build_optimizer(
            config, hidden, groups=groups, tokens_per_step=tokens_per_step
        )
        self._target = UpdateTarget.alone(self.rule, params.copy(), slots, decay)

    def step(self, grads: Grads) -> Float32:
        """Return the next step for this gradient, to be added to the parameters."""
        self._number += 1
        np.copyto(self._target.flat, self._params)
        step = np.zeros_like(self._params)
        target = replace(self._target, pending=step)
        norm = gradients.global_norm(gradients.without_tables(grads, target.slots))
        scale = gradients.clip_factor(norm, self._config.clip)
        lr = self._config.top_lr
        self.rule.step(target, grads, lr=lr, step=self._number, grad_scale=scale)
        return step


# -- stale gradients against fresh ones ------------------------------------------------------------

DELAYS = (1, 2, 4, 8)


class StaleGradient(NamedTuple):
    """Mean cosine between the gradient of a batch, and its gradient after updates of others."""

    delay: int  # in updates
    cosine: float


def compare_stale_gradients(
    lane: Lane,
    subject: Subject,
    watched: Sequence[Ticket],
    others: Sequence[Ticket],
    before: Sequence[Ticket],
) -> tuple[StaleGradient, ...]:
    """Compare stale gradients with fresh ones; the parameters are restored afterwards.

    Theorems bound the error of a stale gradient by the worst curvature. Here it is measured: the
    gradient of a batch before and after k updates of other batches.

    The optimizer has seen the batches `before`; `others`, at least the largest of `DELAYS`, are
    those of the updates in between.
    """
    ours, plan = source(lane, subject), subject.plan
    params_before, model = ours.params.copy(), plan.model
    optimizer = OwnSteps(
        subject.steps,
        plan.layout.slots,
        ours.params,
        plan.decay,
        families.hidden_matrices(model),
        families.rate_groups(model),
        plan.strategy.tokens_per_step,
    )

    def flat(ticket: Ticket) -> Float32:
        ours.gradient(ticket)
        return ours.flat.copy()

    for ticket in before:
        ours.gradient(ticket)
        optimizer.step(ours.grads)
    old, results = [flat(ticket) for ticket in watched], []
    for done, ticket in enumerate(others[: DELAYS[-1]], start=1):
        ours.gradient(ticket)
        ours.move(optimizer.step(ours.grads))
        if done in DELAYS:
            pairs = zip(old, watched, strict=True)
            cosine = np.mean([_cosine(first, flat(ticket)) for first, ticket in pairs])
            results.append(StaleGradient(done, float(cosine)))
    ours.params[:] = params_before
    ours.backend.copy_in(ours.params)
    return tuple(results)


def _cosine(old: Float32, fresh: Float32) -> float:
    lengths = float(np.linalg.norm(old)), float(np.linalg.norm(fresh))
    if not all(lengths):
        return float(lengths[0] == lengths[1])
    return min(1.0, float(np.dot(old / lengths[0], fresh / lengths[1])))
