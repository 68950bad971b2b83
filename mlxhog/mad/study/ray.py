"""Workers on a Ray cluster, or on one machine through Ray: an actor for each.

An actor starts a process as the pool of one machine does, and passes on the messages between
scheduler and process. So a run has the same environment in both, and ends in the same ways; only
the loss of a machine is detected by Ray. The command starts Ray and shuts it down, or joins a
cluster.

Most of Ray's processes end with the one that started them; two of its agents retry for minutes to
reach a dead server. A guard process ends them if the scheduler was killed, and then ends itself.

Source: Ray 2.60, `ray.init`, actors, fault tolerance.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from multiprocessing import connection, parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from mlxhog.arena.process import process_start_time
from mlxhog.arena.worker_pool import WorkerProcess
from mlxhog.errors import EnvironmentLacks
from mlxhog.machine.interrupts import SIGNALS
from mlxhog.mad.study.pool import Pool, RunFunction, Task, WorkerDied
from mlxhog.mad.study.worker import DUMP_S, Process, explain

OBJECT_STORE_BYTES = 100 << 20
"""Results are kilobytes; by default Ray takes a third of the machine's memory."""
EVENTS_S = 30.0
CONNECT_S = 10.0


def check() -> None:
    """Raise EnvironmentLacks if Ray is not installed; imports nothing."""
    if importlib.util.find_spec("ray") is None:
        raise EnvironmentLacks(
            "--executor ray needs Ray: python -m pip install ray; --executor local "
            "needs nothing, and continues the same study"
        )


@contextlib.contextmanager
def cluster(
    run: RunFunction,
    *,
    parallel: int,
    threads: int,
    logs: Path,
    silence_s: float,
    memory_limit: int | None = None,
    cores: int | None = None,
    address: str | None = None,
) -> Iterator[Pool]:
    """Start or join Ray, and yield a pool of workers.

    Args:
        run: executes one run; pickled, so an importable function.
        parallel: workers.
        threads: of a worker's libraries.
        logs: directory for the logs of workers; machines without it use a temporary one.
        silence_s: time without a sign of life after which a run is ended and has failed.
        memory_limit: most resident bytes of a worker; None for no limit.
        cores: CPU cores that Ray reserves for a worker; None is `threads`.
        address: of a running cluster; None starts Ray here and shuts it down afterwards.

    Raises:
        EnvironmentLacks: Ray is missing, or does not start, or the address does not answer.
    """
    check()
    cores = cores or threads
    how: dict[str, Any] = {"address": address}
    if address is not None:
        _check_address(address)
    else:
        _keep_to_ourselves()
        how = {
            "address": "local",
            "num_cpus": parallel * cores,
            "num_gpus": 0,
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
        }
    import ray  # half a second, for this command only

    try:
        ray.init(**how, configure_logging=False, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = f"the Ray cluster {address} cannot be joined" if address else "Ray does not start"
        raise EnvironmentLacks(
            f"{where}: {explain(error)}; --executor local continues the same study"
        ) from error
    try:
        host = ray.remote(_Actor).options(
            num_cpus=cores, max_restarts=0, max_task_retries=0, max_concurrency=3
        )

        def start_worker(number: int) -> _ActorWorker:
            log = f"worker-{number + 1}.log"
            actor = host.remote(run, threads, str(logs), log, memory_limit, version("mlxhog"))
            return _ActorWorker(actor)

        watched = contextlib.nullcontext() if address else guard()
        with watched, Pool(parallel, start_worker, _wait, silence_s=silence_s) as pool:
            yield pool
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """Check the connection to a cluster; Ray itself would retry for minutes."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not colon or not port.isdecimal():
        return  # "auto", which Ray looks up
    try:
        socket.create_connection((host, int(port)), CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise EnvironmentLacks(
            f"the Ray cluster {address} cannot be joined: {error}; see `ray status` there, or "
            "leave --ray-address out to start Ray on this machine"
        ) from error


def _keep_to_ourselves() -> None:
    """Send no statistics, require a token, and write none below the home directory.

    Ray reads these variables at its import; after that they have no effect. Its processes, like
    ours, import nothing from the current directory.
    """
    os.environ["PYTHONSAFEPATH"] = "1"
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if "ray" not in sys.modules and not any(name.startswith("RAY_AUTH_") for name in os.environ):
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _wait(workers: Sequence[_ActorWorker], timeout_s: float) -> None:
    import ray

    ray.wait([worker.pending for worker in workers], num_returns=1, timeout=timeout_s)


class _ActorWorker:
    """An actor, as a `PoolWorker` of the pool."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self.pending = actor.events.remote()

    def send(self, message: Task | bool) -> None:
        """Send a message to the process of the actor."""
        self._actor.send.remote(message)

    def receive_all(self) -> list[tuple[Any, ...]]:
        """Return the new messages, without waiting."""
        import ray

        if not ray.wait([self.pending], timeout=0)[0]:
            return []
        try:
            messages: list[tuple[Any, ...]] = ray.get(self.pending)
        except ray.exceptions.RayError as error:
            raise WorkerDied(f"is lost with its machine: {explain(error)}", killed=True) from None
        if messages and messages[0][0] == "died":
            self.end()
            raise WorkerDied(messages[0][1], killed=messages[0][2])
        self.pending = self._actor.events.remote()
        return messages

    def end(self, *, dump: bool = False) -> None:
        """Kill the actor; with `dump` its process first writes its stack."""
        import ray

        if dump:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.get(self._actor.dump.remote(), timeout=10 * DUMP_S)
        ray.kill(self._actor, no_restart=True)  # its process follows it


class _Actor:
    """The actor: one process, and threads for messages to the scheduler."""

    def __init__(
        self,
        run: RunFunction,
        threads: int,
        logs: str,
        log: str,
        memory_limit: int | None,
        expected: str,
    ) -> None:
        if version("mlxhog") != expected:
            raise EnvironmentLacks(
                f"a machine of the cluster has mlxhog {version('mlxhog')}, the scheduler has "
                f"{expected}; install the same everywhere"
            )
        folder = Path(logs) if Path(logs).parent.is_dir() else Path(tempfile.mkdtemp())
        self._process = Process(run, threads, folder / log, memory_limit)

    def send(self, message: Any) -> None:
        """Pass on a task, or the answer at a rung."""
        self._process.send(message)

    def events(self) -> list[tuple[Any, ...]]:
        """Wait for messages or the death of the process."""
        connection.wait([self._process.pipe], EVENTS_S)
        try:
            return self._process.receive_all()
        except WorkerDied as death:
            return [("died", str(death), death.killed)]

    def dump(self) -> None:
        """Let the process write its stack into its log."""
        self._process.dump()


@contextlib.contextmanager
def guard() -> Iterator[None]:
    """End every descendant of this process if it dies before the block ends.

    Enter the block after their start: later ones are not included.
    """
    process = WorkerProcess(
        _guard_main,
        (_below(os.getpid()),),
        name="mlxhog-ray-guard",
        daemon=None,
        follows=False,
        pipe=True,
    )
    try:
        yield
    finally:
        process.pipe.close()
        process.reap(None)


def _below(pid: int) -> list[tuple[int, int]]:
    """Return the descendants of a process, as id and start time."""
    listing = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True
    )
    parents = [tuple(map(int, line.split())) for line in listing.stdout.splitlines()]
    pids = [pid]
    for parent in pids:
        pids += [child for child, own in parents if own == parent]
    return [(one, start) for one in pids[1:] if (start := process_start_time(one))]


def _guard_main(pipe: Connection, watched: list[tuple[int, int]]) -> None:
    """Entry point of the guard: wait for the end of the block, or of the parent."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None
    connection.wait([pipe, parent.sentinel])
    if connection.wait([parent.sentinel], 0):
        for pid, start in watched:
            if process_start_time(pid) == start:  # the id may be reused
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
