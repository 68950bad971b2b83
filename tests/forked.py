"""Worker processes of tests come from servers that have imported what they need, and fork.

A spawned worker imports NumPy, SciPy and the package before it does anything: half a second of a
core, as much as a small run takes; PyTorch takes two more. So there are two servers, of which the
second has imported PyTorch, and computed nothing with it: that would leave threads behind, which do
not survive a fork. Nobody has imported MLX. A server is that of `multiprocessing`; each worker has
the environment of its own start. Commands in processes of their own, whatever workers start
themselves, and tests with `spawned_workers` spawn as users do.
"""

from __future__ import annotations

import os
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from unittest import mock

MODULES = [
    "pytest",  # modules of tests import these three, and hold what processes run
    "hypothesis",
    "hypothesis.extra.numpy",
    "mlxhog.training.worker",
    "mlxhog.mad.study.worker",
    "mlxhog.classic.worker",
]
CHILD = "mlxhog-doctor"
"""The name of an `arena.child.Child`, which is told only later what to do: much of it is torch."""
LIMITS = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}
"""For the servers: threads would not survive in what they fork. A worker asks for its own."""


def _server(*more: str) -> forkserver.ForkServer:
    server = forkserver.ForkServer()
    server.set_forkserver_preload([*MODULES, *more])
    return server


PLAIN, WITH_TORCH = _server(), _server("torch")


class Process(ForkServerProcess):
    """A process with the environment that its parent had when it was started."""

    _args: tuple[object, ...]

    def start(self) -> None:
        self.environment = dict(os.environ)
        torch = self.name == CHILD or "torch" in repr(self._args)
        server = WITH_TORCH if torch else PLAIN
        with mock.patch.dict(os.environ, LIMITS):
            server.ensure_running()
        with mock.patch.object(forkserver, "connect_to_new_process", server.connect_to_new_process):
            super().start()

    def run(self) -> None:
        os.environ.clear()
        os.environ.update(self.environment)
        super().run()


class Context(ForkServerContext):
    """Stands in for the context of `multiprocessing` that spawns."""

    Process = Process


CONTEXT = Context()
