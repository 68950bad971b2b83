"""Local methods in one process: workers in threads, and the expected result, step by step."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np

from mlxhog.arena import Arena, plan
from mlxhog.arena.control import Command
from mlxhog.arena.ledger import Ledger
from mlxhog.arena.workers import Phase
from mlxhog.config.budget import Budget
from mlxhog.config.choices import OPTIMIZERS
from mlxhog.config.local_strategies import DiLoCo, FedProx, Scaffold
from mlxhog.optim import SGD
from mlxhog.strategies import RUNS, Idle, Lease
from mlxhog.strategies.local import Local, LocalWorker
from tests.strategies.deaths import let_others_run
from tests.strategies.test_sync import LR, context, strategy
from tests.threads import in_threads

STEPS = 9
FLOATS = 3000  # every worker averages a part of them
OPTIONS = {
    "average_every": 2, "local_after": 0, "local_work": "equal",
    "prox_mu": 0.5, "prox": "grad", "replicas": None, "outer_lr": 0.7, "outer_momentum": 0.9,
}  # fmt: skip


def method(name, workers=2, **options):
    """A local method with options that tell every term of it apart."""
    (kind,) = (run for choice, run in RUNS.items() if choice.name == name)
    assert isinstance(kind, type)
    values = {**OPTIONS, "seq_len": 10, **options}
    if steps := values.pop("steps_by_rank", None):
        kind = type(kind.__name__, (kind,), {"steps_of_round": lambda *_: steps})
    if rule := values.get("optimizer"):
        values["optimizer"] = OPTIMIZERS.make(OPTIMIZERS.find(rule), {"weight_decay": 0.0})
    result = strategy(kind, workers, **values)
    assert isinstance(result, Local)
    return result


def new_arena(of, *, private=()):
    """An arena whose one parameter begins at 0, before its workers start."""
    parameter = SimpleNamespace(shape=(FLOATS,), init="zeros", kind="dense")
    layout = plan(
        {"w": parameter}, max_workers=of.workers, private=private, n_tickets=8,
        extra=of.segments(1),
    )  # fmt: skip
    arena = Arena.create(layout)
    of.begin(arena)
    arena.counters.store("command", Command.TRAIN)
    return arena


def worker(arena, slot, of, *, steps=STEPS, optimizer=None):
    """One worker, in a slot that may have had another."""
    opt_step = arena.workers.entry(slot).opt_step
    ctx = replace(context(arena, slot, of), optimizer=optimizer or SGD())
    ctx.entry.opt_step = opt_step
    ctx.step_limit, ctx.budget = steps, Budget(steps=steps)
    ctx.backend = SimpleNamespace(inbox=np.zeros_like(arena.params), refresh=lambda: None)
    new_worker = of.worker(ctx)
    assert isinstance(new_worker, LocalWorker)
    return new_worker


def gradient(ticket, at):
    """Of a batch: differs between batches, and depends on where it is taken."""
    return 1.0 + ticket + 0.25 * at


def take_step(worker, lease):
    """One step by the gradient of a lease's batch."""
    worker.read()
    number = lease.epoch * worker.context.ledger.n + lease.ticket
    result = gradient(number, float(worker.context.backend.inbox[0]))
    worker.write({"w": np.full(FLOATS, result, np.float32)}, lease, samples=1)


def take_steps(worker):
    """Steps until the budget of all is used up, and this worker's part in meetings."""
    context = worker.context
    context.entry.phase = Phase.DATA
    while (lease := worker.claim()) is not Idle.DONE or not all_done(worker):
        if isinstance(lease, Lease):
            take_step(worker, lease)
        else:
            let_others_run()


def all_done(worker):
    """Whether every worker has taken its steps; the others may need this one in a meeting."""
    context = worker.context
    return context.strategy.steps_done(context.arena, context.ledger) == context.step_limit


def run(arena, of, *, steps=STEPS, optimizer=None):
    """All steps of all workers, to the model."""
    results = [
        worker(arena, slot, of, steps=steps, optimizer=optimizer)
        for slot in range(1, of.workers + 1)
    ]
    in_threads(take_steps, results)
    of.settle(arena, Ledger(arena))


def f32(value):
    return np.float32(value)


def mean(values):
    """As the strategies round it."""
    total = values[0]
    for value in values[1:]:
        total = f32(total + value)
    return f32(total * f32(1.0 / len(values))) if len(values) > 1 else total


class Sequential:
    """A method as its paper has it: one worker after the other, in float32."""

    def __init__(self, of, *, steps=STEPS, without=None):
        """Take all steps, but for the effect of one."""
        self.of, self.choice, workers = of, of.choice, of.workers
        self.own = [f32(0.0)] * workers
        self.anchor = self.velocity = self.control = f32(0.0)
        self.controls = [f32(0.0)] * workers
        self.meetings = 0
        done = 0
        while done < steps:
            lengths = of.steps_of_round(None, done)
            order = sorted((j, p) for p in range(workers) for j in range(min(lengths[p], steps)))
            self._gradients = [[] for _ in range(workers)]
            for _, rank in order[: steps - done]:
                if done != without:
                    self._step(rank, done)
                done += 1
            self.amid = done == steps and len(order) > 0 and done < self._end(order, steps, done)
            if not self.amid:
                self._meet()
        self.model = mean(self.own) if self.amid else self.own[0]

    def _end(self, order, steps, done):
        """The number at which the round ends."""
        taken = sum(map(len, self._gradients))
        return done + len(order) - taken

    def _step(self, rank, ticket):
        at, chosen = self.own[rank], self.choice
        direction = result = f32(gradient(ticket, float(at)))
        if isinstance(chosen, FedProx) and chosen.prox == "grad":
            direction = f32(result + f32(f32(chosen.mu) * f32(at - self.anchor)))
        elif isinstance(chosen, FedProx):
            at = f32(at - f32(f32(LR * chosen.mu) * f32(at - self.anchor)))
        elif isinstance(chosen, Scaffold):
            direction = f32(result + f32(self.control - self.controls[rank]))
        self._gradients[rank].append(result)
        self.own[rank] = f32(at - f32(f32(LR) * direction))

    def _meet(self):
        chosen, average = self.choice, mean(self.own)
        if isinstance(chosen, Scaffold):
            self._next_controls()
        if isinstance(chosen, DiLoCo):
            moved = mean([f32(self.anchor - own) for own in self.own])
            momentum = f32(chosen.outer_momentum)
            self.velocity = f32(f32(momentum * self.velocity) + moved)
            ahead = f32(moved + f32(momentum * self.velocity))
            average = f32(self.anchor - f32(f32(chosen.outer_lr) * ahead))
        self.anchor, self.own = average, [average] * self.of.workers
        self.meetings += 1

    def _next_controls(self):
        """Option II."""
        after = []
        for own, control, result in zip(self.own, self.controls, self._gradients, strict=True):
            moved = f32(f32(self.anchor - own) / f32(len(result) * LR))
            after.append(f32(f32(control - self.control) + moved) if result else control)
        self.controls, self.control = after, mean(after)
