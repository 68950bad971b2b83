"""Worker processes of tests come from a server that has imported what they need, and forks.

A spawned worker imports NumPy, the package and a framework before it does anything: as much of a
core as a small run takes. Torch starts no thread before its first operation, and holds the matrix
product of MLX, so the server has it; MLX is never imported before a fork. The server is that of
`multiprocessing`; each worker has the environment of its own start. Workers of commands in
`tests/another_process.py` come from it, too. Programs that a test starts, whatever workers start
themselves, and tests with `spawned_workers` spawn as users do.
"""

import os
import threading
from importlib.util import find_spec
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from unittest import mock

from mlxhog.base import child_processes

MODULES = [
    "pytest",  # modules of tests import these three, and hold what processes run
    "hypothesis",
    "hypothesis.extra.numpy",
    "mlxhog.training.worker.loop",
    "mlxhog.training.worker.background_tasks",  # what jobs lead to, and no framework
    "mlxhog.mad.training.candidate",
    "mlxhog.models.lm_native",
    "mlxhog.models.ops.native.operators",
    "mlxhog.models.ops.native.custom_ops",
    "mlxhog.backends.backend",
    "mlxhog.decoding.engine",
    "mlxhog.mad.study.workers",
    "mlxhog.research.classic.worker",
    "mlxhog.cli.train",  # what commands in processes of their own take
    "mlxhog.training.supervisor.training",
    "mlxhog.serving.server.app",
    "mlxhog.display.dashboard",
    "mlxhog.backends.mlx",
    *(["mlxhog.backends.torch"] if find_spec("torch") else []),
    *(["mlxhog.cluster.torchft_group"] if find_spec("torchft") else []),
]
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""For the server: threads would not survive in what it forks. A worker asks for its own."""
_environment = threading.Lock()  # of this process, which may start processes in several threads


class Process(ForkServerProcess):
    """A process with the environment that its parent had when it was started."""

    def start(self):
        with _environment:
            self.environment = dict(os.environ)
            with mock.patch.dict(os.environ, ONE_THREAD):
                forkserver.ensure_running()
        super().start()

    def run(self):
        os.environ.clear()
        os.environ.update(self.environment)
        super().run()


class Context(ForkServerContext):
    """Stands in for the context of `multiprocessing` that spawns."""

    Process = Process


CONTEXT = Context()
CONTEXT.set_forkserver_preload(MODULES)


def join_server():
    """Let workers of this process, which the server forked, come from that server as well."""
    server = forkserver
    server.ensure_running = server._forkserver.ensure_running = lambda: None
    vars(child_processes)["get_context"] = lambda method: CONTEXT
