"""Which rows of the embedding each batch of a text touches: counted, not sampled from gradients.

A batch looks up the rows of its tokens and moves no other, so its tokens alone say what two
updates have in common.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mlxhog.data.batches import Batches
from mlxhog.data.tokenizers import Tokenizer
from mlxhog.theory.hypergraph import Hypergraph

HOTTEST = 8
_TELL_EVERY = 256


@dataclass(frozen=True)
class HotToken:
    """A token and how often its row is touched.

    Attributes:
        id: its number.
        text: what it stands for, quoted; "<bos>" for the start of a document.
        share: of the batches that hold it.
    """

    id: int
    text: str
    share: float


@dataclass(frozen=True, kw_only=True)
class RowStatistics:
    """Rows of an embedding under the batches of a text; exact for the batches that were counted.

    Attributes:
        batches: how many were counted.
        whole_epoch: whether they are all batches of an epoch.
        rows: of the embedding, V.
        omega: most rows of one batch.
        mean_rows: rows of a batch on average.
        rho: largest share of the batches that one batch shares a row with.
        delta: share of the batches that touch the hottest row.
        p_conf: share of the pairs of batches that share a row.
        mean_conflict_degree: batches of those counted that a batch shares a row with, on average.
        without_hottest: p_conf if the hottest rows that `hottest` lists were left out.
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

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def count(
    batches: Batches,
    tickets: Sequence[tuple[int, int]],
    *,
    rows: int,
    tokenizer: Tokenizer,
    tell: Callable[[str], None],
) -> RowStatistics:
    """Count the rows that batches touch.

    Args:
        batches: of the training text.
        tickets: (epoch, number) of the batches to count, at least two.
        rows: of the embedding.
        tokenizer: names the tokens.
        tell: told how far it is.
    """
    edges = []
    for number, ticket in enumerate(tickets):
        if number % _TELL_EVERY == 0:
            tell(f"{number} of {len(tickets)} batches")
        edges.append(np.unique(batches.at(*ticket).x))
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
            HotToken(token, spelt(tokenizer, token), float(graph.degrees[token]) / len(edges))
            for token in hottest
        ),
    )


def spelt(tokenizer: Tokenizer, token: int) -> str:
    """Say what a token stands for, on one line."""
    if token == tokenizer.bos:
        return "<bos>"
    if token >= tokenizer.n_ids:
        return f"<{token}>"
    return repr(tokenizer.decode([token]).decode(errors="backslashreplace"))
