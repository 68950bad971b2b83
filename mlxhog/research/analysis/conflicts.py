"""Omega, rho, Delta and conflict: of each block of a model, and of rows of the embedding.

A spawned process computes gradients (`sampling.py`); this side turns their bitmaps into estimates
with intervals. Rows of the embedding are counted exactly: those of a batch's tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlxhog.arena.child import Child, Failed
from mlxhog.data.tokenizers import Tokenizer
from mlxhog.display.views import Tell, TellStep
from mlxhog.errors import Diverged, EnvironmentLacks, WorkerFailed
from mlxhog.research import MIN_SAMPLES
from mlxhog.research.analysis import sampling
from mlxhog.research.analysis.sampling import Block, Subject, Ticket
from mlxhog.research.hypergraph import Hypergraph
from mlxhog.training.plan.values import BatchSource

BITMAP_BYTES = 1 << 30  # memory that bitmaps may take
CHUNK, PART = 8, 64  # gradients of one call, and of one part of the work
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
    interval: tuple[float, float]  # of p_conf, with the `CONFIDENCE` of `hypergraph`
    mean: float  # elements that an update touches, on average
    untouched: int  # elements that no sampled update touched

    @classmethod
    def of(cls, block: Block, sample: Hypergraph) -> "BlockConflicts":
        """Estimate all quantities from some supports."""
        return cls(
            block.name,
            block.cell,
            all(slot.kind == "rows" for slot in block.slots),
            block.parameters,
            sample.omega,
            sample.sampled_rho,
            sample.delta,
            sample.p_conf,
            sample.p_conf_interval,
            mean=float(sample.sizes.mean()),
            untouched=int(np.count_nonzero(sample.degrees == 0)),
        )


class MeasuredConflicts(NamedTuple):
    """Conflicts of the blocks; of each sampled gradient mean nats, and length before clipping."""

    blocks: tuple[BlockConflicts, ...]
    losses: NDArray[np.float64]
    norms: NDArray[np.float64]


def max_samples(subject: Subject) -> int:
    """Return the number of gradients whose bitmaps fit into `BITMAP_BYTES`.

    Raises:
        EnvironmentLacks: they are fewer than `MIN_SAMPLES`.
    """
    one = sum(-(-block.parameters // 8) for block in subject.blocks)
    fit = BITMAP_BYTES // one
    if fit < MIN_SAMPLES:
        raise EnvironmentLacks(
            f"the supports of {MIN_SAMPLES} gradients take {MIN_SAMPLES * one / 2**30:.1f} GiB as "
            f"bitmaps, the limit is {BITMAP_BYTES / 2**30:.0f}; analyze a narrower model of the "
            "same kind: supports hardly depend on the width"
        )
    return fit


def measure(
    child: Child, subject: Subject, tickets: Sequence[Ticket], tell: TellStep
) -> MeasuredConflicts:
    """Sample the gradients of some batches, and estimate.

    Tickets are drawn at random, `MIN_SAMPLES` or more.

    Raises:
        Diverged: a gradient is not finite.
        WorkerFailed: the backend cannot compute them; the message ends with its last output.
    """
    chunks: list[sampling.Sampled] = []
    for first in range(0, len(tickets), CHUNK):
        tell(f"gradients from {first // PART * PART} of {len(tickets)}", f"{first} done")
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
        tell("conflicts", block.name)
        bits = np.concatenate([chunk.bits[number] for chunk in chunks])
        blocks.append(BlockConflicts.of(block, Hypergraph.of_bitmaps(bits, block.parameters)))
    losses, norms = (np.concatenate(each) for each in list(zip(*chunks, strict=True))[1:])
    return MeasuredConflicts(tuple(blocks), losses, norms)


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
_TELL_EVERY = 256


def count_rows(
    batches: BatchSource, tickets: Sequence[Ticket], rows: int, tokenizer: Tokenizer, tell: Tell
) -> dict[str, Any]:
    """Count the conflicts of two or more batches in rows of the embedding, exactly.

    Beside Omega, rho, Delta and p_conf of `Hypergraph` it returns how many rows `never` occur, the
    `hottest` rows with their tokens' texts and shares of batches, and p_conf `without_hottest`.
    """
    edges = []
    for number, ticket in enumerate(tickets):
        if number % _TELL_EVERY == 0:
            tell(f"{number} of {len(tickets)} batches")
        batch = batches.at(*ticket)
        edges.append(np.unique((batch.behind_context()[0] if batch.frozen else batch).x))
    graph = Hypergraph.of_lists(edges, rows)
    order = np.argsort(-graph.degrees, kind="stable")[:HOTTEST]
    hottest = [int(row) for row in order if graph.degrees[row]]
    rest = Hypergraph.of_lists([np.setdiff1d(edge, hottest) for edge in edges], rows)

    def text(row: int) -> str:
        spelled = tokenizer.decode([row]).decode(errors="backslashreplace")
        return "<bos>" if row == tokenizer.bos else repr(spelled)

    return {
        "name": "embedding",
        "rows": rows,
        "batches": len(edges),
        "omega": graph.omega,
        "rho": graph.rho,
        "delta": graph.delta,
        "p_conf": graph.p_conf,
        "never": int(np.count_nonzero(graph.degrees == 0)),
        "hottest": [
            {"id": row, "share": float(graph.degrees[row]) / len(edges), "text": text(row)}
            for row in hottest
        ],
        "without_hottest": rest.p_conf,
    }
