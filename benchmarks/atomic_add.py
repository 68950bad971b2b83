"""Concurrent adds into shared memory: what each write mode costs, and what it loses.

    python benchmarks/atomic_add.py            two to five minutes
    python benchmarks/atomic_add.py --quick    one to two

One and two spawned workers, one per core, add a dense delta to one arena again and again. Kernels
take turns, so that drift hits all alike. Moments that both workers write are counted as well: where
gradients are zero and both betas 1/2, a step of AdamW or Muon halves them, so their exponents say
how many steps they have seen.

The gradients of a synchronous step are summed in two ways: in a sum of each worker's own, whose
mean is then computed in shares (as `collect` does), or by lossless adds into one sum. The first
repeats bit for bit, so the second is worth its code only if it is faster.
"""

import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import product
from statistics import fmean

import numpy as np
from harness.claims import Claim
from harness.estimates import Mean, Ratio
from harness.frame import run
from harness.interleaved import answer, spawned, with_control
from harness.machine import cores, pin, smallest

from mlxhog import _native
from mlxhog.arena import Arena, plan
from mlxhog.models.spec import ParamSpec
from mlxhog.optim.updates import WRITE_MODES

WORKERS = 2
KIB, MIB = 1 << 10, 1 << 20
SIZES = {"64 KiB": 64 * KIB, "4 MiB": 4 * MIB, "64 MiB": 64 * MIB}
GRADIENT = "10 MiB"  # that of the default model
LARGEST = 64 * MIB // 4
TOTAL_ADDS = 10**8
HALVINGS = 96  # by each worker of a turn; with two of them a float's exponents allow for 254
COLUMNS = 64  # of the matrix whose mean Muon moves
START_DELAY_S = 0.02


@dataclass(frozen=True)
class Turn:
    """One worker's part of one measurement: an amount of time, or of rounds."""

    kernel: str
    floats: int
    start_s: float
    seconds: float = 0.0
    rounds: int = 0


# -- the worker -----------------------------------------------------------------------------------


def worker(handle, slot, core, pipe):
    """Take turns until the pipe closes."""
    pin(core)
    delta, arena = np.ones(LARGEST, np.float32), Arena.from_handle(handle)
    pipe.send("ready")
    while True:
        turn = pipe.recv()
        pipe.send(take(turn, arena.params, arena.locks(slot), delta[: turn.floats], slot))


def take(turn, flat, locks, delta, slot):
    """Add until the turn is over, all workers from one moment on; returns ns per float."""
    seed, rounds = slot << 32, 0
    rule, _, name = turn.kernel.rpartition(", ")
    width = int(name.removeprefix("cas")) if name.removeprefix("cas").isdecimal() else 0
    mode = 0 if width else WRITE_MODES[name]
    while time.monotonic() < turn.start_s:
        pass
    began = time.monotonic()
    end = turn.start_s + turn.seconds
    while rounds == 0 or rounds < turn.rounds or time.monotonic() < end:
        if rule:
            (RULES | SUMS)[rule][0](locks, mode, flat, turn.floats, seed + rounds)
        elif width:
            _native.add_cas(flat, 0, delta, width)
        else:
            _native.add(locks, mode, flat, 0, delta, seed=seed + rounds)
        rounds += 1
    return 1e9 * (time.monotonic() - began) / (rounds * len(delta))


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


RULES = {"AdamW": (halve_adamw, 2), "Muon": (halve_muon, 1)}
"""A step that halves shared moments, and how many there are of each parameter."""


def sum_own(locks, mode, flat, floats, seed):
    """Add a gradient to the sum of this worker, and compute its share of the mean of both."""
    _, a, b, gradient = (flat[k * floats : (k + 1) * floats] for k in range(4))
    own = (a, b)[(seed >> 32) - 1]
    own += gradient
    mean, part = share(flat, floats, seed)
    np.add(a[part], b[part], out=mean)
    end_of_step(mean)


def sum_together(locks, mode, flat, floats, seed):
    """Add a gradient to the sum of all workers, compute a share of the mean, and empty it."""
    _native.add(locks, mode, flat, 0, flat[3 * floats : 4 * floats], seed=seed)
    mean, _ = share(flat, floats, seed)
    end_of_step(mean)
    mean[...] = 0.0


def share(flat, floats, seed):
    """A worker's share of the first of some segments, and where it is."""
    slot = (seed >> 32) - 1
    part = slice(slot * floats // WORKERS, (slot + 1) * floats // WORKERS)
    return flat[part], part


def end_of_step(mean):
    """What follows the sum in both."""
    mean *= 1 / WORKERS
    _native.sumsq_of_all([mean], 1)


SUMS = {"own sums": (sum_own,), "one sum": (sum_together,)}

# -- the measurements -----------------------------------------------------------------------------


class WorkerPool:
    """The spawned workers, and turns for the first one, two, ... of them."""

    def __init__(self, floats, pipes):
        self.floats, self._pipes = floats, pipes
        for pipe in pipes:
            answer(pipe, "a worker")

    def play(self, kernel, workers, floats, **amount):
        """One turn of the first `workers`."""
        pipes = self._pipes[:workers]
        turn = Turn(kernel, floats, time.monotonic() + START_DELAY_S, **amount)
        for pipe in pipes:
            pipe.send(turn)
        return [answer(pipe, "a worker") for pipe in pipes]

    def lost(self, kernel, floats):
        """Add 1.0 TOTAL_ADDS times by two workers; adds lost, and adds made."""
        self.floats[:floats] = 0.0
        rounds = -(-smallest(1, TOTAL_ADDS) // (floats * WORKERS))
        self.play(kernel, WORKERS, floats, rounds=rounds)
        added = rounds * WORKERS * floats
        return added - int(self.floats[:floats].astype(np.float64).sum()), added

    def lost_in_moments(self, rule, mode, floats):
        """Halve the moments of a rule by two workers; halvings lost, and made."""
        moments = self.floats[floats : (1 + RULES[rule][1]) * floats]
        per_turn, missing, added = HALVINGS * WORKERS * len(moments), 0, 0
        while added < smallest(1, TOTAL_ADDS):
            self.floats[: 4 * floats] = 0.0
            moments[:] = 2.0**HALVINGS
            self.play(f"{rule}, {mode}", WORKERS, floats, rounds=HALVINGS)
            seen = HALVINGS - np.log2(moments.astype(np.float64))
            missing, added = missing + per_turn - int(seen.sum()), added + per_turn
        return missing, added


@contextmanager
def worker_pool():
    """Workers on cores of their own; gone when the block ends."""
    layout = plan({"w": ParamSpec("w", (LARGEST,), "zeros")}, max_workers=WORKERS, n_tickets=1)
    free = cores()
    with Arena.create(layout) as arena, ExitStack() as stack:
        jobs = [(arena.handle(), k + 1, free[k % len(free)]) for k in range(WORKERS)]
        started = [stack.enter_context(spawned(worker, *job)) for job in jobs]
        yield WorkerPool(arena.params, [pipe for pipe, _ in started])


def measure(findings, chosen):
    """Count what is lost, time every kernel, compare."""
    repeats, widest = chosen.repeats or (5 if chosen.quick else 11), f"cas{_native.WIDEST_CAS}"
    keys = [*product(("lossless", "racy"), SIZES, (1, 2))]
    keys += [(kernel, size, 2) for size in ("64 KiB", "4 MiB") for kernel in ("cas1", widest)]
    keys += [(f"{name}, lossless", GRADIENT, 2) for name in SUMS]
    pair, small = ("lossless", "4 MiB", 2), 64 * KIB // 4
    with worker_pool() as pool:
        for kernel in dict.fromkeys(("lossless", "cas1", "cas2", widest)):
            missing, added = pool.lost(kernel, small)
            findings.exact(f"adds lost of {added} ({kernel}, 2 workers)", missing, 0)
        for rule, mode in product(RULES, ("lossless", "cas")):
            missing, added = pool.lost_in_moments(rule, mode, small)
            name = f"updates of moments lost of {added} ({rule}, {mode}, 2 workers)"
            findings.exact(name, missing, 0)
        racy = {size: pool.lost("racy", n // 4) for size, n in SIZES.items()}

        def turn(key, _):
            kernel, size, workers = key
            floats = (10 * MIB if size == GRADIENT else SIZES[size]) // 4
            return fmean(pool.play(kernel, workers, floats, seconds=smallest(0.0, 0.4)))

        times, again = with_control(range(repeats), keys, turn, control=pair)
    if len(cores()) < WORKERS:
        findings.others_load = 1.0  # no pair was timed
    findings.table(
        {"kernel": kernel, "workers": n, "size": size,
         "ns per element and worker": Mean.of(times[kernel, size, n]).spelt(".3f")}
        for kernel, size, n in keys
    )  # fmt: skip

    def ratio(slow, fast, factor=1.0):
        return Ratio.of([factor * ns for ns in times[slow]], times[fast])

    findings.same("lossless, 2 workers, 4 MiB, ns", times[pair], again)
    for size, workers, limit in (
        ("4 MiB", 1, 1.15), ("4 MiB", 2, 1.25), ("64 MiB", 1, 1.15), ("64 MiB", 2, 1.25),
        ("64 KiB", 2, 1.5),
    ):  # fmt: skip
        name = f"time lossless / racy, {workers} worker{'s' * (workers > 1)}, {size}"
        findings.at_most(name, ratio(("lossless", size, workers), ("racy", size, workers)), limit)
    name = "time cas1 / lossless, 2 workers, 4 MiB"
    findings.at_least(name, ratio(("cas1", "4 MiB", 2), pair), 30)
    name = "throughput of 2 workers / 1, lossless, 4 MiB"
    findings.at_least(name, ratio(("lossless", "4 MiB", 1), pair, factor=2.0), 1.8)
    one, own = ((f"{name}, lossless", GRADIENT, 2) for name in ("one sum", "own sums"))
    name = f"time of a step's gradients in one sum / in own sums, 2 workers, {GRADIENT}"
    findings.document(Claim.of(name, ratio(one, own), "<=", 1.0))
    findings.results |= {
        "racy_lost_share": {size: lost / added for size, (lost, added) in racy.items()},
        "widest compare-and-swap over lossless": ratio((widest, "4 MiB", 2), pair),
    }


if __name__ == "__main__":
    options = {"--repeats": {"type": int, "help": "turns per kernel, size and number of workers"}}
    run(__doc__, measure, modes={"quick": "fewer repeats"}, options=options, quiet=True)
