"""What is measured in turns, so that a slow spell of the machine hits all alike.

`take_turns` runs any arms one after the other, again and again. `in_turns` gives each program a
process of its own: neither ours nor a peer's inherits the other's thread pool, allocator or
imports. It builds its step once and then waits until it is asked to run. With `--tiny` programs
take one step in the process of the script.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import starmap
from pathlib import Path
from typing import Any

from harness.machine import cores, smallest

from mlxhog.base.durable import append_lines
from mlxhog.base.processes import environment, follow_parent, limits_of_threads

TINY_LENGTH = 64  # a chunk of the mLSTM
AGAIN = "again"  # the A/A arm of `in_turns`
START_S = 300.0
"""How long an arm may take to import its framework, to build its model or to end a turn."""


def take_turns(turns, arms, run, *, warm_up=False):
    """Run every arm with every turn (a number, a seed), all arms before the next turn.

    The order of the arms is reversed after each turn, so that a machine that becomes slower or
    faster meanwhile favours none. With `--tiny` there is one turn, and no warmup.

    Args:
        turns: what pairs the arms' results.
        arms: what takes turns.
        run: the result of one arm in one turn.
        warm_up: whether every arm runs once before the first turn, with that turn, uncounted.
    """
    turns, results = list(turns), {arm: [] for arm in arms}
    turns = smallest(turns[:1], turns)
    if smallest(False, warm_up):
        for arm in results:
            run(arm, turns[0])
    for k, turn in enumerate(turns):
        for arm in results if k % 2 == 0 else reversed(results):
            results[arm].append(run(arm, turn))
    return results


def with_control(turns, arms, run, *, control, warm_up=False):
    """Run arms as `take_turns` does, and one of them a second time in each turn (A/A).

    With `--tiny` its one result counts twice.

    Returns:
        the results by arm, and the second results of the control, for `Findings.same`.
    """
    arms = list(arms)
    if smallest(True, False):
        results = take_turns(turns, arms, run)
        return results, results[control]
    places = [*enumerate(arms), (len(arms), control)]
    own = take_turns(turns, places, lambda place, turn: run(place[1], turn), warm_up=warm_up)
    again = own.pop(places[-1])
    return {arm: values for (_, arm), values in own.items()}, again


def on_cores(function, jobs):
    """What a function returns for each job, its arguments, in order; a process on every core.

    With `--tiny` all are done in this process.
    """
    if smallest(True, False):
        return list(starmap(function, jobs))
    with ProcessPoolExecutor(len(cores()), multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(function, *zip(*jobs, strict=True)))


@dataclass(frozen=True)
class Program:
    """What an arm runs: `module.function(threads=..., **options)`.

    It returns one step, a function of nothing. A step that prepares anything returns the seconds
    that count; else all of it counts.

    Attributes:
        module: below `benchmarks/`, such as "language_models.ours".
        function: in it.
        options: arguments.
    """

    module: str
    function: str
    options: Mapping[str, Any]

    def build(self, threads):
        """Call the function; with `--tiny` a size of long sequences gets short ones."""
        function = getattr(importlib.import_module(self.module), self.function)
        options = {
            name: replace(value, seq=smallest(TINY_LENGTH, value.seq))
            if getattr(value, "seq", 0) > 2 * TINY_LENGTH
            else value
            for name, value in self.options.items()
        }
        return function(threads=threads, **options)


def in_turns(programs, *, threads, turns, seconds):
    """Measure programs turn by turn; the first of them in two processes (A/A).

    Args:
        programs: by the name of their arm.
        threads: of every arm.
        turns: at least 1.
        seconds: least length of one arm's turn; one step where a step takes longer.

    Returns:
        Seconds per step of each program turn by turn, and those of the first one's second process.
    """
    if smallest(True, False):
        once_s = {name: [_timed(one.build(threads))] for name, one in programs.items()}
        return once_s, next(iter(once_s.values()))
    every = {**programs, AGAIN: next(iter(programs.values()))}
    with ExitStack() as stack:
        pipes = {
            name: stack.enter_context(spawned(_serve, one, threads, threads=threads))[0]
            for name, one in every.items()
        }

        def run(name, min_s):
            with suppress(BrokenPipeError):  # it has ended, which `answer` says
                pipes[name].send(min_s)
            return float(answer(pipes[name], every[name]))

        for name in pipes:
            run(name, 0.0)  # builds it, and warms up
        values = take_turns(range(turns), pipes, lambda name, _: run(name, seconds))
    again = values.pop(AGAIN)
    return values, again


def _serve(program, threads, pipe):
    """Step for at least as many seconds as are asked for, once at first; send seconds per step."""
    step = program.build(threads)
    while True:
        least, spent, steps = pipe.recv(), 0.0, 0
        while not steps or spent < least:
            spent, steps = spent + _timed(step), steps + 1
        pipe.send(spent / steps)


def _timed(step):
    """The seconds of a step: those that it says, or all of it."""
    began, counted = time.perf_counter(), step()
    return time.perf_counter() - began if counted is None else counted


KEEP = {"--keep": {"type": Path, "metavar": "FILE", "help": "of finished runs; again it continues"}}
"""The flag of a script whose runs are `remembered`."""


def remembered(path, run, *, of=lambda value: value):
    """`run(*key)`, whose results are lines of a file, so that an interrupted measurement continues.

    Args:
        path: of the file; None keeps nothing.
        run: returns what JSON can hold.
        of: makes of a result what is returned.
    """
    lines = path.read_text().splitlines(True) if path is not None and path.exists() else []
    whole = (json.loads(line) for line in lines if line.endswith("\n"))  # a kill may tear the last
    known = {json.dumps(key): value for key, value in whole}

    def once(*key):
        name = json.dumps(key)
        if name not in known:
            known[name] = run(*key)
            if path is not None:
                append_lines(path, json.dumps([key, known[name]]).encode() + b"\n")
        return of(known[name])

    return once


def mlxhog(folder, *words):
    """Start a command of mlxhog in a folder, its answer on a pipe."""
    return subprocess.Popen(
        [sys.executable, "-m", "mlxhog", *words], cwd=folder, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip


# -- processes that answer -------------------------------------------------------------------------


@contextmanager
def spawned(serve, *arguments, threads=1):
    """Yield the pipe and the id of a process that serves it; it is gone when the block ends.

    Args:
        serve: called there with the arguments and the other end of the pipe.
        arguments: of the function.
        threads: that its libraries may use.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_follow, args=(serve, *arguments, theirs))
    with environment(limits_of_threads(threads)):
        process.start()
    theirs.close()
    try:
        assert process.pid is not None
        yield ours, process.pid
    finally:
        ours.close()
        process.join(5.0)
        process.kill()
        process.join()


def _follow(serve, *arguments):
    follow_parent()
    with suppress(EOFError, BrokenPipeError):  # nobody asks any more
        serve(*arguments)


def answer(pipe, who):
    """Return the next answer of a process.

    Raises:
        TimeoutError: there is none within `START_S`.
        RuntimeError: the process has ended.
    """
    if not pipe.poll(START_S):
        raise TimeoutError(f"{who} has not answered for {START_S:.0f} s")
    try:
        return pipe.recv()
    except (EOFError, ConnectionError) as error:
        raise RuntimeError(f"{who} ended; its own output says why") from error
