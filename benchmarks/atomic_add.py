"""Concurrent adds into shared memory: what each write mode costs, and what it loses.

    python benchmarks/atomic_add.py            two to five minutes
    python benchmarks/atomic_add.py --quick    one to two

One and two spawned workers, one per core, add a dense delta to one shared array again and again.
Kernels take turns, so that drift hits all alike; a turn that other programs disturbed is repeated.
Moments that both workers write are counted as well: where gradients are zero and both betas 1/2, a
step of AdamW or Muon halves them, so their exponents say how many steps they have seen.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import product
from multiprocessing import reduction
from statistics import fmean
from typing import Any

import numpy as np
from harness.claims import Sample, flags, measured
from harness.estimates import Ratio
from harness.interleaved import answer, quiet_turns, spawned
from harness.machine import LoadWatch, cores, pin, smallest

from mlxhog import _native
from mlxhog.optim.updates import WRITE_MODES

WORKERS = 2
KIB, MIB = 1 << 10, 1 << 20
SIZES = {"64 KiB": 64 * KIB, "4 MiB": 4 * MIB, "64 MiB": 64 * MIB}
LARGEST = 64 * MIB // 4
TOTAL_ADDS = 10**8
HALVINGS = 96  # by each worker of a turn; with two of them a float's exponents allow for 254
COLUMNS = 64  # of the matrix whose mean Muon moves
WORKER_BYTES = 512
START_DELAY_S = 0.02
AGAIN = " again"
"""The A/A arm: a kernel that runs twice in each turn."""


@dataclass(frozen=True)
class Turn:
    """One worker's part of one measurement: an amount of time, or of rounds."""

    kernel: str
    floats: int
    start_s: float
    seconds: float = 0.0
    rounds: int = 0


@dataclass(frozen=True)
class Done:
    """What a worker did in its turn."""

    floats: int
    wall_s: float
    cpu_s: float
    late_s: float

    @property
    def disturbed(self):
        """Whether the worker began late or had to leave its core."""
        return self.late_s > 0.002 or self.cpu_s < 0.98 * self.wall_s


@dataclass
class Shared:
    """Lock words, worker table and floats, each on pages of its own, in one mapping."""

    fd: int
    words: Any = field(init=False)
    table: Any = field(init=False)
    floats: Any = field(init=False)

    def __post_init__(self):
        n_words = LARGEST // _native.STRIPE
        table_at = -(-4 * n_words // 4096) * 4096
        floats_at = table_at + 4096
        size = floats_at + 4 * LARGEST
        if os.fstat(self.fd).st_size < size:
            os.ftruncate(self.fd, size)
        mapping = mmap.mmap(self.fd, size)
        self.words = np.frombuffer(mapping, np.uint32, n_words)
        self.table = np.frombuffer(mapping, np.uint8, WORKER_BYTES * WORKERS, table_at)
        self.floats = np.frombuffer(mapping, np.float32, LARGEST, floats_at)

    def __reduce__(self):
        return _attach, (reduction.DupFd(self.fd),)


def _attach(fd):
    return Shared(fd.detach())


def memory_fd():
    """Memory without a name; a deleted temporary file where there is no memfd."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("atomic_add")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


# -- the worker -----------------------------------------------------------------------------------


def worker(shared, slot, core, pipe):
    """Take turns until the pipe closes."""
    pin(core)
    delta = np.ones(LARGEST, np.float32)
    locks = _native.Locks(shared.words, shared.table, slot, 0)
    pipe.send("ready")
    while True:
        turn = pipe.recv()
        pipe.send(take(turn, shared, locks, delta[: turn.floats], slot))


def take(turn, shared, locks, delta, slot):
    """Add until the turn is over; all workers of a turn start at one moment."""
    flat, seed, rounds = shared.floats, slot << 32, 0
    rule, _, name = turn.kernel.rpartition(", ")
    width = int(name.removeprefix("cas")) if name.removeprefix("cas").isdecimal() else 0
    mode = 0 if width else WRITE_MODES[name]
    while time.monotonic() < turn.start_s:
        pass
    cpu, began = time.process_time(), time.monotonic()
    end = turn.start_s + turn.seconds
    while rounds == 0 or rounds < turn.rounds or time.monotonic() < end:
        if rule:
            RULES[rule].halve(locks, mode, flat, turn.floats, seed + rounds)
        elif width:
            _native.add_cas(flat, 0, delta, width)
        else:
            _native.add_dense(locks, mode, flat, 0, delta, seed + rounds)
        rounds += 1
    wall = time.monotonic() - began
    return Done(rounds * len(delta), wall, time.process_time() - cpu, began - turn.start_s)


def halve_adamw(locks, mode, flat, floats, seed):
    """One step of AdamW that halves both moments of all, which lie behind the parameters."""
    w, m, v, zeros = (flat[k * floats : (k + 1) * floats] for k in range(4))
    of = ("adam", (1.0, 0.5, 0.5, 0.5, 0.5, 1.0, 1e-8), (1e-3, 1.0, 0.0, 0.0))
    _native.step(*of, locks, mode, w, 0, zeros, [m, v], shared=True, seed=seed)


def halve_muon(locks, mode, flat, floats, seed):
    """The part of a step of Muon that halves the mean of all, which lies behind the parameters."""
    m, zeros = flat[floats : 2 * floats], flat[2 * floats : 3 * floats]
    of = ("mean", (1.0, 0.5, 0.5, 0.0, 1.0), (0.0, 1.0, 0.0, 0.0))
    out = np.empty_like(zeros)
    _native.step(*of, locks, mode, m, 0, zeros, [m], shared=True, seed=seed, out=out)


@dataclass(frozen=True)
class Rule:
    """A step that halves shared moments, and how many there are of each parameter."""

    halve: Callable[[_native.Locks, int, Any, int, int], None]
    moments: int


RULES = {"AdamW": Rule(halve_adamw, 2), "Muon": Rule(halve_muon, 1)}


# -- the measurements -----------------------------------------------------------------------------


class WorkerPool:
    """The spawned workers, and turns for the first one, two, ... of them."""

    def __init__(self, shared, pipes):
        self.shared, self._pipes = shared, pipes
        for pipe in pipes:
            answer(pipe, "a worker")

    def play(self, kernel, workers, floats, **amount):
        """One turn of the first `workers`; also how many cores others used meanwhile."""
        watch = LoadWatch()
        turn = Turn(kernel, floats, time.monotonic() + START_DELAY_S, **amount)
        for pipe in self._pipes[:workers]:
            pipe.send(turn)
        parts = [answer(pipe, "a worker") for pipe in self._pipes[:workers]]
        # From `send` to `start_s` a worker spins, which is not in its own count.
        spun = START_DELAY_S * workers
        return parts, watch.stop(sum(part.cpu_s for part in parts) + spun)


@contextmanager
def worker_pool():
    """Workers on cores of their own; gone when the block ends."""
    shared, free = Shared(memory_fd()), cores()
    with ExitStack() as stack:
        jobs = [(shared, k + 1, free[k % len(free)]) for k in range(WORKERS)]
        started = [stack.enter_context(spawned(worker, *job)) for job in jobs]
        yield WorkerPool(shared, [pipe for pipe, _ in started])


def measure_times(pool, keys, *, repeats, seconds):
    """Nanoseconds per element and worker, kernels taking turns; and the load of others."""

    def turn(key):
        kernel, size, workers = key
        mode = kernel.removesuffix(AGAIN)
        parts, others = pool.play(mode, workers, SIZES[size] // 4, seconds=seconds)
        ns = [1e9 * part.wall_s / part.floats for part in parts]
        disturbed = any(part.disturbed for part in parts)  # others had its core
        return fmean(ns), max(others, 1.0) if disturbed else others

    return quiet_turns(repeats, keys, turn)


def count_lost(pool, kernel, floats):
    """Add 1.0 TOTAL_ADDS times by two workers; adds lost, and adds made."""
    pool.shared.floats[:floats] = 0.0
    rounds = -(-smallest(1, TOTAL_ADDS) // (floats * WORKERS))
    pool.play(kernel, WORKERS, floats, rounds=rounds)
    sums = pool.shared.floats[:floats].astype(np.float64)
    added = rounds * WORKERS * floats
    return added - int(sums.sum()), added


def count_lost_in_moments(pool, rule, mode, floats):
    """Halve the moments of a rule `total` times by two workers; halvings lost, and made."""
    kept = RULES[rule].moments
    flat, begin = pool.shared.floats[: 4 * floats], HALVINGS
    moments = flat[floats : (1 + kept) * floats]
    per_turn = HALVINGS * WORKERS * len(moments)
    missing = added = 0
    while added < smallest(1, TOTAL_ADDS):
        flat[:] = 0.0
        moments[:] = 2.0**begin
        pool.play(f"{rule}, {mode}", WORKERS, floats, rounds=HALVINGS)
        seen = begin - np.log2(moments.astype(np.float64))
        missing += per_turn - int(seen.sum())
        added += per_turn
    return missing, added


def main():
    """Read the flags, and measure."""
    parser = flags(__doc__, quick="fewer repeats; one to two minutes")
    parser.add_argument("--repeats", type=int, help="turns per kernel, size and number of workers")
    return measured("atomic_add", parser.parse_args(), measure, quiet=True)


def measure(findings, chosen):
    """Count what is lost, time every kernel, compare."""
    repeats = chosen.repeats or (5 if chosen.quick else 11)
    widest = f"cas{_native.widest_cas()}"
    keys = [
        (kernel, size, workers)
        for size in SIZES
        for workers in (1, 2)
        for kernel in ("lossless", "racy")
    ]
    keys += [(kernel, size, 2) for size in ("64 KiB", "4 MiB") for kernel in ("cas1", widest)]
    twin = ("lossless" + AGAIN, "4 MiB", 2)
    keys.append(twin)
    racy = {}
    with worker_pool() as pool:
        for kernel in dict.fromkeys(("lossless", "cas1", "cas2", widest)):
            missing, added = count_lost(pool, kernel, SIZES["64 KiB"] // 4)
            findings.exact(f"adds lost of {added} ({kernel}, 2 workers)", missing, 0)
        for rule, mode in product(RULES, ("lossless", "cas")):
            missing, added = count_lost_in_moments(pool, rule, mode, SIZES["64 KiB"] // 4)
            name = f"updates of moments lost of {added} ({rule}, {mode}, 2 workers)"
            findings.exact(name, missing, 0)
        for size, n_bytes in SIZES.items():
            missing, added = count_lost(pool, "racy", n_bytes // 4)
            racy[size] = missing / added
        times, findings.others_load = measure_times(
            pool, keys, repeats=repeats, seconds=smallest(0.0, 0.4)
        )
    if len(cores()) < WORKERS:
        print(f"needs {WORKERS} cores, this process may use {len(cores())}: no pair can be timed")
        findings.others_load = max(findings.others_load, 1.0)

    def ratio(slow, fast):
        turns = list(zip(times[slow], times[fast], strict=False))  # others may spoil one's turn
        return Ratio.of([a for a, _ in turns], [b for _, b in turns])

    print(f"{'ns per element and worker':26}" + "".join(f"{size:>26}" for size in SIZES))
    for kernel, workers in dict.fromkeys((kernel, workers) for kernel, _, workers in keys):
        cells = [times.get((kernel, size, workers), []) for size in SIZES]
        row = "".join(f"{Sample.of(c).spelt('.3f') if c else '':>26}" for c in cells)
        print(f"{f'{kernel}, {workers} workers':26}{row}")
    print("racy, adds lost: " + ", ".join(f"{100 * x:.3f} % at {size}" for size, x in racy.items()))
    pair = ("lossless", "4 MiB", 2)
    against_widest = ratio((widest, "4 MiB", 2), pair)
    print(f"widest compare-and-swap ({widest}) / lossless: {against_widest}")
    findings.same("lossless, 2 workers, 4 MiB, ns", times[pair], times[twin])
    for size, workers, limit in (
        ("4 MiB", 1, 1.15), ("4 MiB", 2, 1.25), ("64 MiB", 1, 1.15), ("64 MiB", 2, 1.25),
        ("64 KiB", 2, 1.5),
    ):  # fmt: skip
        name = f"time lossless / racy, {workers} worker{'s' * (workers > 1)}, {size}"
        slower = ratio(("lossless", size, workers), ("racy", size, workers))
        findings.at_most(name, slower, limit)
    name = "time cas1 / lossless, 2 workers, 4 MiB"
    findings.at_least(name, ratio(("cas1", "4 MiB", 2), pair), 30)
    name = "throughput of 2 workers / 1, lossless, 4 MiB"
    alone, both = zip(*zip(times["lossless", "4 MiB", 1], times[pair], strict=False), strict=True)
    findings.at_least(name, Ratio.of([2 * ns for ns in alone], both), 1.8)
    findings.results |= {
        "ns_per_element": {f"{k}, {s}, {w} workers": Sample.of(times[k, s, w]) for k, s, w in keys},
        "racy_lost_share": racy,
        "cas_widest_over_lossless": against_widest,
        "cas_widest": widest,
        "repeats": repeats,
    }


if __name__ == "__main__":
    raise SystemExit(main())
