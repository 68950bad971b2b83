"""A run whose updates can be told from its weights: every update adds 1 to every element.

So after n updates every parameter holds n, and what mixes two moments holds two numbers. Writers
go through the marks, locks and counters of real workers, in processes of their own.
"""

import multiprocessing
from functools import partial

import numpy as np

from mlxhog.arena import Arena, plan, published
from mlxhog.arena.control import ControlCommand
from mlxhog.arena.published import Publisher, SeqlockCounters
from mlxhog.base.processes import follow_parent
from mlxhog.base.quantities import Interval
from mlxhog.config.config import TrainConfig
from mlxhog.models.families import param_spec
from mlxhog.models.xlstm_large import XLSTMLargeConfig
from mlxhog.optim import updates
from mlxhog.serving.source import RunWeights
from mlxhog.strategies import build
from tests.threads import LIMIT_S

SPAWN = multiprocessing.get_context("spawn")
MODEL = XLSTMLargeConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, num_heads=2)


def layout(max_workers=3, **more):
    extra = {**published.segments(max_workers), **more}
    return plan(param_spec(MODEL), max_workers=max_workers, n_tickets=4, extra=extra)


def add_ones(handle, slot, pipe):
    """In a worker: update after update, with some arithmetic in between, until told to leave."""
    follow_parent()
    with Arena.from_handle(handle) as arena:
        arena.workers.acquire_slot(slot=slot)
        marks, locks = SeqlockCounters(arena, slot), arena.locks(slot)
        ones = {n: np.ones(s.shape, np.float32) for n, s in arena.layout.slots.items()}
        matrix = np.ones((160, 160), np.float32)
        pipe.send("ready")
        while arena.counters.load("command") != ControlCommand.EXIT:
            for _ in range(4):
                matrix = matrix @ matrix / 160
            marks.begin_update()
            for name, place in arena.layout.slots.items():
                updates.add(arena.params, place, ones[name], locks=locks, mode=0)
            arena.counters.add("version")
            marks.end_update()


class Inbox:
    """What a source fills, with float32 alone."""

    bound = 0

    def bind(self, model, layout):
        self.param_buffer = np.full(layout.n_floats, -1, np.float32)
        self.bound += 1

    def copy_in(self, flat):
        self.param_buffer[:] = flat


class PatternRun:
    """The arena of such a run, its publisher, and readers connected to it."""

    def __init__(self, folder, *, every="20ms", writers=1):
        self.arena = Arena.create(layout())
        self.arena.counters.store("command", ControlCommand.TRAIN)
        strategy = build(TrainConfig(steps=1, strategy="hogwild"), max(1, writers))
        self.path = folder / "socket"
        self.server = self.arena.serve(self.path)
        load = partial(strategy.load, training=True)
        self.publisher = Publisher(self.arena, self.server, load, Interval.parse(every))
        self.processes = []
        for slot in range(1, writers + 1):
            ours, theirs = SPAWN.Pipe()
            process = SPAWN.Process(target=add_ones, args=(self.arena.handle(), slot, theirs))
            process.start()
            self.processes.append(process)
            assert ours.poll(LIMIT_S)
            ours.recv()

    def reader(self, mode):
        return RunWeights(Arena.connect(self.path), MODEL, name="patterns", mode=mode)

    def stop_writers(self):
        """They end the update they are amid."""
        self.arena.counters.store("command", ControlCommand.EXIT)
        for process in self.processes:
            process.join(LIMIT_S)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop_writers()
        for process in self.processes:
            process.kill()
            process.join(LIMIT_S)
        self.server.close()
        self.publisher.end()
        self.arena.close()


def numbers(values, arena):
    """Which numbers each parameter holds."""
    return {
        name: np.unique(values[slot.offset : slot.offset + slot.size])
        for name, slot in arena.layout.slots.items()
    }


def check(loaded, values, arena):
    """Assert what a read said of what it gave."""
    everything = np.unique(np.concatenate(list(numbers(values, arena).values())))
    assert (everything == np.round(everything)).all(), "an element that nobody has written"
    assert loaded.oldest <= everything.min(), (loaded, everything)
    assert everything.max() <= loaded.version, (loaded, everything)
    if loaded.consistent:
        assert everything.tolist() == [loaded.version]
