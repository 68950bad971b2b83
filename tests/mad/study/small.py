"""Small studies: candidates of one layer, runs without training, and runs that fail."""

import contextlib
import ctypes
import os
import queue
import signal
import sys
import threading
import time
from statistics import fmean
from types import SimpleNamespace

import yaml

from mlxhog.errors import ConfigError
from mlxhog.mad.options import PUBLISHED, Protocol
from mlxhog.mad.run import Point, RunConfig
from mlxhog.mad.search.candidates import Listed
from mlxhog.mad.search.pruning import Pruner
from mlxhog.mad.search.samplers import Grid
from mlxhog.mad.study.scheduler import Scheduler
from mlxhog.mad.study.store import open_store
from mlxhog.mad.study.study import Best, Study
from mlxhog.mad.study.workers import AtRungs, Executor, Pool
from mlxhog.models.mad.sequence import canonical, parse


def texts(n):
    """`n` different candidates in canonical form."""
    return [canonical(parse(f"gated-conv(kernel={k + 2})")) for k in range(n)]


def config(candidate="gated-conv", *, n=0, dim=8, **settings):
    return RunConfig(
        task="in-context-recall",
        settings=settings,
        layers=parse(candidate),
        dim=dim,
        protocol=Protocol(optimizer=PUBLISHED, lr=5e-4, steps=2),
        seed=n,
        candidate=candidate,
        label=f"n={n}",
    )


def plan(candidate, *, runs=4):
    """Runs of a candidate that differ in their seed `n`."""
    return [config(candidate, n=n) for n in range(runs)]


def judge(records):
    return Best(candidate=records[0].candidate, score=fmean(record.acc_macro for record in records))


def result(of, *, status="done", curve=()):
    """The record of a run: the same accuracy for equal configs, another for others."""
    score = int(of.key(), 16) / 16**16
    return of.record(
        status, steps=2, seconds=0.01, loss=1 - score, acc_token=score, acc_macro=score, curve=curve
    )


# -- events of a run; a worker can import every function -------------------------------------------


def quick(config, *, callbacks, rungs):
    return result(config)


def with_curve(config, *, callbacks, rungs):
    points = tuple(
        Point(step=n, seconds=n / 10, loss=None, acc_token=n / 4, acc_macro=n / 4)
        for n in (1, 2, 3)
    )
    for point in points:
        callbacks.point(point)
        if point.step in rungs and callbacks.should_prune(point):
            return result(config, status="pruned", curve=points[: point.step])
    return result(config, curve=points)


def slow(config, *, callbacks, rungs):
    time.sleep(0.1)
    return result(config)


def raises(config, **_):
    raise ConfigError("kernel is -3;\n  a convolution has at least 1 tap")


def goes_wrong(config, *, callbacks, rungs, wrong):
    """Run n ends in the n-th way, from 1 on, of those that `wrong` lists."""
    ways = ["", *wrong.split()][config.seed :]
    if ways[:1] == ["curve"]:
        return with_curve(config, callbacks=callbacks, rungs=rungs)
    WRONG.get(ways[0] if ways else "", lambda: None)()
    return result(config)


WRONG = {
    "crash": lambda: ctypes.string_at(0),
    "exit": lambda: os._exit(7),
    "leave": lambda: sys.exit("no more"),
    "raise": lambda: raises(None),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
}


# -- whole studies ---------------------------------------------------------------------------------


class Threads(Executor):
    """An executor whose workers are threads, for tests that do not need processes."""

    def __init__(self, run, parallel):
        super().__init__(parallel)
        self._run, self._said, self._answers = run, queue.Queue(), {}

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        assert kind or not self.runs

    def answer(self, key, prune):
        self._answers[key].put(prune)

    def _begin(self, run, rungs):
        self._answers[run.key()] = queue.Queue()
        threading.Thread(target=self._execute, args=(run, rungs)).start()

    def _messages(self, timeout_s):
        with contextlib.suppress(queue.Empty):
            yield self._said.get(timeout=timeout_s)

    def _execute(self, run, rungs):
        key = run.key()
        callbacks = AtRungs(
            lambda *message: self._said.put((key, *message)), self._answers[key].get
        )
        self._said.put((key, "end", self._run(run, callbacks=callbacks, rungs=rungs)))


def study(root, name="s", candidates=2):
    """The store of a study of some candidates, created if it does not exist."""
    return open_store(Study(candidates=tuple(texts(candidates))), root, name)


def processes(store, run, *, parallel=1):
    """The executor of the command: workers in processes of their own."""
    return Pool(run, parallel=parallel, threads=1, logs=store.directory / "logs")


def go(store, run=quick, *, candidates=2, parallel=1, runs=4, executor=None, **how):
    """Execute a session of a study and return its result."""
    sampler = how.pop("sampler", None) or Grid(Listed([parse(text) for text in texts(candidates)]))
    pruner = how.pop("pruner", None) or Pruner()
    definition = SimpleNamespace(
        total=how.pop("total", None),
        new_sampler=lambda: sampler,
        new_pruner=lambda curve: pruner,
        runs=lambda candidate: plan(candidate, runs=runs),
        judge=judge,
    )
    with store.lock(), executor or Threads(run, parallel) as execute:
        return Scheduler(store, definition, execute, **how).run()


def table(store):
    """The results of a study, without time and order."""
    return {
        record.key: (record.candidate, record.label, record.status, record.acc_macro)
        for record in store.records()
    }


def assert_same_studies(one, other):
    """Assert that the same runs have the same evaluations."""
    assert table(one) == table(other)
    for record in one.records():
        points = [store.curve(record.key) for store in (one, other)]
        assert [point.loss for point in points[0]] == [point.loss for point in points[1]]


# -- arguments of commands: two candidates, two tasks, runs of a few steps -------------------------

TINY = ("--tasks", "M,CR", "--steps", "4", "--eval-every", "2", "--dim", "16", "--batch-size", "8")
ON_MLX = ("--backend", "mlx")


def space(root):
    """A file of a space of two candidates."""
    path = root / "space.yaml"
    choices = {"depth": 2, "mixers": [{"type": "gated-conv", "kernel": [2, 3]}]}
    path.write_text(yaml.safe_dump({"space": {**choices, "channels": ["swiglu"]}}))
    return str(path)
