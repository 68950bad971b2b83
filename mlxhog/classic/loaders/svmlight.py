"""The svmlight format of RCV1 and of the LIBSVM collection: `LABEL FEATURE:VALUE ... # COMMENT`.

Blocks of lines are parsed by NumPy at once. Where a block is not well formed in every respect, its
lines are read one by one, which is slow and finds the line to name.
Format: Joachims, SVMlight; a `qid:` is read over.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mlxhog.classic.datasets import LabelKind, SparseRows
from mlxhog.classic.datasets.labels import how_to_map
from mlxhog.classic.loaders.lines import Block, blocks, wrong
from mlxhog.classic.loaders.svmlight_block import ParsedRows, parse_block
from mlxhog.classic.loaders.svmlight_line import parse_lines, without_comments, words_of
from mlxhog.errors import ConfigError, DataError


def load_svmlight(
    train: Path,
    test: Path | None = None,
    *,
    labels: Mapping[float, float] | None = None,
    label_kind: LabelKind = "signs",
) -> tuple[SparseRows, SparseRows | None]:
    """Read one file, or a training and a test file that count features alike.

    Features count from 1, as the format says, unless a feature 0 occurs in one of the files.

    Args:
        train: svmlight text, `.gz` or `.bz2` if compressed.
        test: the same for test rows.
        labels: what each label in the files becomes; None keeps them.
        label_kind: what labels have to be after that.

    Raises:
        ConfigError: `labels` maps to something else than signs where those are wanted.
        DataError: a file or a line is malformed, a row is empty, features are out of order or
            twice, a number is not finite, a label is not mapped or not of its kind. Names the line.
    """
    if labels is not None and label_kind == "signs" and not {*labels.values()} <= {-1.0, 1.0}:
        raise ConfigError(f"--labels maps to {sorted({*labels.values()})}; wanted -1 and +1")
    parsed = [_read(path, labels, label_kind) for path in (train, test) if path is not None]
    first = min(int(rows.features.min()) for rows in parsed)
    base = min(first, 1)
    n_features = max(int(rows.features.max()) for rows in parsed) + 1 - base
    made = [
        SparseRows(
            indptr=np.concatenate([[0], np.cumsum(rows.lengths)]),
            indices=rows.features - np.int32(base),
            values=rows.values,
            labels=rows.labels.astype(np.float32),
            n_features=n_features,
            label_kind=label_kind,
        )
        for rows in parsed
    ]
    return made[0], made[1] if test is not None else None


def _read(path: Path, labels: Mapping[float, float] | None, kind: LabelKind) -> ParsedRows:
    parts = []
    for block in blocks(path):
        rows = parse_block(without_comments(block.text)) or parse_lines(block)
        parts.append(_with_labels(rows, block, labels, kind))
    joined = ParsedRows(
        *(
            np.concatenate([getattr(part, field.name) for part in parts])
            for field in dataclasses.fields(ParsedRows)
        )
    )
    if not len(joined.labels):
        raise DataError(f"{path} has no rows, only comments or empty lines")
    return joined


def _with_labels(
    rows: ParsedRows, block: Block, labels: Mapping[float, float] | None, kind: LabelKind
) -> ParsedRows:
    """The rows with mapped labels; an unmapped or illegal label is an error with its line."""
    found, place = np.unique(rows.labels, return_inverse=True)
    if labels is not None:
        illegal = [label for label in found.tolist() if label not in labels]
    else:
        illegal = found[np.abs(found) != 1.0].tolist() if kind == "signs" else []
    if illegal:
        row = int(np.argmax(np.isin(rows.labels, illegal)))
        way_out = how_to_map(found) if labels is None else "--labels has to say what it becomes"
        what = f"label {rows.labels[row]:g}; wanted -1 or +1. {way_out}"
        wrong(block.path, _line_of_row(block, row), what)
    if labels is None:
        return rows
    becomes = np.array([labels[label] for label in found.tolist()])
    return dataclasses.replace(rows, labels=becomes[place])


def _line_of_row(block: Block, row: int) -> int:
    filled = (number for number, line in block.lines() if words_of(line))
    return next(itertools.islice(filled, row, None))
