"""Shared memory and worker processes for tests of the native updates; no arena needed.

bytes                  what
0 ..                   lock words, uint32
+ words, to 4096       worker table, 512 bytes each
+ table, to 4096       floats, float32
"""

import mmap
import os
import tempfile
from contextlib import closing, contextmanager
from multiprocessing import reduction

import numpy as np

from mlxhog import _native
from tests import forked

PROCESSES = forked.CONTEXT
TIMEOUT_S = 120.0
PROBE_NS = 50_000_000  # a worker that waits asks this often whether the owner lives

WORKER = np.dtype(
    {
        "names": ["generation", "dead", "pid", "start_time", "heartbeat_ns", "takeovers", "steps"],
        "formats": ["<u4", "<u4", "<i8", "<u8", "<u8", "<u4", "<u8"],
        "offsets": [4, 8, 16, 24, 32, 44, 144],
        "itemsize": 512,
    }
)


def _page(n):
    return -n % 4096 + n


class Shared:
    """Lock words, worker table and floats in one mapping; picklable while a process starts."""

    def __init__(self, n_floats, n_words=0, n_workers=4, fd=-1):
        n_words = n_words or n_floats // _native.STRIPE + 1
        table_at = _page(4 * n_words)
        floats_at = table_at + _page(WORKER.itemsize * n_workers)
        size = floats_at + _page(4 * n_floats)
        if fd < 0:
            with tempfile.TemporaryFile() as file:
                fd = os.dup(file.fileno())
            os.ftruncate(fd, size)
        self.sizes, self.fd = (n_floats, n_words, n_workers), fd
        self._map = mmap.mmap(fd, size)
        self.words = np.frombuffer(self._map, np.uint32, n_words)
        self.table = np.frombuffer(self._map, np.uint8, WORKER.itemsize * n_workers, table_at)
        self.workers = self.table.view(WORKER)
        self.floats = np.frombuffer(self._map, np.float32, n_floats, floats_at)

    def __reduce__(self):
        return _attach, (*self.sizes, reduction.DupFd(self.fd))

    def locks(self, slot, generation=1):
        """The locks of worker `slot`, whose table entry is made to fit."""
        self.workers["generation"][slot - 1] = generation
        return _native.Locks(self.words, self.table, slot, generation)

    def close(self):
        """Close the descriptor; the mapping goes with the last view."""
        os.close(self.fd)


def _attach(n_floats, n_words, n_workers, fd):
    return Shared(n_floats, n_words, n_workers, fd.detach())


def shared(n_floats, n_words=0, n_workers=4):
    """A fresh zeroed segment, for a block."""
    return closing(Shared(n_floats, n_words, n_workers))


@contextmanager
def spawned(target, jobs):
    """Processes `target(*job)`, started; none outlives the block."""
    processes = [PROCESSES.Process(target=target, args=job) for job in jobs]
    try:
        for process in processes:
            process.start()
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.join(TIMEOUT_S)


def run(target, jobs):
    """Run `target(*job)` for every job at once, each in a process, and want them all to succeed."""
    with spawned(target, jobs) as processes:
        for process in processes:
            process.join(TIMEOUT_S)
        codes = [process.exitcode for process in processes]
        assert codes == [0] * len(jobs), f"exit codes of the workers: {codes}"
