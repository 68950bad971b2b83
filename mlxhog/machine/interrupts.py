"""Signals that ask a command to end, counted, so that a loop can finish its step.

Before such a loop runs, and in commands without one, each of the signals is a KeyboardInterrupt;
when a command has its result, they are ignored. A loop in a daemon thread also ends when the
interpreter does.
"""

from __future__ import annotations

import os
import signal
import threading
import weakref
from time import monotonic
from types import FrameType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, a service manager, and a terminal that was closed."""

LEAVING_S = 10.0
"""How long the end of the interpreter waits for loops in daemon threads."""

TOGETHER_S = 0.5  # between signals that count as one outside of loops

_raised = 0  # signals of this process that have become a KeyboardInterrupt
_raised_s = -TOGETHER_S  # when the last of them came
_answers = True
_only_in_loop = False


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
        self._thread: threading.Thread | None = None
        self._over = threading.Event()

    def _add(self, signum: int, frame: FrameType | None) -> None:
        self.count += 1
        self.received += 1

    def end(self) -> None:
        """Ask the loop to end as one signal does; asked again it does not hurry."""
        self.count = max(self.count, 1)

    def __enter__(self) -> Self:
        """Begin to count."""
        self._thread = threading.current_thread()
        _open.add(self)
        if threading.current_thread() is threading.main_thread():
            self._before = {
                number: signal.signal(number, self._add) for number in SIGNALS if _heard(number)
            }
            self.count += _raised
            self.received += _raised
        return self

    def __exit__(self, *_: object) -> None:
        """Give the signals back to who had them."""
        global _answers
        if _only_in_loop:
            _answers = False  # before its handler is back: nothing in between may raise
        for number, handler in self._before.items():
            signal.signal(number, handler)
        _open.discard(self)
        self._over.set()

    def _wait(self, until_s: float) -> None:
        """Wait until the block is over, and a moment for its thread to end."""
        thread, rest_s = self._thread, until_s - monotonic()
        if thread is not None and thread is not threading.current_thread():
            if self._over.wait(rest_s):
                thread.join(1.0)


_open: weakref.WeakSet[Interrupts] = weakref.WeakSet()
os.register_at_fork(after_in_child=_open.clear)  # their threads are not there


def end_all() -> None:
    """Let every loop end as two signals do, at once, and wait for them; for the interpreter's end.

    A thread that is stopped in native code by the interpreter's end would abort the process. There
    is no time to save anything: what saving needs, such as threads, cannot be started any more.
    """
    loops, until_s = list(_open), monotonic() + LEAVING_S
    for loop in loops:
        loop.count = max(loop.count, 2)
    for loop in loops:
        loop._wait(until_s)


def answer_in_loop_only() -> None:
    """Let no signal be a KeyboardInterrupt after the next loop: the result is there by then.

    What is left takes no time, and is to be said whole.
    """
    global _only_in_loop
    _only_in_loop = True


def ignore_from_now_on() -> None:
    """Let none of the signals change how this process ends, its last moments included."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def raise_keyboard_interrupt() -> None:
    """Let every one of the signals raise KeyboardInterrupt in this process from now on."""
    for number in SIGNALS:
        if _heard(number):
            signal.signal(number, _raise)


def _raise(signum: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, but once for signals that come together, as from a service manager.

    Else the second one would meet the code that answers the first.
    """
    global _raised, _raised_s
    _raised, before_s, _raised_s = _raised + 1, _raised_s, monotonic()
    if _answers and _raised_s - before_s > TOGETHER_S:
        raise KeyboardInterrupt


def _heard(number: signal.Signals) -> bool:
    """Whether a signal ends this process, unless somebody handles it."""
    return number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
