"""Graphs from edge lists, `VERTEX VERTEX WEIGHT`, and the vertices whose label is known.

Columns are separated by spaces, tabs or commas; without a third one every edge weighs 1. That is
the form of SNAP's and KONECT's files.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mlxhog.classic.datasets import Graph
from mlxhog.classic.loaders.identifiers import renumber
from mlxhog.classic.loaders.lines import blocks, wrong
from mlxhog.classic.loaders.table import line_of_row, read_table, whole_ids
from mlxhog.errors import ConfigError, DataError

MOST_LABELS = 4096
"""Every vertex has a number for each label."""
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_FORM = "VERTEX=LABEL by commas, such as 0=0,33=1, or a file with VERTEX LABEL on each line"


def load_graph(path: Path, terminals: str) -> Graph:
    """Read a graph; vertices are numbered from 0 in the order of their names, gaps closed.

    Args:
        path: lines VERTEX VERTEX [WEIGHT] of whole numbers as names; `.gz` and `.bz2` are unpacked.
        terminals: the labels that are known: VERTEX=LABEL by commas, or a file of such lines.

    Raises:
        ConfigError: `terminals` is neither, names a vertex that is not in the graph, or gives all
            of its vertices the same label.
        DataError: a line is malformed, joins a vertex with itself, or has a weight below 0; the
            message names the line.
    """
    heads, tails, weights = [], [], []
    for block, table in read_table(blocks(path), least=2, most=3):
        heads.append(whole_ids(table[:, 0], block, "vertex"))
        tails.append(whole_ids(table[:, 1], block, "vertex"))
        weights.append(table[:, 2] if table.shape[1] == 3 else np.ones(len(table)))
        for illegal, what in (
            (heads[-1] == tails[-1], "an edge from a vertex to itself; leave it out"),
            (weights[-1] < 0, "a weight below 0; a cut can only cost something"),
            (weights[-1] > _FLOAT32_MAX, "a weight that is infinite in float32"),
        ):
            if illegal.any():
                wrong(path, line_of_row(block, int(np.argmax(illegal))), what)
    if not weights:
        raise DataError(f"{path} is a graph with no edges; wanted lines of VERTEX VERTEX [WEIGHT]")
    columns = [np.concatenate(heads), np.concatenate(tails)]
    known = _labels(terminals)
    if max(known.values()) >= MOST_LABELS:
        raise ConfigError(
            f"--terminals has the label {max(known.values())}; number them from 0, "
            f"{MOST_LABELS} at most"
        )
    names = np.unique(np.concatenate(columns))
    missing = sorted(known.keys() - set(names.tolist()))
    if missing:
        raise ConfigError(f"terminal {missing[0]} is no vertex of {path}")
    (from_0, to_0), n_vertices = renumber(columns)
    return Graph(
        heads=from_0,
        tails=to_0,
        weights=np.concatenate(weights).astype(np.float32),
        n_vertices=n_vertices,
        terminals={int(np.searchsorted(names, name)): label for name, label in known.items()},
        labels=max(known.values()) + 1,
    )


def _labels(terminals: str) -> dict[int, int]:
    """The label of each terminal, by the name that the file gives it."""
    if Path(terminals).is_file():
        path = Path(terminals)
        pairs = [
            (int(vertex), int(label))
            for block, table in read_table(blocks(path), least=2, most=2)
            for vertex, label in zip(
                whole_ids(table[:, 0], block, "vertex"),
                whole_ids(table[:, 1], block, "label"),
                strict=True,
            )
        ]
    else:
        pairs = [_pair(text) for text in terminals.split(",")]
    known = dict(pairs)
    if len(set(known.values())) < 2:
        raise ConfigError("--terminals names one label only; wanted two or more to cut between")
    return known


def _pair(text: str) -> tuple[int, int]:
    vertex, equals, label = text.partition("=")
    if not (equals and vertex.strip().isdecimal() and label.strip().isdecimal()):
        raise ConfigError(f"--terminals has {text!r}; wanted {_FORM}")
    return int(vertex), int(label)
