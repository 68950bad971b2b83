"""A training step of the benchmark's Transformer by ours and by plain torch; rows of a task.

Ours is a run of `mlxhog mad train` itself, halted between its steps: a step begins when the run is
let go on and ends with its next sign of life, so that it holds everything a run does in a step.
"""

import atexit
import contextlib
import sys
import threading
import time

from harness.claims import Sample
from harness.estimates import Mean
from harness.interleaved import Program, in_turns
from harness.machine import smallest
from mad.reference import MADSize

from mlxhog.mad.options import PUBLISHED, Protocol
from mlxhog.mad.run import RunConfig
from mlxhog.mad.tasks import make_task, resolve
from mlxhog.mad.training.candidate import train
from mlxhog.models.mad.sequence import parse

TASK = "in-context-recall"
STEP = 1.4
ROWS = {
    TASK: ({}, 20 * 3500),
    "multi-query-associative-recall": ({}, 200_000),
    "selective-grammar": ({}, 20 * 113),
    "state-tracking": ({"group": "S5", "test_length": 40}, 200_000),
    "dyck": ({"test_length": 40}, 200_000),
    "depo": ({}, 200_000),
    "mano": ({}, 200_000),
}
"""Task -> its settings, and the least rows per second: 200k, or 20 times those of the reference's
generator on one core."""
SIZE = MADSize(seq=127)  # T 128 is cut by one token
LAYERS = "mh-attention(h16) swiglu mh-attention(h16) swiglu"


class Halting:
    """Callbacks that let a run take one step at a time."""

    def __init__(self):
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._over = False

    def step(self):
        """Let the run take a step, and wait for its end."""
        self._go.release()
        self._done.acquire()

    def end(self):
        """Let the run end without another step."""
        self._over = True
        self._go.release()

    def wait_for_start(self):
        """Called by the thread that trains, before its first step."""
        self._go.acquire()

    def beat(self):
        if not self._over:
            self._done.release()
            self._go.acquire()
        if self._over:
            raise KeyboardInterrupt

    def point(self, point):
        pass

    def should_prune(self, point):
        return False


def ours(size, threads):
    """A step of a run of ours on real rows."""
    cut = size.seq + 1  # a row loses its last token
    changes = {
        "vocab": size.vocab,
        "seq_len": cut,
        "train_rows": 10 * size.batch,
        "test_rows": 64,
    }
    settings = resolve(TASK, changes)
    config = RunConfig(
        task=TASK,
        settings=vars(settings),
        layers=parse(LAYERS),
        dim=size.d,
        protocol=Protocol(
            optimizer=PUBLISHED,
            lr=5e-4,
            batch_size=size.batch,
            steps=1_000_000,
            eval_every=1_000_000,
            schedule="constant",
        ),
        seed=0,
        threads=threads,
    )
    callbacks = Halting()

    def run():
        callbacks.wait_for_start()
        with contextlib.suppress(KeyboardInterrupt):
            train(config, callbacks=callbacks)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    atexit.register(lambda: (callbacks.end(), thread.join()))
    return callbacks.step


def steps(findings, *, turns, seconds):
    """Steps per second of both, with one thread and with two."""
    programs = {
        "ours": Program("mad.step", "ours", {"size": SIZE}),
        "plain torch": Program("mad.reference", "training_step", {"size": SIZE}),
    }
    rates = {}
    for threads in (1, 2):
        timed = in_turns(programs, threads=threads, turns=turns, seconds=seconds)
        row = f"{threads} thread{'s' * (threads > 1)}"
        findings.same(f"ours, {row}, seconds of a step", timed.seconds["ours"], timed.again)
        rates[row] = {
            name: Sample.of([1 / spent for spent in timed.seconds[name]]) for name in programs
        }
        for name, rate in rates[row].items():
            print(f"  {row:10} {name:12} {rate.spelt('.2f')} steps/s")
        sys.stdout.flush()
        ratio = timed.ratio("plain torch", "ours")
        findings.at_least(f"attention + swiglu, {row}: ours / plain torch", ratio, STEP)
    findings.results["steps_per_s"] = rates


def rows(findings, *, turns):
    """Rows per second of one generating process, of tasks at their baselines."""
    n = smallest(100, 50_000)
    rates = {}
    for task, (settings, least) in ROWS.items():
        seconds = []
        for seed in range(smallest(1, turns)):
            began = time.perf_counter()
            make_task(task, seed=seed, train_rows=n, test_rows=1, **settings)
            seconds.append(time.perf_counter() - began)
        rates[task] = Mean.of(n / spent for spent in seconds)
        print(f"  {task:32} {rates[task].spelt(',.0f')} rows/s, one process", flush=True)
        findings.at_least(f"{task}: rows per second, one process", rates[task], least)
    findings.results["rows_per_s"] = rates
