"""Evaluation on held-out text: always the same sequences, in the same order, in the same shape."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from mlxhog.data.batch import IGNORED, Batch
from mlxhog.data.tokens import TokenFile


def n_batches(
    file: TokenFile, *, seq_len: int, batch_size: int, eval_tokens: int | None = None
) -> int:
    """Return how many batches `batches` yields from start to end."""
    return -(-len(_chosen(file, seq_len, eval_tokens)) // batch_size)


def batches(
    file: TokenFile,
    *,
    seq_len: int,
    batch_size: int,
    eval_tokens: int | None = None,
    first: int = 0,
    count: int | None = None,
) -> Iterator[Batch]:
    """Yield the held-out text as batches of exactly (batch_size, seq_len).

    Document separators are labelled `IGNORED`, and so is the padding that completes the last
    sequence and the last batch; over the whole file the batches' `n_bytes` add up to the text's.

    Args:
        file: the held-out token file.
        seq_len: length of a sequence.
        batch_size: rows of every batch.
        eval_tokens: about how many labels to use, rounded up to whole sequences, spread evenly
            over the file; None is the whole file.
        first: batches to pass over.
        count: batches to yield; None is all that follow.
    """
    chosen = _chosen(file, seq_len, eval_tokens)
    stop = len(chosen) if count is None else min(len(chosen), (first + count) * batch_size)
    for start in range(first * batch_size, stop, batch_size):
        x = np.full((batch_size, seq_len), file.bos, np.int32)
        y = np.full((batch_size, seq_len), IGNORED, np.int32)
        for row, i in enumerate(chosen[start : start + batch_size].tolist()):
            tokens = file.tokens[i * seq_len : (i + 1) * seq_len + 1]
            x[row, : len(tokens) - 1] = tokens[:-1]
            y[row, : len(tokens) - 1] = tokens[1:]
        y[y == file.bos] = IGNORED
        yield Batch(x, y, int(file.byte_lengths[y[y != IGNORED]].sum()))


def _chosen(file: TokenFile, seq_len: int, eval_tokens: int | None) -> NDArray[np.int64]:
    """The sequences to evaluate, the last of which may be shorter than seq_len."""
    total = -(-(file.n_tokens - 1) // seq_len)
    wanted = total if eval_tokens is None else min(total, max(1, -(-eval_tokens // seq_len)))
    return np.arange(wanted, dtype=np.int64) * total // wanted


def bits_per_byte(nats: float, n_bytes: int) -> float:
    """Return the summed cross entropy of the text's labels in bits per byte of text.

    Unlike the loss per token it can be compared between tokenizers.

    Args:
        nats: sum over the labels that `batches` counts, in nats.
        n_bytes: sum of the batches' `n_bytes`, > 0.
    """
    return nats / (math.log(2) * n_bytes)
