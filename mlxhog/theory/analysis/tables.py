"""Conflicts in tables of n-grams: the rows that batches touch, counted without gradients.

A batch touches the rows of the n-grams in its text. A few frequent n-grams are in every batch, so
p_conf is near 1 at low orders; the share of its rows that a batch has in common with the next one
says how much of an update meets another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mlxhog.data.batches import Batches
from mlxhog.models.ngrams import NgramTables
from mlxhog.report.views import Tell
from mlxhog.theory.analysis.sampling import Ticket
from mlxhog.theory.hypergraph import Hypergraph

MOST_BATCHES = 512
"""Batches to count at most; the time grows with the square of the hottest row's batches."""


@dataclass(frozen=True, kw_only=True)
class TableConflicts:
    """Conflicts of one table, exact for the counted batches.

    Attributes:
        order: n.
        rows: of the table.
        batches: number of counted batches.
        omega: most rows of one batch.
        mean_rows: rows of a batch on average.
        rho: largest share of the batches that one batch shares a row with.
        delta: share of the batches that touch the hottest row.
        p_conf: share of the pairs of batches that share a row.
        shared: share of a batch's rows that the next counted batch touches, too, on average.
        never: rows that no batch touched.
    """

    order: int
    rows: int
    batches: int
    omega: int
    mean_rows: float
    rho: float
    delta: float
    p_conf: float
    shared: float
    never: int


def count_tables(
    batches: Batches, tickets: Sequence[Ticket], tables: NgramTables | None, *, tell: Tell
) -> tuple[TableConflicts, ...]:
    """Count the rows that batches touch in every table; nothing for a model without tables.

    Args:
        batches: of the training text.
        tickets: batches to count, at least two.
        tables: of the model.
        tell: called with the progress.
    """
    if tables is None:
        return ()
    counted = [tables.rows_of(batches.at(*ticket).x) for ticket in tickets]
    results = []
    for order, (name, spec) in zip(tables.orders, tables.specs.items(), strict=True):
        tell(name)
        edges = [np.unique(rows[name]) for rows in counted]
        graph = Hypergraph.from_lists(edges, spec.shape[0])
        shares = [
            len(np.intersect1d(one, other, assume_unique=True)) / len(one)
            for one, other in zip(edges, edges[1:], strict=False)
        ]
        results.append(
            TableConflicts(
                order=order,
                rows=spec.shape[0],
                batches=len(edges),
                omega=graph.omega,
                mean_rows=float(graph.sizes.mean()),
                rho=graph.rho,
                delta=graph.delta,
                p_conf=graph.p_conf,
                shared=float(np.mean(shares)),
                never=int(np.count_nonzero(graph.degrees == 0)),
            )
        )
    return tuple(results)
