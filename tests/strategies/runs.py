"""Strategies in one process: an arena, workers, and gradients that a test can foresee."""

import time
from collections import Counter
from contextlib import contextmanager
from functools import cache
from types import MappingProxyType, SimpleNamespace

import numpy as np

from mlxhog import TrainConfig
from mlxhog.arena import Arena, plan
from mlxhog.arena.control import ControlCommand
from mlxhog.arena.ledger import Ledger
from mlxhog.arena.workers import WorkerPhase
from mlxhog.backends.backend import Backend
from mlxhog.config.budget import Budget
from mlxhog.config.components import STRATEGIES
from mlxhog.config.options import options
from mlxhog.models.spec import ParamSpec
from mlxhog.optim import SGD
from mlxhog.strategies import BatchSize, Collect, Idle, Lease, TicketPart, build
from mlxhog.strategies.context import Context
from mlxhog.strategies.hogwild import LockFree
from mlxhog.training.worker.steps import Steps, WorkerStep
from tests.threads import in_threads, wait_until

LR = 0.5
ONE = BatchSize(sequences=1, tokens=1, labels=1)
W = {"w": ParamSpec("w", (4,), "zeros")}
PLAIN = {
    "lr": LR, "clip": 0.0, "seq_len": 10, "batch_size": 1, "optimizer": "sgd", "weight_decay": 0.0,
    "schedule": "constant", "warmup": 0.0, "predict": "none",
}  # fmt: skip


@cache
def config(name, **more):
    """A run of a strategy with plain steps, as far as nothing else is said."""
    values = {**PLAIN, **more}
    if "optimizer" in more:
        values = {name: value for name, value in values.items() if name != "weight_decay"}
    own = {spec.flat for spec in options(STRATEGIES.find(name)).values()}
    if "predict" not in own:
        del values["predict"]
    return TrainConfig(strategy=name, **values)


def strategy(name="hogwild", workers=2, **values):
    """A strategy with options by their flat names."""
    return build(config(name, **values), workers)


def new_arena(of, params=W, *, steps=None, **layout):
    """An arena whose workers may begin; its parameters are 0."""
    arena = empty_arena(of, params, **layout)
    of.begin(arena)
    of.limit_steps(arena, Ledger(arena), steps)
    arena.counters.store("command", ControlCommand.TRAIN)
    return arena


def empty_arena(of, params, **layout):
    """An arena with the segments of a strategy."""
    slots, extra = max(of.slots, of.workers), of.segments(params)
    return Arena.create(plan(params, max_workers=slots, extra=extra, **{"n_tickets": 8, **layout}))


class ParamBuffer:
    """The memory of a backend, without a framework."""

    copy_in, read_tables = Backend.copy_in, Backend.read_tables
    tables, _tables = Backend.tables, Backend._tables

    def __init__(self, arena):
        self.param_buffer = np.zeros_like(arena.dense)

    def refresh(self):
        pass


def context(arena, slot, of, *, steps=10, optimizer=None, **more):
    """A worker's view of the run; its slot may have had another worker."""
    entry = arena.workers.acquire_slot(slot=slot)
    values = {
        "arena": arena, "ledger": Ledger(arena), "entry": entry, "slot": slot,
        "owner": entry.incarnation, "strategy": of, "optimizer": optimizer or SGD(),
        "backend": ParamBuffer(arena), "metal": None,
        "schedule": lambda progress, update: LR, "budget": Budget(steps=steps), "step_limit": steps,
        "decay": frozenset(), "model": SimpleNamespace(),
    }  # fmt: skip
    return Context(**{**values, **more})


def worker(arena, slot, of, **more):
    """One worker of a strategy."""
    return of.worker_class()(context(arena, slot, of, **more))


@contextmanager
def team(name="hogwild", n=2, params=W, *, rule=None, layout=MappingProxyType({}), **options):
    """An arena, its strategy, and its workers."""
    of = strategy(name, n, **options)
    with new_arena(of, params, **layout) as arena:
        yield arena, of, *(worker(arena, k + 1, of, optimizer=rule) for k in range(n))


def full(arena, value):
    """A gradient of equal elements for every parameter."""
    return {n: np.full(s.shape, value, np.float32) for n, s in arena.layout.slots.items()}


def begin_step(one):
    """Take a ticket and read."""
    lease = one.claim()
    assert isinstance(lease, Lease), lease
    one.context.entry.phase = WorkerPhase.COMPUTE
    one.read()
    return lease


def begun(one):
    """The lease of the step that a worker begins, as soon as it need not wait for others."""
    lease = wait_until(lambda: (lease := one.claim()) is not Idle.WAIT and lease, every_s=0.001)
    one.read()
    return lease


def end_step(one, lease, value=1.0):
    """Write a gradient of equal elements."""
    return one.write(full(one.context.arena, value), lease, ONE)


def write(one, lease, grads, samples):
    """Write the gradient of full sequences, as `Steps` does; returns what is to be recorded."""
    tokens = samples * one.context.run.seq_len
    batch = SimpleNamespace(x=[()] * samples, n_tokens=tokens, n_labels=tokens, n_bytes=samples)
    done = WorkerStep(lease, [batch], began_ns=0, grads=grads)
    done.outcome = one.write(grads, lease, done.size)
    return done


def record(one, done):
    """Record a step, as `Steps` does."""
    steps = SimpleNamespace(
        context=one.context, strategy=one, job=SimpleNamespace(slot=one.context.slot),
        ring=SimpleNamespace(append=lambda **values: None),
    )  # fmt: skip
    Steps._record(steps, done)


def step(one, value=1.0):
    """A whole step."""
    return end_step(one, begin_step(one), value)


def first(arena, segment="params"):
    """The first element of a segment."""
    return float(arena.segment(segment)[0])


class Run:
    """One call to `train`, as far as strategies and the ledger see it.

    Attributes:
        gradient: a function of a ticket's number and the first parameter that was read.
        taken: steps so far, by slot.
        idle: how many of its last claims got nothing, by slot.
    """

    def __init__(self, of, params, gradient, steps, optimizer=None, **layout):
        self.optimizer = optimizer
        self.of, self.gradient, self.steps = of, gradient, steps
        self.arena = new_arena(of, params, steps=steps, **layout)
        self.ledger = Ledger(self.arena)
        self.params, self.layout = params, layout
        self.taken, self.idle = dict.fromkeys(range(1, of.workers + 1), 0), Counter()
        self.is_dead = False  # the victim
        self.workers = [self.worker(slot) for slot in self.taken]

    def worker(self, slot):
        return worker(self.arena, slot, self.of, steps=self.steps, optimizer=self.optimizer)

    def _grads(self, one, lease):
        """The gradient of a lease's batch, and the number of its sequences."""
        at = float(one.context.backend.param_buffer[0])
        values = []
        for part in lease.parts or [TicketPart(lease.epoch, lease.ticket, 0, lease.parts is None)]:
            number = part.epoch * self.ledger.n + part.ticket
            values += [self.gradient(number, at)] * (part.end - part.begin)
        return (full(self.arena, np.mean(values)) if values else {}), len(values)

    def work(self, one, victim=None):
        """What a worker does until the run is over; a victim beside it is left steps to die in."""
        pending = None
        while True:
            if victim is not None and self._is_ahead(one, victim):
                time.sleep(0.0002)
                continue
            lease = one.claim()
            if pending is not None:
                self._end(one, *pending)
                pending = None
            if isinstance(lease, Lease):
                self.idle.pop(one.context.slot, None)
                one.context.entry.phase = WorkerPhase.COMPUTE
                one.read()
                pending = (lease, *self._grads(one, lease))
                if not self.of.run.overlap:
                    self._end(one, *pending)
                    pending = None
            elif lease is Idle.DONE and self.done() >= self.steps:
                return
            else:
                self.idle[one.context.slot] += 1
                time.sleep(0.0002)

    def _end(self, one, lease, grads, samples):
        record(one, write(one, lease, grads, samples))
        self.taken[one.context.slot] += 1

    def _is_ahead(self, one, victim):
        """Whether a worker would take steps that a living victim needs to die in."""
        lead = self.taken[one.context.slot] - self.taken[victim.context.slot]
        return (
            isinstance(self.of, LockFree | Collect)
            and lead >= 2
            and not (self.is_dead or self.done() >= self.steps)
        )

    def all_ask_in_vain(self):
        """Whether every worker has done so twice: its first claim may be older than a pause."""
        return min(self.idle[slot] for slot in self.taken) > 1

    def done(self):
        return self.of.steps_done(self.arena, self.ledger)

    def finish(self):
        in_threads(self.work, self.workers)
        self.end()

    def mark_dead(self, slot):
        """What the supervisor does first when a worker is dead: its locks may be taken over."""
        self.arena.workers.mark_dead(slot)
        self.is_dead = True

    def reap(self, slot):
        self.arena.workers.mark_dead(slot)
        self.ledger.reap(self.arena.workers.entry(slot).incarnation)

    def end(self):
        """What is done up to a checkpoint."""
        self.of.settle(self.arena, self.ledger)

    def model(self):
        """The elements of all parameters; each has one value."""
        values = {n: set(self.arena.param(n).reshape(-1).tolist()) for n in self.params}
        assert all(len(one) == 1 for one in values.values()), values
        return {n: one.pop() for n, one in values.items()}

    def resumed(self, steps):
        """The next call, which takes the rest of a budget."""
        old, of = self.arena, self.of
        new = Run.__new__(Run)
        new.__dict__.update(self.__dict__, steps=steps - old.counters.load("steps"))
        new.arena = empty_arena(of, self.params, **self.layout)
        new.ledger, new.is_dead, new.idle = Ledger(new.arena), False, Counter()
        new.taken = dict.fromkeys(self.taken, 0)
        state = {**of.state(old), "ledger": self.ledger.position()}
        new.arena.counters.store("version", old.counters.load("version"))
        new.arena.params[...] = old.params
        kept = of.resume(new.arena, new.ledger, state)
        for segment in of.kept_segments():
            new.arena.segment(segment)[...] = old.segment(segment)
        for slot in range(1, of.slots + 1):
            new.arena.workers.entry(slot).opt_step = old.workers.entry(slot).opt_step
        of.begin(new.arena, kept)
        of.limit_steps(new.arena, new.ledger, new.steps)
        new.arena.counters.store("command", ControlCommand.TRAIN)
        new.workers = [new.worker(slot) for slot in new.taken]
        return new
