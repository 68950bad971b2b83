"""Omega, rho, Delta and conflict: of each block of a model, and of rows that batches look up.

A spawned process computes gradients (`sampling.py`); this side keeps bitmaps, whose size is
bounded, and turns them into estimates with intervals (`supports.py`). Rows of the embedding and of
tables of n-grams are counted, exactly: a batch looks up those of its text and moves no other row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlxhog.arena.child import Child, Failed
from mlxhog.data.batches import Batches
from mlxhog.data.tokenizers import Tokenizer
from mlxhog.errors import Diverged, EnvironmentLacks, WorkerFailed
from mlxhog.models.ngrams import NgramTables
from mlxhog.report.views import Tell
from mlxhog.theory import FEWEST
from mlxhog.theory.analysis import sampling
from mlxhog.theory.analysis.sampling import Block, Subject, Ticket
from mlxhog.theory.hypergraph import Hypergraph
from mlxhog.theory.supports import Supports

BITMAP_BYTES = 1 << 30
"""Memory that bitmaps may take."""

CHUNK = 8
PATIENCE_S = 600.0  # for one chunk, and the import of a framework before the first


@dataclass(frozen=True)
class BlockConflicts:
    """Conflicts between updates of a block, in its elements."""

    name: str  # of the block
    cell: str | None  # "mlstm" or "slstm" for a layer with that cell
    row_sparse: bool  # whether its gradient is that of the rows a batch looks up
    parameters: int  # number of its elements, n
    omega: int  # most elements that an update touches
    rho: float  # largest share of the batches that one batch shares an element with
    delta: float  # share of the batches that touch the busiest element
    p_conf: float  # probability that two batches share an element
    interval: tuple[float, float]  # of p_conf, with the confidence of `supports`
    mean: float  # elements that an update touches, on average
    untouched: int  # elements that no sampled update touched

    @classmethod
    def of(cls, block: Block, supports: Supports) -> BlockConflicts:
        """Estimate all quantities from some supports."""
        return cls(
            block.name,
            block.cell,
            all(slot.kind == "rows" for slot in block.slots),
            supports.n,
            supports.omega,
            supports.rho,
            supports.delta,
            supports.p_conf,
            supports.p_conf_interval,
            mean=float(supports.sizes.mean()),
            untouched=int(np.count_nonzero(supports.counts == 0)),
        )


class Measured(NamedTuple):
    """Conflicts of the blocks; of each sampled gradient mean nats, and length before clipping."""

    blocks: tuple[BlockConflicts, ...]
    losses: NDArray[np.float64]
    norms: NDArray[np.float64]


def most_samples(subject: Subject) -> int:
    """Return the number of gradients whose bitmaps fit into `BITMAP_BYTES`.

    Raises:
        EnvironmentLacks: they are fewer than `FEWEST`.
    """
    one = sum(-(-block.parameters // 8) for block in subject.blocks)
    fit = BITMAP_BYTES // one
    if fit < FEWEST:
        raise EnvironmentLacks(
            f"the supports of {FEWEST} gradients take {FEWEST * one / 2**30:.1f} GiB as bitmaps, "
            f"the limit is {BITMAP_BYTES / 2**30:.0f}; analyze a narrower model of the same kind: "
            "supports hardly depend on the width"
        )
    return fit


def measure(child: Child, subject: Subject, tickets: Sequence[Ticket], tell: Tell) -> Measured:
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
    chunks: list[sampling.Sampled] = []
    for first in range(0, len(tickets), CHUNK):
        tell(f"{first} of {len(tickets)} gradients")
        some = tickets[first : first + CHUNK]
        chunks.append(call_child(child, sampling.sample, subject, some))
        for (epoch, number), loss, norm in zip(
            some, chunks[-1].losses, chunks[-1].norms, strict=True
        ):
            if not np.isfinite(norm):
                raise Diverged(
                    f"the gradient of batch {number} of epoch {epoch} is not finite (loss "
                    f"{loss:g}); analyze an earlier checkpoint, or train with a smaller lr"
                )
    blocks = []
    for number, block in enumerate(subject.blocks):
        tell(f"conflicts of {block.name}")
        bits = np.concatenate([chunk.bits[number] for chunk in chunks])
        blocks.append(BlockConflicts.of(block, Supports(bits, block.parameters)))
    losses, norms = (np.concatenate(each) for each in list(zip(*chunks, strict=True))[1:])
    return Measured(tuple(blocks), losses, norms)


def call_child(child: Child, function: Callable[..., Any], *args: Any) -> Any:
    """Call a function in the child.

    Raises:
        WorkerFailed: the function failed, or the child died.
    """
    try:
        return child.call(PATIENCE_S, function, *args)
    except Failed as failure:
        raise WorkerFailed(f"the gradients cannot be computed: {failure}") from failure


# -- rows that batches look up ---------------------------------------------------------------------

HOTTEST = 8
MOST_OF_TABLES = 512
"""Batches to count for tables; the time grows with the square of the hottest row's batches."""
_TELL_EVERY = 256

RowConflicts = dict[str, Any]
"""Of `row_conflicts`."""


def row_conflicts(name: str, rows: int, edges: Sequence[NDArray[np.integer]]) -> RowConflicts:
    """Count the conflicts of some batches in rows that they look up, exactly.

    Args:
        name: of the rows: "embedding", or the order of the n-grams.
        rows: their number.
        edges: rows of each batch, ascending and distinct; two batches or more.

    Returns:
        Omega, rho, Delta and p_conf as of `Hypergraph`; `never`, the rows that no batch touched;
        and the `hottest` rows with the share of the batches that touch each, and p_conf without
        them.
    """
    graph = Hypergraph.from_lists(edges, rows)
    order = np.argsort(-graph.degrees, kind="stable")[:HOTTEST]
    hottest = [int(row) for row in order if graph.degrees[row]]
    rest = Hypergraph.from_lists([np.setdiff1d(edge, hottest) for edge in edges], rows)
    return {
        "name": name,
        "rows": rows,
        "batches": len(edges),
        "omega": graph.omega,
        "rho": graph.rho,
        "delta": graph.delta,
        "p_conf": graph.p_conf,
        "never": int(np.count_nonzero(graph.degrees == 0)),
        "hottest": [{"id": r, "share": float(graph.degrees[r]) / len(edges)} for r in hottest],
        "without_hottest": rest.p_conf,
    }


def count_rows(
    batches: Batches,
    tickets: Sequence[Ticket],
    rows: int,
    tokenizer: Tokenizer,
    tables: NgramTables | None,
    tell: Tell,
) -> Iterator[RowConflicts]:
    """Count the rows of the embedding that batches look up, then those of every table.

    The hottest rows of the embedding have the `text` of their token, too.
    """
    edges = []
    for number, ticket in enumerate(tickets):
        if number % _TELL_EVERY == 0:
            tell(f"{number} of {len(tickets)} batches")
        batch = batches.at(*ticket)
        read = batch.behind_context()[0] if batch.frozen else batch
        edges.append(np.unique(read.x))
    of_embedding = row_conflicts("embedding", rows, edges)
    for row in of_embedding["hottest"]:
        text = tokenizer.decode([row["id"]]).decode(errors="backslashreplace")
        row["text"] = "<bos>" if row["id"] == tokenizer.bos else repr(text)
    yield of_embedding
    if tables is None:
        return
    some = tickets[:: -(-len(tickets) // MOST_OF_TABLES)]
    counted = [tables.rows_of(batches.at(*ticket).x) for ticket in some]
    for order, (name, spec) in zip(tables.orders, tables.specs.items(), strict=True):
        tell(name)
        touched = [np.unique(one[name]) for one in counted]
        yield row_conflicts(str(order), spec.shape[0], touched)
