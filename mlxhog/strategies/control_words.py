"""64-bit words that the workers of one strategy share, one 128-byte line per writer.

Before a worker writes parameters it stores here all counts after its step (`StepJournal`), so that
its replacement can finish the step. Counts are stored, never added: twice is the same as once.

    journal  word  meaning
                0  steps its optimizer has taken, once the current step is done
                1  updates of the run (`version`), likewise
                2  tokens, likewise
                3  whether the gradient was finite, so that the step is applied
                4  1 + the current ticket, counted from the beginning of training; 0 none yet
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlxhog import _native

LINE = 128


class Words:
    """Lines of 16 words in a segment of the arena.

    Concurrency: loads acquire and stores release; each line has one writer at a time.
    """

    def __init__(self, data: NDArray[np.uint8]) -> None:
        """Wrap a segment of whole lines."""
        self._data = data

    def load(self, line: int, word: int) -> int:
        """The word's value, 0 <= value < 2^64."""
        return _native.load_u64(self._data, LINE * line + 8 * word)

    def store(self, line: int, word: int, value: int) -> None:
        """Set the word."""
        _native.store_u64(self._data, LINE * line + 8 * word, value)

    def load_float(self, line: int, word: int) -> float:
        """The word's bits as a float64."""
        (value,) = struct.unpack("<d", struct.pack("<Q", self.load(line, word)))
        return float(value)

    def store_float(self, line: int, word: int, value: float) -> None:
        """Set the word to the bits of a float64."""
        (bits,) = struct.unpack("<Q", struct.pack("<d", value))
        self.store(line, word, bits)


class StepRecord(NamedTuple):
    """Counts after the current step, and its ticket: -1 before the first record."""

    opt_step: int
    version: int
    tokens: int
    applied: bool
    ticket: int


class StepJournal:
    """One worker's line with the `StepRecord` of its current step."""

    def __init__(self, words: Words, line: int) -> None:
        """Use a line of the words."""
        self._words, self._line = words, line

    def write(self, record: StepRecord) -> None:
        """Store the counts after the step. Not atomic: only before the ticket's `begin_apply`."""
        for word, value in enumerate(record._replace(ticket=record.ticket + 1)):
            self._words.store(self._line, word, int(value))

    def read(self) -> StepRecord:
        """The last record, perhaps a predecessor's."""
        opt_step, version, tokens, applied, ticket = (
            self._words.load(self._line, word) for word in range(5)
        )
        return StepRecord(opt_step, version, tokens, bool(applied), ticket - 1)
