"""What a run tells the one who started it while it trains, and what it asks at a rung."""

from typing import Protocol

from mlxhog.mad.result import Point


class Watch(Protocol):
    """Calls made by the process that trains, between two steps."""

    def beat(self) -> None:
        """Show a sign of life; called at least once per step.

        It may raise KeyboardInterrupt: once to end the run after one more evaluation, and again to
        leave at once.
        """

    def point(self, point: Point) -> None:
        """Take an evaluation, in the order of steps."""

    def go_on(self, point: Point) -> bool:
        """Answer whether the run is worth going on with; asked at rungs only, after `point`."""


class Unwatched:
    """A run that nobody watches: it goes on to its end."""

    def beat(self) -> None:
        """See `Watch.beat`."""

    def point(self, point: Point) -> None:
        """See `Watch.point`."""

    def go_on(self, point: Point) -> bool:
        """See `Watch.go_on`."""
        return True
