"""A process for trials that may crash it, such as a framework's operations on shared memory.

It ends when its parent closes it or ends. Its output goes to a file. It runs functions in one or
two threads, its lanes; a lane keeps objects for later functions (an engine, a writer).
"""

from __future__ import annotations

import os
import queue
import tempfile
import threading
from collections.abc import Callable
from multiprocessing import connection
from multiprocessing.connection import Connection
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from mlxhog.arena import Arena, ArenaHandle
from mlxhog.arena.process import WatchedTime
from mlxhog.arena.worker_pool import WorkerProcess, last_lines
from mlxhog.arena.workers import State
from mlxhog.base import darwin, float32

P = ParamSpec("P")
T = TypeVar("T")
START_S = 120.0  # limit for a start with the import of a framework, on a busy machine
LOOK_S = 0.5  # between two looks at the pipe of a child
DEATH_S = 5.0  # limit for a child to end after its pipe has closed


class Failed(Exception):
    """A function in a child raised, took too long (`Late`), or ended its process; says which."""


class Late(Failed):
    """The function took too long: it hangs, or this machine is too busy."""


class Lane:
    """One thread of a child, and the objects that it keeps.

    Attributes:
        slot: this lane's worker slot in the arena; 0 without one.
        store: objects that later functions of this lane use.
    """

    def __init__(self, arena: Arena | None, slot: int) -> None:
        self._arena = arena
        self.slot = slot
        self.store: dict[Any, Any] = {}

    @property
    def arena(self) -> Arena:
        """The arena of this child."""
        assert self._arena is not None, "this child was started without an arena"
        return self._arena

    def keep(self, key: object, make: Callable[[], T]) -> T:
        """Return the object of `key`; the lane's first call makes it by `make`."""
        if key not in self.store:
            self.store[key] = make()
        value: T = self.store[key]
        return value


class Child:
    """A spawned process with a lane per slot.

    Args:
        arena: attached by the child, as the worker in each of `slots`; None for no arena.
        slots: free worker slots of the arena, one per lane; without an arena one lane.
        promises: whether MLX multiplies float32 as float32 there, or as in a training run.

    Concurrency: used by one thread of one process.
    """

    def __init__(
        self, arena: Arena | None = None, slots: tuple[int, ...] = (0,), *, promises: bool = True
    ) -> None:
        self._results: dict[int, tuple[str | None, Any]] = {}
        self._output = tempfile.NamedTemporaryFile()
        self._process = WorkerProcess(
            _main,
            (self._output.name, arena and arena.handle(), slots, promises),
            name="mlxhog-doctor",
            threads=1,
            pipe=True,
            arena=arena,
            slots=slots,
        )
        self._pipe = self._process.pipe

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    @property
    def pipe(self) -> Connection:
        """Becomes readable when a result arrives, or the child dies."""
        return self._pipe

    def start(
        self, lane: int, function: Callable[Concatenate[Lane, P], Any], *args: P.args,
        **keywords: P.kwargs,
    ) -> None:  # fmt: skip
        """Begin `function(lane, ...)` in a lane; it must be importable and its values picklable."""
        self._results.pop(lane, None)
        try:
            self._pipe.send((lane, function, args, keywords))
        except OSError:
            pass  # the child is dead; `take` reports it

    def take(self, lane: int, timeout_s: float) -> Any:
        """Wait for the lane's function, and return its value.

        Raises:
            Late: the function took too long.
            Failed: the function raised, or the child died.
        """
        watched = WatchedTime()
        while lane not in self._results:
            rest_s = timeout_s - watched.look()
            if rest_s <= 0:
                raise Late(f"no answer within {timeout_s:.0f} s")
            if connection.wait([self._pipe], min(rest_s, LOOK_S)):
                self.receive()
        self.check(lane)
        _, value = self._results.pop(lane)
        return value

    def receive(self) -> None:
        """Read one result from the pipe.

        Raises:
            Failed: the child died, so there is no result.
        """
        try:
            lane, error, value = self._pipe.recv()
        except (EOFError, OSError):
            raise Failed(self._death()) from None
        self._results[lane] = (error, value)

    def done(self, lane: int) -> bool:
        """Whether the lane's result has arrived (`receive`)."""
        return lane in self._results

    def check(self, lane: int) -> None:
        """Raise at once if the result of a lane is an error; return if there is no result yet.

        Raises:
            Late: the lane's function raised a timeout.
            Failed: it raised another error.
        """
        error, _ = self._results.get(lane, (None, None))
        if error is not None:
            raise Late(error) if error.startswith("TimeoutError: ") else Failed(error)

    def call(
        self, timeout_s: float, function: Callable[Concatenate[Lane, P], T], *args: P.args,
        **keywords: P.kwargs,
    ) -> T:  # fmt: skip
        """Run a function in the first lane and return what it returns.

        Raises:
            Failed: as `take`.
        """
        self.start(0, function, *args, **keywords)
        value: T = self.take(0, timeout_s)
        return value

    def _death(self) -> str:
        death = self._process.reap(DEATH_S)
        return f"the process ended ({death}): {last_lines(self._output)[-1]}"

    def close(self) -> None:
        """End the process, whatever it is doing, and free its slots."""
        self._process.close()
        self._output.close()

    def __enter__(self) -> Self:
        """End the process when the block ends."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        self.close()


def _main(
    pipe: Connection,
    output: str,
    handle: ArenaHandle | None,
    slots: tuple[int, ...],
    promises: bool,
) -> None:
    if promises:
        float32.promise()
    with open(output, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    arena = None if handle is None else Arena.from_handle(handle)
    inboxes: list[queue.SimpleQueue[Any]] = []
    sending = threading.Lock()
    for number, slot in enumerate(slots):
        if arena is not None:
            arena.workers.entry(slot).state = State.RUNNING
        inboxes.append(queue.SimpleQueue())
        lane = (number, Lane(arena, slot), inboxes[-1], pipe, sending)
        threading.Thread(target=_serve, args=lane, daemon=True, name=f"lane-{number}").start()
    while True:
        try:
            number, *work = pipe.recv()
        except EOFError:
            os._exit(0)
        except Exception as error:  # the function cannot be imported here
            with sending:
                pipe.send((0, f"{type(error).__name__}: {error}", None))
            continue
        inboxes[number].put(work)


def _serve(
    number: int,
    lane: Lane,
    inbox: queue.SimpleQueue[Any],
    pipe: Connection,
    sending: threading.Lock,
) -> None:
    darwin.ask_for_performance_cores()
    while True:
        function, args, keywords = inbox.get()
        error, value = None, None
        try:
            value = function(lane, *args, **keywords)
        except Exception as raised:  # every error of a framework is a result
            error = f"{type(raised).__name__}: {raised}"
        with sending:
            pipe.send((number, error, value))
