"""What was said so far, and how fast."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from mlxhog.decoding.generate import FinishReason, Said


@dataclass
class Answer:
    """One answer.

    Attributes:
        ids: its tokens, without the one that ends a document.
        pieces: its text, without a stop string, in the pieces it came in.
        finish_reason: why it ended; None while it goes on.
        ttft_s: seconds from the start of all answers to its first token; None before that.
    """

    ids: list[int] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    ttft_s: float | None = None

    @property
    def text(self) -> str:
        """Its text so far."""
        return "".join(self.pieces)


class Answers:
    """Collects `Said`s and measures their pace. The clock starts when this is made.

    Args:
        count: how many answers there will be.
        clock: seconds, monotonic.
    """

    def __init__(self, count: int, *, clock: Callable[[], float] = time.perf_counter) -> None:
        """See the class."""
        self.rows = [Answer() for _ in range(count)]
        self._clock = clock
        self._start = self._last = clock()
        self._first: float | None = None

    def follow(self, said: Iterable[Said]) -> Iterator[Said]:
        """Take note of everything that passes."""
        for one in said:
            row, self._last = self.rows[one.row], self._clock()
            if self._first is None:
                self._first = self._last
            if row.ttft_s is None:
                row.ttft_s = self._last - self._start
            if one.token is not None:
                row.ids.append(one.token)
            row.pieces.append(one.text)
            row.finish_reason = one.finish_reason
            yield one

    @property
    def tokens(self) -> int:
        """Tokens of all answers."""
        return sum(len(row.ids) for row in self.rows)

    @property
    def seconds(self) -> float:
        """From the start to the last token."""
        return self._last - self._start

    @property
    def ttft_s(self) -> float | None:
        """Seconds to the first token of all, the reading of its prompt included."""
        return None if self._first is None else self._first - self._start

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens per second after the first one; None where there is no second."""
        if self._first is None or self.tokens < 2 or self._last <= self._first:
            return None
        return (self.tokens - 1) / (self._last - self._first)
