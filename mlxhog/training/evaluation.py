"""Evaluation on held-out text, in batches that workers share out among themselves.

The final evaluation lies in the arena, so that nothing depends on who listens when:

    segment     byte             type   meaning
    evaluation  32 k             u64    the round in which batch k was scored, 0 in none
                32 k + 8         f64    summed cross entropy, nats
                32 k + 16        u64    bytes of text its labels decode to
                32 k + 24        u64    its labels

A worker writes the sums of a batch, then its round by a release store. Batches are taken in an
order that spreads the first ones evenly over the text: an evaluation that ends early is a sample.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlxhog import _native
from mlxhog.backends.backend import Backend
from mlxhog.config.config import EMULATED, TrainConfig
from mlxhog.data import heldout
from mlxhog.data.tokens import TokenFile

SEGMENT = "evaluation"
FINAL_TOKENS = 2_000_000  # the final evaluation covers at most this much text
_DTYPE = np.dtype([("round", "<u8"), ("nats", "<f8"), ("n_bytes", "<u8"), ("tokens", "<u8")])


@dataclass(frozen=True)
class Score:
    """Sums over a piece of held-out text.

    Attributes:
        nats: cross entropy of its labels.
        n_bytes: of text.
        tokens: labels.
        share: how much of the text that was to be evaluated it is, 0 to 1.
    """

    nats: float
    n_bytes: int
    tokens: int
    share: float

    @property
    def bits_per_byte(self) -> float | None:
        """Cross entropy per byte of text, None without any."""
        return heldout.bits_per_byte(self.nats, self.n_bytes) if self.n_bytes else None


def final_tokens(config: TrainConfig) -> int:
    """Most held-out text of the final evaluation; an emulated model is slow and gets a sample."""
    return config.eval_tokens if config.kernels == EMULATED else FINAL_TOKENS


@dataclass(frozen=True)
class HeldOutText:
    """So much held-out text, in batches of one shape.

    Attributes:
        file: the held-out token file.
        seq_len: length of a sequence.
        rows: sequences in a batch.
        eval_tokens: about how many labels, spread evenly over the file.
    """

    file: TokenFile
    seq_len: int
    rows: int
    eval_tokens: int

    @classmethod
    def of(
        cls, file: TokenFile, config: TrainConfig, parameters: int, eval_tokens: int
    ) -> HeldOutText:
        """Choose the shape of batches by the model's number of parameters."""
        rows = heldout.rows_of_batch(parameters, config.seq_len)
        return cls(file, config.seq_len, rows, eval_tokens)

    @property
    def n_batches(self) -> int:
        """Batches in all."""
        return heldout.n_batches(
            self.file, seq_len=self.seq_len, batch_size=self.rows, eval_tokens=self.eval_tokens
        )

    def score(self, backend: Backend, batch: int) -> Score:
        """Score one batch at the parameters in the backend's inbox."""
        (part,) = heldout.batches(
            self.file,
            seq_len=self.seq_len,
            batch_size=self.rows,
            eval_tokens=self.eval_tokens,
            first=batch,
            count=1,
        )
        result = backend.evaluate(part)
        return Score(result.nats, part.n_bytes, result.targets, 1 / self.n_batches)

    def score_until(self, backend: Backend, is_over: Callable[[], bool]) -> Score:
        """Score batches until none is left or `ended`, which is asked before each but the first."""
        nats, n_bytes, tokens, n_scored = 0.0, 0, 0, 0
        for batch in spread(self.n_batches):
            if n_scored and is_over():
                break
            score = self.score(backend, batch)
            nats, n_scored = nats + score.nats, n_scored + 1
            n_bytes, tokens = n_bytes + score.n_bytes, tokens + score.tokens
        return Score(nats, n_bytes, tokens, n_scored / self.n_batches)


def spread(n: int) -> list[int]:
    """Return 0 .. n - 1 in an order whose first numbers, however many, are spread evenly.

    Source: van der Corput 1935: the numbers in the order of their bits reversed.

    >>> spread(6)
    [0, 4, 2, 1, 5, 3]
    """
    order, half = [0], 1 << max(n - 1, 0).bit_length()
    while half > 1:
        half //= 2
        order += [k + half for k in order]
    return [k for k in order if k < n]


def segment(file: TokenFile, config: TrainConfig, parameters: int) -> tuple[str, int]:
    """Type and length of the arena's segment; see `arena.plan`."""
    text = HeldOutText.of(file, config, parameters, final_tokens(config))
    return "uint8", text.n_batches * _DTYPE.itemsize


class Scores:
    """The table of the final evaluation, over the arena's segment.

    Concurrency: workers put in scores of different batches; two that score the same batch at the
    same parameters (one of them for a worker thought dead) write the same.
    """

    def __init__(self, data: NDArray[np.uint8]) -> None:
        """Wrap the segment."""
        self._data, self._table = data, data.view(_DTYPE)

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self._table)

    def round_of(self, batch: int) -> int:
        """The round in which a batch was scored last, 0 for none."""
        return _native.load_u64(self._data, batch * _DTYPE.itemsize)

    def put(self, batch: int, round_: int, score: Score) -> None:
        """Write what a batch came to, then publish it."""
        row = self._table[batch]
        row["nats"], row["n_bytes"], row["tokens"] = score.nats, score.n_bytes, score.tokens
        _native.store_u64(self._data, batch * _DTYPE.itemsize, round_)

    def total(self, first: int) -> Score:
        """Add up the batches that were scored since round `first`."""
        maybe = np.flatnonzero(self._table["round"] >= first)
        batches = [k for k in maybe.tolist() if self.round_of(k) >= first]  # acquires their sums
        rows = self._table[batches]
        n_bytes, tokens = int(rows["n_bytes"].sum()), int(rows["tokens"].sum())
        return Score(float(rows["nats"].sum()), n_bytes, tokens, len(batches) / len(self))
