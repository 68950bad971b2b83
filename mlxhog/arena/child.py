"""A process for trials that may crash it, such as a framework's operations on shared memory.

It runs one function after the other, and keeps objects for later ones (an engine, a writer). Its
output goes to a file. It ends when its parent closes it or ends.
"""

import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Concatenate, NamedTuple, ParamSpec, Self, TypeVar

from mlxhog.arena import Arena, ArenaHandle
from mlxhog.arena.process import WatchedTime
from mlxhog.arena.workers import WorkerState
from mlxhog.base import float32
from mlxhog.base.child_processes import Death, WorkerProcess, last_lines
from mlxhog.base.inside import inside
from mlxhog.base.resources import says_out_of_memory, shortage
from mlxhog.errors import whole_text

P = ParamSpec("P")
T = TypeVar("T")
START_S = 120.0  # limit for a start with the import of a framework, on a busy machine
POLL_S = 0.5  # longest wait for the pipe of a child before the clock is read
DEATH_S = 5.0  # limit for a child to end after its pipe has closed


class Failed(Exception):
    """A function in a child raised, timed out (`TimedOut`), or ended its process; says which."""

    death: Death | None = None  # of the process


class TimedOut(Failed):
    """The function took too long: it hangs, or this machine is too busy."""


class _Question(NamedTuple):
    question: Any


class Lane:
    """What the functions in a child use: the arena, their worker slot, and kept objects."""

    def __init__(self, arena: Arena | None, slot: int, pipe: Connection | None = None) -> None:
        self._arena, self._pipe = arena, pipe
        self.slot = slot  # 0 without an arena
        self.store: dict[Any, Any] = {}  # objects that later functions use

    def ask(self, question: object) -> Any:
        """Return the parent's answer to a question, see `Child.await_result`."""
        assert self._pipe is not None, "this lane is not that of a child"
        self._pipe.send((None, _Question(question)))
        return self._pipe.recv()

    @property
    def arena(self) -> Arena:
        """The arena of this child."""
        assert self._arena is not None, "this child was started without an arena"
        return self._arena

    def keep(self, key: object, make: Callable[[], T]) -> T:
        """Return the object of `key`; the first call makes it by `make`."""
        if key not in self.store:
            self.store[key] = make()
        value: T = self.store[key]
        return value


class Child:
    """A spawned process that runs functions.

    Args:
        arena: attached by the child, as the worker in `slot`, which is free; None for no arena.
        threads: most threads of its libraries.
        promises: whether MLX multiplies float32 as float32 there, or as in a training run.
        log: file to which its output is appended; None for a temporary one.
        store: objects that its functions find in `Lane.store`.

    Concurrency: used by one thread of one process.
    """

    def __init__(
        self, arena: Arena | None = None, slot: int = 0, *, threads: int = 1, promises: bool = True,
        log: Path | None = None, store: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self._output = (
            open(log, "a+b", opener=inside(log.parents[1]))
            if log
            else tempfile.NamedTemporaryFile()
        )
        self._begin = self._output.tell()
        self._process = WorkerProcess(
            _main,
            (self._output.name, arena and arena.handle(), slot, promises, store or {}),
            name="mlxhog-child",
            threads=threads,
            daemon=None,  # its functions may start processes
            table=None if arena is None else arena.workers,
            slot=slot,
        )
        self.pipe = self._process.pipe  # readable when a result arrives, or the child dies

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    def start(
        self, function: Callable[Concatenate[Lane, P], Any], *args: P.args, **keywords: P.kwargs
    ) -> None:
        """Begin `function(lane, ...)`; it must be importable and its values picklable."""
        with suppress(OSError):  # the child is dead; `await_result` reports it
            self.pipe.send((function, args, keywords))

    def await_result(self, timeout_s: float, answer: Callable[[Any], Any] | None = None) -> Any:
        """Wait for the function, and return its value; `answer` answers what it asks.

        Raises:
            TimedOut: the function took too long, or raised a timeout.
            Failed: the function raised another error, or the child died.
        """
        watched = WatchedTime()
        while not self.pipe.poll(min(max(timeout_s - watched.look(), 0.0), POLL_S)):
            if watched.look() > timeout_s:
                raise TimedOut(f"no answer within {timeout_s:.0f} s")
        try:
            error, value = self.pipe.recv()
            if isinstance(value, _Question):
                assert answer is not None
                self.pipe.send(answer(value.question))
                return self.await_result(timeout_s, answer)
        except (EOFError, OSError):
            death, lines = self._process.reap(DEATH_S), last_lines(self._output, self._begin)
            fatal = [line for line in lines if line.startswith("Fatal Python error")]
            shortages = [line.strip() for line in lines if says_out_of_memory(line)]
            failed = Failed(f"the process ended ({death}): {(shortages or fatal or lines)[-1]}")
            failed.death = death
            raise failed from None
        if error is not None:
            raise TimedOut(error) if error.startswith("TimeoutError: ") else Failed(error)
        return value

    def call(
        self, timeout_s: float, function: Callable[Concatenate[Lane, P], T], *args: P.args,
        **keywords: P.kwargs,
    ) -> T:  # fmt: skip
        """Run a function and return what it returns; raises as `await_result`."""
        self.start(function, *args, **keywords)
        value: T = self.await_result(timeout_s)
        return value

    def close(self) -> None:
        """End the process, whatever it is doing, and free its slot."""
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
    slot: int,
    promises: bool,
    store: Mapping[str, Any],
) -> None:
    if promises:
        float32.disable_tf32()
    with open(output, "ab", opener=inside(Path(output).parent)) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    arena = None if handle is None else Arena.from_handle(handle)
    if arena is not None:
        arena.workers.entry(slot).state = WorkerState.RUNNING
    lane = Lane(arena, slot, pipe)
    lane.store.update(store)
    while True:
        value, error = None, None
        try:
            function, args, keywords = pipe.recv()
        except EOFError:
            os._exit(0)
        except Exception as raised:  # the function cannot be imported here
            error = raised
        else:
            try:
                value = function(lane, *args, **keywords)
            except Exception as raised:  # every error of a framework is a result
                error = raised
        text = error and (shortage(error) or f"{type(error).__name__}: {whole_text(error)}")
        pipe.send((text, value))
