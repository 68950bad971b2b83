"""Small studies: candidates of one layer, runs without training, and runs that fail."""

import ctypes
import multiprocessing
import os
import signal
import sys
import time
from functools import cache

import yaml

from mlxhog.errors import ConfigError, LostGPU, MetalError
from mlxhog.mad.run import EvalPoint
from mlxhog.mad.study.definition import StudyDefinition
from mlxhog.mad.study.scheduler import Scheduler
from mlxhog.mad.study.store import open_store
from mlxhog.mad.study.workers import Pool
from mlxhog.models.mad.sequence import canonical, parse


def texts(n):
    """`n` different candidates in canonical form."""
    return [canonical(parse(f"gated-conv(kernel={k + 2})")) for k in range(n)]


def definition(candidates=2, runs=4):
    """A study whose candidates have runs that differ in their seeds, from 0 on."""
    return StudyDefinition(
        candidates=tuple(texts(candidates)), tasks=("in-context-recall",), dim=8,
        seeds=tuple(range(runs)), recipe={"steps": 2},
    )  # fmt: skip


@cache
def config(n=0):
    """Run n of a candidate."""
    return definition(1).runs(texts(1)[0])[n]


def result(of, *, status="done", curve=()):
    """The record of a run: the same accuracy for equal configs, another for others."""
    score = int(of.key(), 16) / 16**16
    return of.record(
        status, steps=2, seconds=0.01, loss=1 - score, acc_token=score, acc_macro=score, curve=curve
    )


def quick(config, *, callbacks, rungs):
    return result(config)


def always_right(config, **_):
    return config.record("done", steps=2, seconds=0.01, acc_token=1.0, acc_macro=1.0)


def with_curve(config, *, callbacks, rungs):
    curve = ()
    for n in (1, 2, 3):
        point = EvalPoint(step=n, seconds=n / 10, loss=None, acc_token=n / 4, acc_macro=n / 4)
        curve += (point,)
        callbacks.on_eval(point)
        if n in rungs and callbacks.should_prune(point):
            return result(config, status="pruned", curve=curve)
    return result(config, curve=curve)


def held(config, *, folder, **_):
    """It ends while the study `s` has fewer records than the file `allowed` has bytes."""
    while lines(folder / "s") >= (folder / "allowed").stat().st_size:
        time.sleep(0.01)
    return result(config)


def interrupts(config, **_):
    """It ends when it is dropped."""
    os.kill(multiprocessing.parent_process().pid, signal.SIGINT)
    signal.pause()


def raises(config, **_):
    raise ConfigError("kernel is -3;\n  a convolution has at least 1 tap")


def goes_wrong(config, *, callbacks, rungs):
    """Run n ends in the n-th way of `WRONG`, from 1 on."""
    for end in [*WRONG.values()][config.seed - 1 : config.seed]:
        end()
    return result(config)


METAL_SAYS = "[METAL] Command buffer execution failed: Impacting Interactivity"


def loses_its_gpu(config, *, folder, callbacks, rungs):
    """The GPU gives up work of every process's second run, and of all that it gets after that."""
    begun = folder / f"process-{os.getpid()}"
    begun.write_bytes((begun.read_bytes() if begun.exists() else b"") + b".")
    if len(begun.read_bytes()) > 1:
        if config.seed % 2:
            raise LostGPU("torch:mps lost work")
        raise MetalError("kernel slstm failed") from RuntimeError(METAL_SAYS)
    return result(config)


WRONG = {
    "crash": lambda: ctypes.string_at(0),
    "exit": lambda: os._exit(7),
    "leave": lambda: sys.exit("no more"),
    "raise": lambda: raises(None),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
}


def study(root, name="s", candidates=2, runs=4):
    """The store of a study of some candidates, created if it does not exist."""
    return open_store(definition(candidates, runs), root, name)


class CutScheduler(Scheduler):
    """A session that begins no run after so many of the study, as one that was stopped."""

    n_runs = None

    def _limit_reached(self):
        begun = len(self._ended) + self._running
        return (self.n_runs is not None and begun >= self.n_runs) or super()._limit_reached()


def go(store, run=quick, *, parallel=1, sampler=None, pruner=None, n_runs=None, **how):
    """Execute a session of a study and return its result."""
    plan = store.study()
    if sampler is not None:
        vars(plan).update(new_sampler=lambda: sampler)
    if pruner is not None:
        vars(plan).update(new_pruner=lambda curve: pruner)
    pool = Pool(run, parallel=parallel, threads=1, logs=store.directory / "logs")
    with store.lock(), pool:
        session = CutScheduler(store, plan, pool, parallel, **how)
        session.n_runs = n_runs
        return session.run()


def table(store):
    """The results of a study, without time and order."""
    return {
        record.key: (record.candidate, record.seed, record.status, record.acc_macro)
        for record in store.records()
    }


def lines(directory):
    """Records of a study so far."""
    path = directory / "runs.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


TINY = ("--tasks", "M,CR", "--steps", "4", "--eval-every", "2", "--dim", "16", "--batch-size", "8")
ON_MLX = ("--backend", "mlx")


def space(root):
    """A file of a space of two candidates."""
    path, keys = root / "space.yaml", {"depth": 2, "mixers": texts(2), "channels": ["swiglu"]}
    path.write_text(yaml.safe_dump({"space": keys}))
    return str(path)
