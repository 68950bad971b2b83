"""A thousand trivial runs through the scheduler: overhead, memory, and a reader all the while."""

import time
from itertools import pairwise
from statistics import median

from harness.claims import Mean, Sample
from harness.interleaved import answer, spawned
from harness.machine import resident, smallest
from mad.throughput import execute, trivial

from mlxhog.mad.study.store import Store
from mlxhog.mad.study.study import Study

RUNS, SEEDS, PARALLEL = 1000, 10, 2
OVERHEAD_S, GROWTH = 0.020, 0.05
READ_EVERY_S = 0.2
FAILED = -1
BATCH = 100
"""Runs whose time is one sample."""
WARM = 200
"""Runs after which memory is looked at first: until then pools and caches fill."""


def scheduler(findings, folder):
    """Run them, and read the store from another process meanwhile."""
    n_runs, warm, batch = smallest((10 * SEEDS, 5 * SEEDS, SEEDS), (RUNS, WARM, BATCH))
    study = Study(
        candidates=tuple(f"gated-conv(kernel={k + 2})" for k in range(n_runs // SEEDS)),
        tasks=("in-context-recall",),
        seeds=tuple(range(SEEDS)),
    )
    memory = {}
    began = dict[int, float]()  # of each batch

    def watch(progress):
        memory[progress.done] = resident()[0]
        began.setdefault(progress.done // batch, time.monotonic())

    with spawned(_read, folder / "trivial") as (pipe, _):
        answer(pipe, "the reader")  # it is ready
        store, seconds = execute(
            folder, "trivial", study, trivial, parallel=PARALLEL, observer=watch
        )
        pipe.send("end")
        reads, slowest = answer(pipe, "the reader")
    ended = len(store.records())
    later = [memory[done] for done in sorted(memory) if done >= warm]  # looks may skip a count
    early = median(later[:warm])
    growth = max(memory.values()) / early - 1
    batches = (later - before for before, later in pairwise(began[k] for k in sorted(began)))
    each_s = Mean.of(batch_s / batch for batch_s in batches)
    findings.exact("trivial runs with a record", ended, n_runs)
    findings.exact("reads of the store while it was written that failed", reads.count(FAILED), 0)
    findings.exact("reads that saw fewer runs than the one before", _backwards(reads), 0)
    findings.at_most("scheduler: seconds per trivial run", each_s, OVERHEAD_S)
    findings.at_most("scheduler: growth of its memory", growth, GROWTH, timing=False)
    findings.results["scheduler"] = {
        "runs": n_runs,
        "parallel": PARALLEL,
        "seconds": seconds,
        "memory_bytes": Sample.of([memory[done] for done in sorted(memory)]),
        "reads": len(reads),
        "slowest_read_s": slowest,
    }
    print(
        f"  {seconds:.1f} s, {len(reads)} reads meanwhile, the slowest {slowest:.3f} s", flush=True
    )


def _backwards(reads):
    return sum(later < before for before, later in zip(reads, reads[1:], strict=False))


def _read(directory, pipe):
    """Read the whole store again and again; sends how many runs each read saw, or `FAILED`."""
    pipe.send("ready")
    reads, slowest = [], 0.0
    while not pipe.poll(READ_EVERY_S):
        began = time.monotonic()
        try:
            records = Store(directory).records()
            for record in records[-5:]:
                assert len(Store(directory).curve(record.key)) == 10
            reads.append(len(records))
        except Exception as error:  # whatever it is, it counts
            print(f"  the store could not be read: {error!r}", flush=True)
            reads.append(FAILED)
        slowest = max(slowest, time.monotonic() - began)
    pipe.send((reads, slowest))
