"""Programs that are measured in turns, each in a process of its own.

Ours and a peer never share a process: neither inherits the other's thread pool, allocator or
imports, and each one's memory can be told. An `Arm` builds its step once and then waits; `in_turns`
lets every arm run for a while, again and again, so that a slow spell of the machine hits all.
"""

from __future__ import annotations

import importlib
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from mlxhog.machine.processes import follow_parent, thread_limits

START_S = 300.0
"""How long an arm may take to import its framework, to build its model or to end a turn."""


@dataclass(frozen=True)
class Program:
    """What an arm runs: `module.function(threads=..., **options)`.

    It returns one step, a function of nothing. A step that prepares anything returns the seconds
    that count; else all of it counts.

    Attributes:
        module: below `benchmarks/`, such as "language_models.ours".
        function: in it.
        options: arguments.
        libraries: imported first, so that their memory is told from the program's own.
    """

    module: str
    function: str
    options: Mapping[str, Any]
    libraries: Sequence[str] = ("torch",)

    def build(self, threads: int) -> Any:
        """Call the function."""
        function = getattr(importlib.import_module(self.module), self.function)
        return function(threads=threads, **self.options)


class Arm:
    """One program in a process of its own, which works only when it is asked to."""

    def __init__(self, program: Program, *, threads: int) -> None:
        """Start the process; `ready` waits until its step is built.

        Args:
            program: what to run; imported in the new process only.
            threads: its libraries may use; the function gets the number as `threads`.
        """
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self.program = program
        with thread_limits(threads):
            self._process = context.Process(target=_serve, args=(theirs, program, threads))
            self._process.start()
        theirs.close()

    def ready(self) -> None:
        """Wait until the step is built and has run once."""
        self._ask("warm up")

    def run(self, seconds: float) -> float:
        """Step for at least so long; returns seconds per step."""
        return float(self._ask(seconds))

    def close(self) -> Peak:
        """End the process; returns what it needed."""
        peak: Peak = self._ask("end")
        self._process.join(START_S)
        return peak

    def _ask(self, what: object) -> Any:
        self._pipe.send(what)
        if not self._pipe.poll(START_S):
            self._process.kill()
            raise TimeoutError(f"{self.program} did not answer {what!r} within {START_S:.0f} s")
        try:
            answer = self._pipe.recv()
        except EOFError as error:
            raise RuntimeError(f"{self.program} ended; its own output says why") from error
        return answer


@dataclass(frozen=True)
class Peak:
    """Memory of one arm, in bytes.

    Attributes:
        imported: resident when its module had been imported, before anything was built.
        most: largest resident size until the end.
    """

    imported: int
    most: int

    @property
    def added(self) -> int:
        """What the program itself needed beyond its libraries."""
        return self.most - self.imported


def _serve(pipe: Connection, program: Program, threads: int) -> None:
    follow_parent()
    for library in program.libraries:
        importlib.import_module(library)
    imported = peak_bytes()
    step: Callable[[], float | None] = program.build(threads)
    while True:
        asked = pipe.recv()
        if asked == "end":
            pipe.send(Peak(imported, peak_bytes()))
            return
        least = asked if isinstance(asked, float) else 0.0
        spent, steps = 0.0, 0
        while not steps or spent < least:
            began = time.perf_counter()
            counted = step()
            spent += time.perf_counter() - began if counted is None else counted
            steps += 1
        pipe.send(spent / steps)


def peak_bytes() -> int:
    """Largest resident size of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@dataclass(frozen=True)
class Turns:
    """Seconds per step of several programs, turn by turn.

    Attributes:
        seconds: per program, one value per turn; the same turn has the same place everywhere.
        peaks: memory per program.
    """

    seconds: dict[str, list[float]]
    peaks: dict[str, Peak]

    def ratio(self, slow: str, fast: str) -> float:
        """How many times faster `fast` is: the median of the turns' own ratios."""
        pairs = zip(self.seconds[slow], self.seconds[fast], strict=True)
        return statistics.median(x / y for x, y in pairs)

    def median(self, name: str) -> float:
        """Median seconds per step."""
        return statistics.median(self.seconds[name])


def in_turns(programs: Mapping[str, Program], *, threads: int, turns: int, seconds: float) -> Turns:
    """Measure programs turn by turn.

    Args:
        programs: by the name of their arm.
        threads: of every arm.
        turns: at least 1.
        seconds: least length of one arm's turn; one step where a step takes longer.
    """
    arms = {name: Arm(program, threads=threads) for name, program in programs.items()}
    for arm in arms.values():
        arm.ready()
    seconds_of: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(turns):
        for name, arm in arms.items():
            seconds_of[name].append(arm.run(seconds))
    return Turns(seconds_of, {name: arm.close() for name, arm in arms.items()})


def once(program: Program, *, threads: int) -> Any:
    """Return what a program's function returns, called in a process of its own."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    with thread_limits(threads):
        process = context.Process(target=_call, args=(theirs, program, threads))
        process.start()
    theirs.close()
    try:
        if not ours.poll(START_S):
            process.kill()
            raise TimeoutError(f"{program} did not end within {START_S:.0f} s")
        return ours.recv()
    except EOFError as error:
        raise RuntimeError(f"{program} ended; its own output says why") from error
    finally:
        process.join()


def _call(pipe: Connection, program: Program, threads: int) -> None:
    follow_parent()
    pipe.send(program.build(threads))
