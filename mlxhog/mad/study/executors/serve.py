"""What a worker of a study does: one run after the other, until it is told to leave.

It says ("ready", host), then for each run any number of ("beat",), ("point", key, point) and
("rung", key, point), and at last ("end", key, result), or ("spent", key, result) if it should not
be used again. Without a key, "spent" is about all it has. Runs of one task are trained together
where that is faster; ("note", key, text) says so.
"""

from __future__ import annotations

import platform
import threading
import time
import traceback
from typing import TYPE_CHECKING, Any, Protocol

from mlxhog.config.quantities import format_bytes
from mlxhog.errors import MlxhogError
from mlxhog.mad.result import Point, RunResult
from mlxhog.mad.study.executors import memory
from mlxhog.mad.study.executors.protocol import RunFunction, Task
from mlxhog.mad.study.record import failed
from mlxhog.mad.watch import Watch

if TYPE_CHECKING:
    from mlxhog.mad.training.alone import Prepare

BEAT_S = 0.5
REASON_CHARACTERS = 500
_NO_MEMORY = ("can't allocate memory", "not enough memory", "unable to allocate", "bad_alloc")


class Channel(Protocol):
    """A worker's way to its executor."""

    def send(self, message: tuple[Any, ...]) -> None:
        """Say something; any thread may."""

    def receive(self) -> Any:
        """Wait for a `Task`, for the answer at a rung, or for None, which means to leave."""


class ChannelWatch:
    """A `Watch` whose watcher is at the other end of a channel."""

    def __init__(self, channel: Channel, key: str, asking: threading.Lock) -> None:
        self._channel, self._key, self._asking = channel, key, asking
        self._next_s = 0.0

    def beat(self) -> None:
        """See `Watch.beat`; says so twice a second at most."""
        now = time.monotonic()
        if now >= self._next_s:
            self._next_s = now + BEAT_S
            self._channel.send(("beat",))

    def point(self, point: Point) -> None:
        """See `Watch.point`."""
        self._channel.send(("point", self._key, point))

    def go_on(self, point: Point) -> bool:
        """See `Watch.go_on`."""
        with self._asking:  # one question at a time, so that the answer is its own
            self._channel.send(("rung", self._key, point))
            return bool(self._channel.receive())


def serve(channel: Channel, run: RunFunction, memory_limit: int | None) -> None:
    """Serve runs until the channel says None.

    Args:
        channel: to the executor.
        run: executes one run.
        memory_limit: bytes that this process may have resident; None for no limit.
    """
    began_s = time.monotonic()

    def over(used: int) -> None:
        reason = f"needs more than the memory limit: {format_bytes(used)} and rising"
        seconds = time.monotonic() - began_s
        channel.send(("spent", None, failed(reason, seconds=seconds)))

    if memory_limit is not None:
        memory.limit(memory_limit, over)
    channel.send(("ready", platform.node()))
    while True:
        task = channel.receive()
        if task is None:
            return
        began_s = time.monotonic()
        _execute(run, task, channel)


def _execute(run: RunFunction, task: Task, channel: Channel) -> None:
    """Execute the runs of a task, and say what became of each."""
    runs, asking = task.runs, threading.Lock()

    def one(number: int, prepare: Prepare | None) -> None:
        own = runs[number]
        watch = ChannelWatch(channel, own.key, asking)
        word, result = _attempt(run, own, watch, prepare)
        channel.send((word, own.key, result))

    if len(runs) == 1:
        one(0, None)
        return
    from mlxhog.mad.training import batched

    def tell(text: str) -> None:
        print(text)  # into the worker's log
        channel.send(("note", task.key, text))

    batched.train_together([own.config for own in runs], one, tell)


def _attempt(
    run: RunFunction, task: Task, watch: Watch, prepare: Prepare | None
) -> tuple[str, RunResult]:
    """Return what became of a run, whatever it raises."""
    began_s = time.monotonic()
    how: dict[str, Any] = {} if prepare is None else {"prepare": prepare}
    try:
        return "end", run(task.config, watch=watch, rungs=task.rungs, **how)
    except (Exception, SystemExit) as error:
        traceback.print_exc()  # into the worker's log
        reason = explain(error)
        word = "spent" if is_lack_of_memory(error) else "end"
        return word, failed(reason, seconds=time.monotonic() - began_s)


def explain(error: BaseException) -> str:
    """Return an error in one line."""
    text = " ".join(str(error).split())[:REASON_CHARACTERS]
    if is_lack_of_memory(error):
        return f"needs more memory than there is: {text or type(error).__name__}"
    if isinstance(error, SystemExit):
        return f"left with exit code {error.code}"
    return text if isinstance(error, MlxhogError) else f"{type(error).__name__}: {text}"


def is_lack_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be had, in Python's words or a framework's."""
    words = str(error).lower()
    return isinstance(error, MemoryError) or any(text in words for text in _NO_MEMORY)
