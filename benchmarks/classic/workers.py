"""Pinned workers that run classic problems in turns: one scheme, then another, on the same arena.

The native loops, arena and data are those of `mlxhog classic`; what differs is that the workers
stay, so that schemes can be interleaved many times, and that each says whether it kept its core.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from harness.interleaved import answer, spawned
from harness.machine import cores, pin

from mlxhog import _native
from mlxhog.arena import Arena
from mlxhog.arena.workers import State
from mlxhog.classic import worker as classic

CORES = cores()  # before anybody is pinned
START_DELAY_S = 0.005
LATE_S = 0.001
OWN_SHARE = 0.9  # of the wall time that a worker has its core; less, and others had it


@dataclass(frozen=True)
class Scheme:
    """How a run writes: a native kind."""

    kind: str
    workers: int
    variant: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Epoch:
    """One worker's part of an epoch."""

    start: int
    count: int
    gamma: float
    start_s: float


@dataclass(frozen=True)
class Done:
    """What became of it."""

    end_s: float = 0.0
    disturbed: bool = False
    cpu_s: float = 0.0  # of the worker's whole life so far


@dataclass(frozen=True)
class Run:
    """A whole run: its time in the loops, and where it ended."""

    seconds: float
    disturbed: bool
    measures: dict[str, float]


# -- the worker -----------------------------------------------------------------------------------


def worker(handle, rank, core, kernels, shapes, pipe):
    """Prepare runs and do their epochs until the pipe closes."""
    pin(core)
    arena = Arena.from_handle(handle)
    arena.workers.entry(rank + 1).state = State.RUNNING
    order, words = arena.segment(classic.ORDER), arena.segment(classic.WORDS)
    pipe.send(Done(cpu_s=time.process_time()))
    problem = None
    native = None
    while True:
        asked = pipe.recv()
        if isinstance(asked, Scheme):
            problem = kernels[asked.variant](classic.problem_memory(arena, shapes))
            locks = None if asked.kind == "private" else arena.locks(rank + 1)
            native = _native.ClassicScheme(
                asked.kind, words, locks, 0, rank, asked.workers, **asked.options
            )
            pipe.send(Done(cpu_s=time.process_time()))
            continue
        late = time.monotonic() > asked.start_s + LATE_S
        while time.monotonic() < asked.start_s:
            pass
        cpu, began = time.process_time(), time.monotonic()
        problem.run(native, order[asked.start : asked.start + asked.count], asked.gamma)
        end = time.monotonic()
        undisturbed = time.process_time() - cpu >= OWN_SHARE * (end - began) - 2e-4
        pipe.send(Done(end, late or not undisturbed, time.process_time()))


# -- the host -------------------------------------------------------------------------------------


class WorkerPool:
    """A problem in its arena and the workers at it."""

    def __init__(self, problem, arena, pipes, *, lr, beta):
        self.problem, self.arena, self.lr, self.beta = problem, arena, lr, beta
        self._pipes = pipes
        self._cpu_s = [0.0] * len(pipes)
        self._collect(pipes)

    def _collect(self, pipes):
        parts = [answer(pipe, "a worker") for pipe in pipes]
        self._cpu_s[: len(parts)] = [part.cpu_s for part in parts]
        return parts

    def cpu_s(self):
        """CPU time of the workers up to their last answers."""
        return sum(self._cpu_s)

    def run(self, scheme, epochs, *, seed=0):
        """From the initial values through `epochs` shuffles, evaluated at the end."""
        params, pipes = classic.param_views(self.arena), self._pipes[: scheme.workers]
        for name, values in self.problem.initial(seed).items():
            np.copyto(params[name], values)
        board = _native.ClassicBoard(self.arena.segment(classic.WORDS), scheme.workers)
        for pipe in pipes:
            pipe.send(scheme)
        self._collect(pipes)
        seconds, disturbed = 0.0, False
        for epoch in range(epochs):
            took, spoilt = self._epoch(board, pipes, self.lr * self.beta**epoch, (seed, epoch))
            seconds, disturbed = seconds + took, disturbed or spoilt
        return Run(seconds, disturbed, self.problem.measures(params))

    def _epoch(self, board, pipes, gamma, seed):
        n = self.problem.n_examples
        self.arena.segment(classic.ORDER)[:] = np.random.default_rng(seed).permutation(n)
        board.reset()
        edges = np.linspace(0, n, len(pipes) + 1).astype(int).tolist()
        start_s = time.monotonic() + START_DELAY_S
        for pipe, start, end in zip(pipes, edges[:-1], edges[1:], strict=True):
            pipe.send(Epoch(start, end - start, gamma, start_s))
        parts = self._collect(pipes)
        return max(d.end_s for d in parts) - start_s, any(d.disturbed for d in parts)


@contextmanager
def worker_pool(problem, variants, workers):
    """Workers on cores of their own; gone, with their arena, when the block ends.

    Args:
        problem: whose data go into the arena.
        variants: kernels over the same data and parameters; "" is the problem's own.
        workers: most that a run has.
    """
    data = problem.data()
    shapes = {name: values.shape for name, values in data.items()}
    arena_layout = classic.plan_layout(problem.initial(0), data, problem.n_examples, workers)
    pipes = []
    with Arena.create(arena_layout) as arena, ExitStack() as stack:
        for name, view in classic.data_views(arena, shapes).items():
            np.copyto(view, data[name])
        for rank in range(workers):
            arena.workers.acquire_slot(slot=rank + 1)
            kernels = {"": problem.kernel, **variants}
            job = (arena.handle(), rank, CORES[rank % len(CORES)], kernels, shapes)
            pipe, pid = stack.enter_context(spawned(worker, *job))
            arena.workers.seated(rank + 1, pid)
            pipes.append(pipe)
        own = problem.defaults
        yield WorkerPool(problem, arena, pipes, lr=own.lr, beta=own.beta)
