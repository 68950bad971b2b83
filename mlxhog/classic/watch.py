"""What a run tells the one who started it."""

from __future__ import annotations

from typing import Protocol

from mlxhog.classic.result import Epoch


class Watch(Protocol):
    """Calls made by the host while the workers work; none of them may block."""

    def began(self, what: str, epochs: int, examples: int) -> None:
        """A run begins, such as "serial"; it has `epochs` of `examples` each."""

    def beat(self, done: int) -> None:
        """`done` examples of the epoch in hand are done; called many times a second.

        It may raise KeyboardInterrupt, which ends the run: its epoch in hand is not measured.
        """

    def epoch(self, epoch: Epoch) -> None:
        """An epoch has ended and was measured."""

    def tell(self, message: str) -> None:
        """Something happened that the user should know, such as a worker that died."""


class Unwatched:
    """A run that nobody watches."""

    def began(self, what: str, epochs: int, examples: int) -> None:
        """See `Watch.began`."""

    def beat(self, done: int) -> None:
        """See `Watch.beat`."""

    def epoch(self, epoch: Epoch) -> None:
        """See `Watch.epoch`."""

    def tell(self, message: str) -> None:
        """See `Watch.tell`."""
