"""Omega, rho, Delta and conflict of each block of a model, and of the rows of its embedding.

A spawned process computes gradients (`sampling.py`); this side keeps bitmaps, whose size is
bounded, and turns them into estimates with intervals (`supports.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.arena.child import Child, Failed
from mlxhog.data.batches import Batches
from mlxhog.data.tokenizers import Tokenizer
from mlxhog.errors import Diverged, EnvironmentLacks, WorkerFailed
from mlxhog.report.views import Tell
from mlxhog.theory.analysis import FEWEST, sampling
from mlxhog.theory.analysis.sampling import ELEMENT, EXACT, GRAINS, WRITTEN, Block, Subject, Ticket
from mlxhog.theory.hypergraph import Hypergraph
from mlxhog.theory.supports import (
    Estimate,
    Supports,
    estimate_delta,
    estimate_omega,
    estimate_p_conf,
    estimate_rho,
)

BITMAP_BYTES = 1 << 30
"""Memory that bitmaps may take."""

CHUNK = 8
PATIENCE_S = 600.0  # for one chunk, and the import of a framework before the first


@dataclass(frozen=True)
class Conflict:
    """Conflicts between gradients of a block, in groups of one size.

    Attributes:
        groups: elements, lines, stripes or rows of the block.
        omega: most groups that a gradient touches.
        rho: largest share of the batches that one batch shares a group with.
        delta: share of the batches that touch the busiest group.
        p_conf: probability that two batches share a group.
        mean_groups: groups that a gradient touches, on average.
        untouched: groups that no sampled gradient touched.
    """

    groups: int
    omega: Estimate
    rho: Estimate
    delta: Estimate
    p_conf: Estimate
    mean_groups: float
    untouched: int

    @property
    def dense(self) -> bool:
        """Whether all sampled gradients touched one group, so that any two met."""
        return self.delta.value == 1.0 and self.p_conf.value == 1.0

    def to_json(self) -> dict[str, Any]:
        """Return the values, and the intervals below `intervals`."""
        estimates = {name: getattr(self, name) for name in ("omega", "rho", "delta", "p_conf")}
        return {
            **{name: estimate.value for name, estimate in estimates.items()},
            "mean": self.mean_groups,
            "untouched": self.untouched,
            "groups": self.groups,
            "intervals": {name: asdict(estimate) for name, estimate in estimates.items()},
        }


@dataclass(frozen=True)
class BlockConflicts:
    """A block's conflicts.

    Attributes:
        block: the block.
        by: (kind, grain) -> conflict; kinds and grains as in `sampling.py`.
    """

    block: Block
    by: Mapping[tuple[str, str], Conflict]

    @property
    def counted(self) -> str:
        """Kind of the elements that an update touches: written ones, if a part is written."""
        return WRITTEN if (WRITTEN, ELEMENT) in self.by else EXACT

    @property
    def elements(self) -> Conflict:
        """Conflicts in single elements, as the paper defines them."""
        return self.by[self.counted, ELEMENT]


@dataclass(frozen=True)
class ConflictMeasurement:
    """Conflicts, losses and norms of sampled gradients.

    Attributes:
        samples: gradients, each of one update.
        blocks: their conflicts.
        losses: (samples,) mean nats of each batch.
        norms: (samples,) length of each gradient, before clipping.
    """

    samples: int
    blocks: tuple[BlockConflicts, ...]
    losses: NDArray[np.float64]
    norms: NDArray[np.float64]


def most_samples(subject: Subject) -> int:
    """Return the number of gradients whose bitmaps fit into `BITMAP_BYTES`.

    Raises:
        EnvironmentLacks: they are fewer than `FEWEST`.
    """
    blocks = subject.blocks
    one = sum(-(-b.groups(g) // 8) for b in blocks for g in GRAINS) * len(subject.kinds)
    fit = BITMAP_BYTES // one
    if fit < FEWEST:
        parameters = sum(block.parameters for block in blocks)
        raise EnvironmentLacks(
            f"the supports of {FEWEST} gradients of {parameters:,} parameters take "
            f"{FEWEST * one / 2**30:.1f} GiB as bitmaps, the limit is {BITMAP_BYTES / 2**30:.0f}; "
            "analyze a narrower model of the same kind: supports hardly depend on the width"
        )
    return fit


def measure(
    child: Child, subject: Subject, tickets: Sequence[Ticket], tell: Tell
) -> ConflictMeasurement:
    """Sample the gradients of some batches, and estimate.

    Args:
        child: computes them.
        subject: the model and its text.
        tickets: the batches, at least `FEWEST`, drawn at random.
        tell: called with the progress.

    Raises:
        Diverged: a gradient is not finite.
        WorkerFailed: the backend cannot compute them; the message ends with its last output.
    """
    bits: dict[tuple[str, str, int], list[NDArray[np.uint8]]] = {}
    losses, norms = [], []
    for first in range(0, len(tickets), CHUNK):
        tell(f"{first} of {len(tickets)} gradients")
        sampled = call_child(child, sampling.sample, subject, tickets[first : first + CHUNK])
        _check_finite(sampled, tickets[first : first + CHUNK])
        for key, rows in sampled.bits.items():
            bits.setdefault(key, []).append(rows)
        losses.append(sampled.losses)
        norms.append(sampled.norms)
    blocks = []
    for number, block in enumerate(subject.blocks):
        tell(f"conflicts of {block.name}")
        by = {}
        for kind in subject.kinds:
            for grain in GRAINS:
                # Popped, so that joined bitmaps are not kept twice.
                joined = np.concatenate(bits.pop((kind, grain, number)))
                by[kind, grain] = conflict(Supports(joined, block.groups(grain)))
        blocks.append(BlockConflicts(block, by))
    return ConflictMeasurement(
        len(tickets), tuple(blocks), np.concatenate(losses), np.concatenate(norms)
    )


def conflict(supports: Supports) -> Conflict:
    """Estimate all quantities from some supports."""
    delta = estimate_delta(supports)
    rho = estimate_rho(supports)
    if rho.value < delta.value:  # impossible: all examples of the busiest group meet there
        rho = replace(rho, value=delta.value, low=max(rho.low, delta.low))
    return Conflict(
        groups=supports.n,
        omega=estimate_omega(supports),
        rho=rho,
        delta=delta,
        p_conf=estimate_p_conf(supports),
        mean_groups=float(supports.sizes().mean()),
        untouched=int(np.count_nonzero(supports.counts == 0)),
    )


def call_child(child: Child, function: Callable[..., Any], *args: Any) -> Any:
    """Call a function in the child.

    Raises:
        WorkerFailed: the function failed, or the child died.
    """
    try:
        return child.call(PATIENCE_S, function, *args)
    except Failed as failure:
        raise WorkerFailed(f"the gradients cannot be computed: {failure}") from failure


def _check_finite(sampled: sampling.GradientSample, tickets: Sequence[Ticket]) -> None:
    wrong = np.flatnonzero(~np.isfinite(sampled.norms))
    if wrong.size:
        epoch, number = tickets[int(wrong[0])]
        raise Diverged(
            f"the gradient of batch {number} of epoch {epoch} is not finite (loss "
            f"{sampled.losses[wrong[0]]:g}); analyze an earlier checkpoint, or train with a "
            "smaller lr"
        )


# -- rows of the embedding: counted, not sampled from gradients ------------------------------------

# A batch looks up the rows of its tokens and moves no other row, so two updates share the rows of
# their common tokens.

HOTTEST = 8
_TELL_EVERY = 256


@dataclass(frozen=True)
class HotToken:
    """A token, and the share of the batches that touch its row.

    Attributes:
        id: its number.
        text: of the token, quoted; "<bos>" for the start of a document.
        share: of the batches that hold it.
    """

    id: int
    text: str
    share: float


@dataclass(frozen=True, kw_only=True)
class RowStatistics:
    """Rows of an embedding under the batches of a text; exact for the batches that were counted.

    Attributes:
        batches: number of counted batches.
        whole_epoch: whether they are all batches of an epoch.
        rows: of the embedding, V.
        omega: most rows of one batch.
        mean_rows: rows of a batch on average.
        rho: largest share of the batches that one batch shares a row with.
        delta: share of the batches that touch the hottest row.
        p_conf: share of the pairs of batches that share a row.
        mean_conflict_degree: batches of those counted that a batch shares a row with, on average.
        without_hottest: p_conf without the rows of `hottest`.
        never: rows that no batch touched.
        hottest: the rows touched most, descending.
    """

    batches: int
    whole_epoch: bool
    rows: int
    omega: int
    mean_rows: float
    rho: float
    delta: float
    p_conf: float
    mean_conflict_degree: float
    without_hottest: float
    never: int
    hottest: tuple[HotToken, ...]


def count_rows(
    batches: Batches,
    tickets: Sequence[tuple[int, int]],
    *,
    rows: int,
    tokenizer: Tokenizer,
    tell: Tell,
) -> RowStatistics:
    """Count the rows that batches touch.

    Args:
        batches: of the training text.
        tickets: (epoch, number) of the batches to count, at least two.
        rows: of the embedding.
        tokenizer: names the tokens.
        tell: called with the progress.
    """
    edges = []
    for number, ticket in enumerate(tickets):
        if number % _TELL_EVERY == 0:
            tell(f"{number} of {len(tickets)} batches")
        batch = batches.at(*ticket)
        read = batch.behind_context()[0] if batch.frozen else batch
        edges.append(np.unique(read.x))
    graph = Hypergraph.from_lists(edges, rows)
    order = np.argsort(-graph.degrees, kind="stable")[:HOTTEST]
    hottest = [int(token) for token in order if graph.degrees[token]]
    rest = Hypergraph.from_lists([np.setdiff1d(edge, hottest) for edge in edges], rows)
    return RowStatistics(
        batches=len(edges),
        whole_epoch=len(set(tickets)) == batches.n_tickets and len({e for e, _ in tickets}) == 1,
        rows=rows,
        omega=graph.omega,
        mean_rows=float(graph.sizes.mean()),
        rho=graph.rho,
        delta=graph.delta,
        p_conf=graph.p_conf,
        mean_conflict_degree=graph.mean_conflict_degree,
        without_hottest=rest.p_conf,
        never=int(np.count_nonzero(graph.degrees == 0)),
        hottest=tuple(
            HotToken(token, token_name(tokenizer, token), float(graph.degrees[token]) / len(edges))
            for token in hottest
        ),
    )


def token_name(tokenizer: Tokenizer, token: int) -> str:
    """Return the text of a token, on one line."""
    if token == tokenizer.bos:
        return "<bos>"
    if token >= tokenizer.n_ids:
        return f"<{token}>"
    return repr(tokenizer.decode([token]).decode(errors="backslashreplace"))
