"""Worker processes of tests come from a server that has imported what they need, and forks.

A spawned worker imports NumPy, SciPy and the package before it does anything: half a second of a
core, as much as a small run takes. Workers of torch come from a second server that has imported
torch, too, which takes three times as long, and has computed nothing with it: no thread of it is
lost in a fork. MLX is imported after the fork, by each worker. Each worker has the environment of
its own start. Commands in processes of their own, whatever workers start themselves, and tests with
`spawned_workers` spawn as users do.
"""

from __future__ import annotations

import os
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.popen_forkserver import Popen
from unittest import mock

from mlxhog.training.job import Job

MODULES = [
    "pytest",  # modules of tests import these three, and hold what processes run
    "hypothesis",
    "hypothesis.extra.numpy",
    "mlxhog.training.worker",
    "mlxhog.mad.study.worker",
    "mlxhog.classic.worker",
]
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""For the server: threads would not survive in what it forks. A worker asks for its own."""


OF_TORCH = forkserver.ForkServer()
OF_TORCH.set_forkserver_preload([*MODULES, "mlxhog.backends.torch"])


class Process(ForkServerProcess):
    """A process with the environment that its parent had when it was started."""

    _args: tuple[object, ...]

    def start(self) -> None:
        self.environment = dict(os.environ)
        super().start()

    @staticmethod
    def _Popen(process: Process) -> Popen:
        """Have it forked by the server that has imported its framework."""
        jobs = [one for one in process._args if isinstance(one, Job)]
        of_torch = any(job.spec.backend.startswith("torch:") for job in jobs)
        server = OF_TORCH if of_torch else forkserver._forkserver
        with mock.patch.dict(os.environ, ONE_THREAD):
            server.ensure_running()
        with mock.patch.object(forkserver, "connect_to_new_process", server.connect_to_new_process):
            return Popen(process)

    def run(self) -> None:
        os.environ.clear()
        os.environ.update(self.environment)
        super().run()


class Context(ForkServerContext):
    """Stands in for the context of `multiprocessing` that spawns."""

    Process = Process


CONTEXT = Context()
CONTEXT.set_forkserver_preload(MODULES)
