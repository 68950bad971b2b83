"""Blocks of a model, and gradients of a real model on a real backend, as the theory needs them.

The functions that take a `Lane` run in a process of their own (`mlxhog/arena/child.py`), which
imports the framework and keeps it. A gradient never leaves that process: it returns the set of
elements that are not zero, as bits, and norms.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog import backends
from mlxhog.arena import Layout, Slot
from mlxhog.arena.child import Lane
from mlxhog.arena.layout import ALIGN_FLOATS, STRIPE_FLOATS
from mlxhog.backends.backend import Backend, Grads
from mlxhog.checkpoint import formats
from mlxhog.config.config import TrainConfig
from mlxhog.data.batches import Batches
from mlxhog.models import families
from mlxhog.models.families import ModelConfig, init_params, parameter_blocks
from mlxhog.models.sampled_head import SampledHead
from mlxhog.optim.gradients import GradientSum, Rows
from mlxhog.optim.rule import parameter as view_of
from mlxhog.optim.tables import Tables, parted
from mlxhog.optim.updates import WRITE_MODES
from mlxhog.theory.analysis.written import WrittenSupport

# -- blocks of a model -----------------------------------------------------------------------------

# The theory's numbers differ so much between an embedding and a dense layer that one number for the
# whole model has no meaning. Blocks are those of `families.parameter_blocks`; here the last norm, a
# table of positions and the head, which are outside the layers, are blocks of their own.

Int64 = NDArray[np.int64]

ELEMENT, LINE, STRIPE, ROW = GRAINS = ("element", "line", "stripe", "row")
"""Groups that two updates may share: a float, 128 bytes, 4 KiB of the arena, a matrix row."""


@dataclass(frozen=True)
class Block:
    """Some parameters of a model that are reported together.

    Attributes:
        name: such as "embedding", "layer 0", "out_norm" or "head".
        cell: "mlstm" or "slstm" for a layer with that cell; else None.
        slots: of its parameters in the arena, ascending.
        row_sparse: whether its gradient is that of the rows a batch looks up.
    """

    name: str
    cell: str | None
    slots: tuple[Slot, ...]
    row_sparse: bool

    @property
    def parameters(self) -> int:
        """Number of its elements, n."""
        return sum(slot.size for slot in self.slots)

    def groups(self, grain: str) -> int:
        """Return the number of groups."""
        return self.parameters if grain == ELEMENT else len(self.firsts(grain))

    def firsts(self, grain: str) -> Int64:
        """Return the first element of every group, ascending from 0, (groups,) int64.

        Elements count from 0 over the block's parameters in the order of `slots`, without gaps. A
        vector is one row. Parameters that share a stripe of the arena share the group.
        """
        firsts, before, last = [], 0, -1
        for slot in self.slots:
            size, width = slot.size, 1
            if grain == LINE:
                width = ALIGN_FLOATS
            elif grain == ROW:
                width = size // slot.shape[0] if len(slot.shape) > 1 else size
            inside = np.arange(0, size, width, dtype=np.int64)
            if grain == STRIPE:
                first = slot.offset // STRIPE_FLOATS
                ends = np.arange(first, -(-(slot.offset + size) // STRIPE_FLOATS), dtype=np.int64)
                inside = np.maximum(0, ends * STRIPE_FLOATS - slot.offset)[first == last :]
                last = int(ends[-1])
            firsts.append(before + inside)
            before += size
        return np.concatenate(firsts)


def blocks_of(
    model: ModelConfig, slots: Mapping[str, Slot], *, parts: bool = False
) -> tuple[Block, ...]:
    """Return the blocks of a model, in the order in which the model uses them.

    Args:
        model: the architecture.
        slots: of its parameters, by name.
        parts: whether a layer's queries, keys and values, its gates, its feed-forward part and the
            rest are blocks of their own.
    """
    grouped: dict[tuple[str, str | None], list[Slot]] = {}
    for group in parameter_blocks(model):
        for parameter in group.params:
            name = group.name if group.is_layer else _outside(model, parameter)
            if parts and group.is_layer:
                name = f"{name} {part_of(parameter)}"
            grouped.setdefault((name, group.cell), []).append(slots[parameter])
    return tuple(
        Block(
            name=name,
            cell=cell,
            slots=tuple(sorted(group_slots, key=lambda slot: slot.offset)),
            row_sparse=all(slot.kind == "rows" for slot in group_slots),
        )
        for (name, cell), group_slots in grouped.items()
    )


QKV, GATES, FEED_FORWARD, REST = "qkv", "gates", "feed-forward", "rest"
_QKV = frozenset({"q", "k", "v", "qkv", "q_proj", "k_proj", "v_proj"})


def part_of(parameter: str) -> str:
    """Name the part of its layer that a parameter belongs to.

    The recurrent matrix and the bias of an sLSTM feed its gates. The rest are norms, convolutions,
    and projections that are none of these.

    >>> part_of("backbone.blocks.0.mlstm_layer.igate_preact.weight")
    'gates'
    """
    modules = parameter.split(".")
    if any(module in ("ffn", "mlp") for module in modules):
        return FEED_FORWARD
    if _QKV.intersection(modules):
        return QKV
    if any("gate" in module for module in modules) or modules[-2:-1] == ["slstm_cell"]:
        return GATES
    return REST


def _outside(model: ModelConfig, parameter: str) -> str:
    """Name the block of a parameter that is in no layer."""
    if parameter == families.embedding(model):
        return "embedding"
    if parameter in (families.head(model), families.head_bias(model)):
        return "head"
    return parameter.rpartition(".")[0].rpartition(".")[2] or parameter


# -- gradients -------------------------------------------------------------------------------------

Bits = NDArray[np.uint8]
Float64 = NDArray[np.float64]
Ticket = tuple[int, int]
"""Epoch and number of a batch."""

EXACT, LARGE, WRITTEN = KINDS = ("exact", "large", "written")
"""Elements that count: all of the gradient that are not zero; those that are not negligible; and,
if only part of a step is written, those that are."""

NEGLIGIBLE = 1e-8
"""Share of the largest magnitude in the block below which an element is not large."""

SHIFT = 1e-2
"""Euclidean length of the steps over which curvature is measured."""


@dataclass(frozen=True)
class Subject:
    """The gradients to sample: a model at some parameters, and batches of its training text.

    Attributes:
        backend: such as "torch:cpu".
        threads: CPU threads it may use.
        kernels: form of the model's operations; never "auto".
        cpu_blas: as the option of that name.
        compute_dtype: as the option of that name.
        model: the architecture.
        layout: of the arena a run would have.
        blocks: parameters that are reported together.
        checkpoint: of the parameters; None draws initial values.
        tokens: the training token file.
        seq_len: tokens of a sequence.
        micro_batch: sequences in one gradient of the backend.
        batch_size: sequences in one update.
        seed: of the run: initial values, and the order of the batches.
        frozen: whether gradients stop at the prompts of examples.
        sampled: words of the training loss; None is the whole vocabulary.
        sparsified: the options that select a part of each step; None if all of it is written.
    """

    backend: str
    threads: int
    kernels: str
    cpu_blas: str
    compute_dtype: str
    model: ModelConfig
    layout: Layout
    blocks: tuple[Block, ...]
    checkpoint: Path | None
    tokens: Path
    seq_len: int
    micro_batch: int
    batch_size: int
    seed: int
    frozen: bool = False
    sampled: SampledHead | None = None
    sparsified: TrainConfig | None = None

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of supports, some of `KINDS`."""
        return (EXACT, LARGE) if self.sparsified is None else KINDS

    def batches(self) -> Batches:
        """Open the batches; each is one update, one hyperedge of the theory."""
        return Batches.open(
            self.tokens,
            seq_len=self.seq_len,
            batch_size=self.batch_size,
            seed=self.seed,
            frozen=self.frozen,
        )


@dataclass(frozen=True)
class GradientSample:
    """Supports, losses and norms of some gradients.

    Attributes:
        bits: by (kind, grain, number of the block), (gradients, bytes) uint8 as in `Supports`:
            which groups hold an element that counts.
        losses: (gradients,) mean nats of each batch.
        norms: (gradients,) Euclidean length of each gradient, before clipping.
    """

    bits: dict[tuple[str, str, int], Bits]
    losses: Float64
    norms: Float64


class GradientSource:
    """A backend with the model's parameters in it, and the batches."""

    def __init__(self, subject: Subject) -> None:
        """Import the framework and read the parameters."""
        self.subject = subject
        self.backend: Backend = backends.create(
            subject.backend,
            threads=subject.threads,
            kernels=subject.kernels,
            cpu_blas=subject.cpu_blas,
            compute_dtype=subject.compute_dtype,
        )
        layout = subject.layout
        tables = np.zeros(sum(slot.size for slot in layout.tables.values()), np.float32)
        self.tables = Tables(
            flat=tables,
            slots=layout.tables,
            means=np.zeros(len(layout.tables)),
            locks=None,
            mode=WRITE_MODES["racy"],
        )
        of_tables = {name: view_of(tables, slot) for name, slot in layout.tables.items()}
        self.backend.bind(
            subject.model, layout.slots, layout.n_floats, None, subject.sampled, of_tables
        )
        views = {
            name: self.backend.inbox[slot.offset : slot.offset + slot.size].reshape(slot.shape)
            for name, slot in layout.slots.items()
        }
        if subject.checkpoint is None:
            for name, value in init_params(subject.model, subject.seed).items():
                views[name][...] = value
        else:
            formats.open(subject.checkpoint).copy_into(views | of_tables)
        self.backend.refresh()
        self.batches = subject.batches()
        self.slots = [slot for block in subject.blocks for slot in block.slots]
        sizes = [slot.size for slot in self.slots]
        self.starts = np.concatenate([[0], np.cumsum(sizes)])
        self.block_starts = np.cumsum([0, *(block.parameters for block in subject.blocks)])
        self.firsts = {
            (grain, number): block.firsts(grain)
            for grain in GRAINS
            if grain != ELEMENT
            for number, block in enumerate(subject.blocks)
        }
        self.flat = np.empty(int(self.starts[-1]), np.float32)
        self.grads_of_parameters: Grads = {}
        self.table_rows: dict[str, Rows] = {}  # valid until the next gradient, as the others
        self.written: WrittenSupport | None = None
        if subject.sparsified is not None:
            decay = frozenset(
                k for k, one in families.param_spec(subject.model).items() if one.decay
            )
            self.written = WrittenSupport(
                subject.sparsified,
                layout.slots,
                self.backend.inbox.copy(),
                decay,
                families.hidden_matrices(subject.model),
                families.rate_groups(subject.model),
            )

    def gradient(self, ticket: Ticket) -> float:
        """Compute one update's gradient into `flat`, block after block; returns its loss."""
        batch, rows = self.batches.at(*ticket), self.subject.micro_batch
        parts = [batch.part(k, k + rows) for k in range(0, len(batch.x), rows)]
        if len(parts) == 1:
            loss, grads = self.backend.loss_and_grads(batch)
        else:
            loss, total = 0.0, GradientSum()
            for part in parts:
                share = part.n_labels / max(batch.n_labels, 1)
                nats, part_grads = self.backend.loss_and_grads(part)
                total.add(part_grads, share)
                loss += share * nats
            grads = total.grads()
        self.grads_of_parameters, self.table_rows = parted(grads, self.tables)
        self._lay_out(grads)
        return loss

    def _lay_out(self, grads: Grads) -> None:
        for slot, start in zip(self.slots, self.starts, strict=False):
            grad, view = grads[slot.name], self.flat[start : start + slot.size]
            if isinstance(grad, Rows):
                view[:] = 0.0
                one = grad.coalesced()
                view.reshape(slot.shape)[one.index] = one.values
            else:
                view[:] = grad.reshape(-1)

    def counting(self) -> Iterator[tuple[str, int, NDArray[np.bool_]]]:
        """Yield (kind, block, which of its elements count) of the gradient in `flat`.

        Call it once for each gradient: error feedback adds the rest of a step to the next.
        """
        masks = {} if self.written is None else self.written.of(self.grads_of_parameters)
        for number, block in enumerate(self.subject.blocks):
            here = self.flat[self.block_starts[number] : self.block_starts[number + 1]]
            if masks:
                parts = [masks[slot.name].reshape(-1) for slot in block.slots]
                yield WRITTEN, number, np.concatenate(parts)
            size = np.abs(here)
            largest = float(size.max())
            yield EXACT, number, size > 0
            yield LARGE, number, size > NEGLIGIBLE * largest

    def move(self, direction: NDArray[np.float32], length: float) -> None:
        """Add `length * direction` to the parameters; `direction` is laid out like `flat`."""
        for slot, start in zip(self.slots, self.starts, strict=False):
            view = self.backend.inbox[slot.offset : slot.offset + slot.size]
            view += np.float32(length) * direction[start : start + slot.size]
        self.backend.refresh()


def source(lane: Lane, subject: Subject) -> GradientSource:
    """Return the lane's own source of gradients."""
    return lane.keep("source", lambda: GradientSource(subject))


def sample(lane: Lane, subject: Subject, tickets: Sequence[Ticket]) -> GradientSample:
    """Compute the gradients of some batches, all at the same parameters."""
    ours = source(lane, subject)
    packed: dict[tuple[str, str, int], list[Bits]] = {}
    losses, norms = [], []
    for ticket in tickets:
        losses.append(ours.gradient(ticket))
        norms.append(float(np.linalg.norm(ours.flat.astype(np.float64))))
        for kind, number, counts in ours.counting():
            for grain in GRAINS:
                groups = counts
                if grain != ELEMENT:
                    groups = np.logical_or.reduceat(counts, ours.firsts[grain, number])
                packed.setdefault((kind, grain, number), []).append(
                    np.packbits(groups, bitorder="little")
                )
    bits = {key: np.stack(rows) for key, rows in packed.items()}
    return GradientSample(bits, np.array(losses), np.array(norms))


def curvature(lane: Lane, subject: Subject, tickets: Sequence[Ticket], rounds: int) -> Any:
    """Return the largest |grad(x + d) - grad(x)| / |d| of some directions d.

    The directions come from power iteration on the Hessian of each batch, by finite differences.
    The result is a lower bound of the Lipschitz constant L of the gradient, near the parameters.

    Args:
        lane: of the child.
        subject: which gradients.
        tickets: batches, each with an iteration of its own.
        rounds: gradients in one iteration.
    """
    ours = source(lane, subject)
    steepest = 0.0
    before = ours.backend.inbox.copy()
    for number, ticket in enumerate(tickets):
        ours.gradient(ticket)
        at = ours.flat.copy()
        direction = np.random.default_rng([subject.seed, number]).standard_normal(
            at.size, np.float32
        )
        for _ in range(rounds):
            direction /= np.linalg.norm(direction)
            ours.move(direction, SHIFT)
            ours.gradient(ticket)
            ours.backend.inbox[:] = before
            ours.backend.refresh()
            change = ours.flat - at
            length = float(np.linalg.norm(change))
            steepest = max(steepest, length / SHIFT)
            if length == 0.0:
                break
            direction = change
    return steepest
