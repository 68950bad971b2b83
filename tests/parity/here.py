"""The sides of a comparison computed in the test's process, which has imported torch already."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing import Pipe
from typing import Any


class Here:
    """Replaces `mlxhog.arena.child.Child`: computes in the process that starts it."""

    def __init__(self) -> None:
        self.pipe, self._end = Pipe()
        self._result: Any = None

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, lane: Any, function: Callable[..., Any], *arguments: Any) -> None:
        """Compute, and make the pipe ready to be read."""
        self._result = function(lane, *arguments)
        self._end.send(None)

    def take(self, lane: Any, limit_s: float) -> Any:
        """What has been computed."""
        self.pipe.recv()
        return self._result

    def close(self) -> None:
        """End it."""
        self.pipe.close()
        self._end.close()
