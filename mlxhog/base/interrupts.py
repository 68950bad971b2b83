"""Count the signals that ask a command to end, so that a loop can finish its step.

Before such a loop, and in commands without one, each signal raises KeyboardInterrupt. When a
command has its result, signals are ignored. Loops in daemon threads end with the interpreter, too.
"""

import os
import signal
import threading
import weakref
from time import monotonic
from types import FrameType
from typing import Any, Self

WARNINGS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
"""Warnings of batch systems and of a limit of CPU time before they kill; they may be repeated."""

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, *WARNINGS)
"""Ctrl-C, the stop of a service manager, a closed terminal, and warnings."""

LEAVING_S = 10.0  # how long the interpreter's end waits for loops in daemon threads
TOGETHER_S = 0.5  # outside of loops, signals closer than this count as one
_raised = 0  # signals of this process that raised a KeyboardInterrupt
_raised_s = -TOGETHER_S  # time of the last one
_answers = True
_only_in_loop = False


class Interrupts:
    """Counts signals while its block runs; they do not end the process meanwhile.

    Outside the main thread Python handles no signals, so the count stays 0. An ignored SIGHUP, as
    under `nohup`, and a warning that is ignored or has the caller's handler stay so, and so does a
    signal that a program around Python handles. A warning counts only as the first signal, and so
    does SIGHUP: for one closed terminal the shell and the system send it, and a service manager
    sends it with SIGTERM, which Python may handle after it. Signals before the block count if their
    KeyboardInterrupt was dropped; `received` is the count without `end`, `last` the number of the
    newest signal.
    """

    def __init__(self) -> None:
        self.count = self.received = self.last = 0
        self._last_s = 0.0  # time of the newest signal
        self._before: dict[signal.Signals, Any] = {}
        self._thread: threading.Thread | None = None
        self._over = threading.Event()

    def _add(self, signum: int, frame: FrameType | None) -> None:
        if signum in WARNINGS and self.count:
            return
        both, before_s = (self.last, signum), self._last_s
        self.last, self._last_s = signum, monotonic()
        is_together = self._last_s - before_s < TOGETHER_S
        if self.count and signum == signal.SIGHUP:
            return
        if is_together and both == (signal.SIGHUP, signal.SIGTERM):
            return
        self.count += 1
        self.received += 1

    def end(self) -> None:
        """Ask the loop to end, as one signal does; no effect when repeated."""
        self.count = max(self.count, 1)

    def __enter__(self) -> Self:
        self._thread = threading.current_thread()
        _open.add(self)
        if self._thread is threading.main_thread():
            self._before = {
                number: signal.signal(number, self._add) for number in SIGNALS if _handled(number)
            }
            self.count += _raised
            self.received += _raised
        return self

    def __exit__(self, *_: object) -> None:
        global _answers
        if _only_in_loop:
            _answers = False  # first: between this line and the next no signal may raise
        for number, handler in self._before.items():
            signal.signal(number, handler)
        _open.discard(self)
        self._over.set()

    def _wait(self, until_s: float) -> None:
        thread, rest_s = self._thread, until_s - monotonic()
        if thread is not None and thread is not threading.current_thread():
            if self._over.wait(rest_s):
                thread.join(1.0)


_open: weakref.WeakSet[Interrupts] = weakref.WeakSet()
os.register_at_fork(after_in_child=_open.clear)  # their threads do not exist in the child


def end_all() -> None:
    """End every loop at once, as two signals do, and wait for them; called at interpreter exit.

    A thread stopped in native code would abort the process. Nothing is saved: that needs new
    threads, which cannot be started any more.
    """
    loops, until_s = list(_open), monotonic() + LEAVING_S
    for loop in loops:
        loop.count = max(loop.count, 2)
    for loop in loops:
        loop._wait(until_s)


def answer_in_loop_only() -> None:
    """Ignore the signals after the next loop, so that the command completes its output."""
    global _only_in_loop
    _only_in_loop = True


def ignore_from_now_on() -> None:
    """Ignore the signals until the end of this process, so that none changes its exit code."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def raise_keyboard_interrupt() -> None:
    """Let each of the signals raise KeyboardInterrupt in this process from now on.

    A SIGCHLD that the caller ignores, as `trap '' CHLD` does, would hide how workers end.
    """
    if signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number in SIGNALS:
        if _handled(number):
            signal.signal(number, _raise)


def _raise(signum: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, but once for simultaneous signals, as from a service manager."""
    global _raised, _raised_s
    if signum in WARNINGS and _raised:
        return
    _raised, before_s, _raised_s = _raised + 1, _raised_s, monotonic()
    if _answers and _raised_s - before_s > TOGETHER_S:
        raise KeyboardInterrupt


def _handled(number: signal.Signals) -> bool:
    """Whether to handle a signal in place of the caller."""
    handler = signal.getsignal(number)
    if handler is None:  # the host's, not of Python: it could not be installed again
        return False
    is_ours = handler is _raise or isinstance(getattr(handler, "__self__", None), Interrupts)
    if number in WARNINGS:
        return is_ours or handler == signal.SIG_DFL
    return number != signal.SIGHUP or handler != signal.SIG_IGN
