"""Signals that ask a command to end, counted, so that a loop can finish its step.

Before such a loop runs, and in commands without one, each of the signals is a KeyboardInterrupt.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, a service manager, and a terminal that was closed."""

_raised = 0  # signals of this process that have become a KeyboardInterrupt


class Interrupts:
    """Counts signals while its block runs, instead of the process dying of them.

    Outside the main thread Python cannot handle signals; there it counts nothing. A SIGHUP that
    is ignored, as under `nohup`, stays ignored.

    Attributes:
        count: signals so far; also one whose KeyboardInterrupt somebody swallowed before the block.
        received: of them, those that `end` does not stand for.
    """

    def __init__(self) -> None:
        self.count = self.received = 0
        self._before: dict[signal.Signals, Any] = {}

    def _add(self, signum: int, frame: FrameType | None) -> None:
        self.count += 1
        self.received += 1

    def end(self) -> None:
        """Ask the loop to end as one signal does; asked again it does not hurry."""
        self.count = max(self.count, 1)

    def __enter__(self) -> Self:
        """Begin to count."""
        if threading.current_thread() is threading.main_thread():
            self._before = {
                number: signal.signal(number, self._add) for number in SIGNALS if _heard(number)
            }
            self.count += _raised
            self.received += _raised
        return self

    def __exit__(self, *_: object) -> None:
        """Give the signals back to who had them."""
        for number, handler in self._before.items():
            signal.signal(number, handler)


def raise_keyboard_interrupt() -> None:
    """Let every one of the signals raise KeyboardInterrupt in this process from now on."""
    for number in SIGNALS:
        if _heard(number):
            signal.signal(number, _raise)


def _raise(signum: int, frame: FrameType | None) -> None:
    global _raised
    _raised += 1
    raise KeyboardInterrupt


def _heard(number: signal.Signals) -> bool:
    """Whether a signal ends this process, unless somebody handles it."""
    return number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
