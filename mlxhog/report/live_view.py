"""A view that redraws one picture on a terminal; messages scroll by above it."""

from abc import abstractmethod
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from mlxhog.report.views import P, View


class LiveView(View[P]):
    """The terminal's part of a live view.

    Args:
        console: a rich console on a terminal.
    """

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._live = Live(console=console, auto_refresh=False, transient=False)

    def __enter__(self) -> Self:
        """Take over the terminal."""
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the terminal back; the last picture stays."""
        self._live.stop()

    def show(self, message: str) -> None:
        """Print a message above the picture."""
        self._live.console.print(Text(message, style="yellow"))

    def draw(self, progress: P) -> None:
        """Redraw."""
        self._live.update(self.picture(progress), refresh=True)

    @abstractmethod
    def picture(self, progress: P) -> RenderableType:
        """Return the picture of the newest state."""
