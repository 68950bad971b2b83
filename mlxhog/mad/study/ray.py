"""The runs of a study on a Ray cluster, or on one machine through Ray: a plain task for each.

A task is never retried by Ray. Its messages go through one small actor, the mailbox, where the
answers at rungs wait, too. A task whose process died is a lost run: Ray does not tell a crash from
a kill. The command starts Ray and shuts it down, or joins a cluster. If it is killed, agents of
Ray's own may try for a few minutes to reach their dead server before they end.

Source: Ray 2.60, `ray.init`, tasks, asynchronous actors, fault tolerance.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import platform
import secrets
import socket
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from mlxhog.arena.process import WatchedTime
from mlxhog.base.processes import limits_of_threads
from mlxhog.errors import EnvironmentLacks, WorkerFailed
from mlxhog.mad.run import RunConfig, failed
from mlxhog.mad.study.workers import (
    START_S,
    Event,
    Messages,
    RunFunction,
    attempt,
    explain,
    limit_memory,
)

OBJECT_STORE_BYTES = 100 << 20
"""Results are kilobytes; by default Ray takes a third of the machine's memory."""
CONNECT_S = 10.0
LOOK_S = 0.1


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
    silence_s: float,
    memory_limit: int | None = None,
    cores: int | None = None,
    address: str | None = None,
) -> Iterator[RayPool]:
    """Start or join Ray, and yield an executor of runs.

    Args:
        run: executes one run; pickled, so an importable function.
        parallel: runs at once.
        threads: of a worker's libraries.
        silence_s: time without a sign of life after which a run is ended and has failed.
        memory_limit: most resident bytes of a run; None for no limit.
        cores: CPU cores that Ray reserves for a run; None is `threads`.
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
        task = ray.remote(
            num_cpus=cores,
            max_retries=0,
            max_calls=1,  # a process of its own for each run, which ends with it
            runtime_env={"env_vars": limits_of_threads(threads)},
        )(_execute)
        mailbox = ray.remote(num_cpus=0, max_restarts=0)(_Mailbox).remote()
        yield RayPool(task, mailbox, (run, memory_limit), parallel, silence_s)
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


@dataclass
class _Running:
    """A run that Ray executes."""

    worker: str
    task: Any
    began_s: float
    heard_s: float  # in watched time
    host: str | None = None  # None before it is ready


class RayPool:
    """An executor whose runs are tasks of Ray."""

    def __init__(
        self, task: Any, mailbox: Any, what: tuple[object, ...], parallel: int, silence_s: float
    ) -> None:
        self._task, self._mailbox, self._what = task, mailbox, what
        self._parallel, self._silence_s = parallel, silence_s
        self._runs: dict[str, _Running] = {}
        self._watched = WatchedTime()

    def free(self) -> int:
        """Return the number of runs that can begin."""
        return self._parallel - len(self._runs)

    def submit(self, run: RunConfig, rungs: tuple[int, ...]) -> str:
        """Begin a run; return a number for it among those at once."""
        taken = {running.worker for running in self._runs.values()}
        worker = next(n for k in range(self._parallel) if (n := str(k + 1)) not in taken)
        task = self._task.remote(run, rungs, *self._what, self._mailbox, version("mlxhog"))
        self._runs[run.key()] = _Running(worker, task, time.monotonic(), self._watched.look())
        return worker

    def answer(self, key: str, prune: bool) -> None:
        """Tell a run that waits at a rung whether it is pruned."""
        self._mailbox.answer.remote(key, prune)

    def events(self, timeout_s: float) -> list[Event]:
        """Wait for events, at most `timeout_s`; end silent runs.

        Raises:
            WorkerFailed: a machine of the cluster has another mlxhog.
        """
        import ray

        deadline = time.monotonic() + timeout_s
        while True:
            tasks = {running.task: key for key, running in self._runs.items()}
            ended = ray.wait([*tasks], num_returns=len(tasks), timeout=LOOK_S)[0] if tasks else []
            events = [
                event
                for key, word, value in ray.get(self._mailbox.take.remote())
                for event in self._take(key, word, value)
            ]
            events += [event for task in ended for event in self._died(tasks[task], task)]
            events += [event for key in [*self._runs] for event in self._check_silence(key)]
            if events or time.monotonic() >= deadline:
                return events

    def _take(self, key: str, word: str, value: object) -> list[Event]:
        """Return the event of a message."""
        if key not in self._runs:
            return []
        running = self._runs[key]
        running.heard_s = self._watched.look()
        if word == "ready":
            running.host = str(value)
        if word in ("end", "spent"):
            word = "end"
            del self._runs[key]
        return [Event(key, word, value, running.host or "")] * (word not in ("beat", "ready"))

    def _died(self, key: str, task: Any) -> list[Event]:
        """Return the loss of a run whose task ended without a result."""
        import ray

        if key not in self._runs:
            return []  # its result has arrived
        del self._runs[key]
        try:
            ray.get(task)
            reason = "ended without a result"
        except ray.exceptions.RayTaskError as error:  # before the run began
            raise WorkerFailed(
                f"a run cannot begin on the cluster: {explain(error.cause)}"
            ) from None
        except ray.exceptions.RayError as error:
            reason = f"is lost with its machine: {explain(error)}"
        return [Event(key, "lost", reason)]

    def _check_silence(self, key: str) -> list[Event]:
        import ray

        running = self._runs[key]
        ready = running.host is not None
        allowed_s = self._silence_s if ready else max(START_S, self._silence_s)
        if self._watched.look() - running.heard_s <= allowed_s:
            return []
        ray.cancel(running.task, force=True)
        del self._runs[key]
        if not ready:
            return [Event(key, "lost", f"did not start within {allowed_s:g} s")]
        reason = f"its process gave no sign of life for {allowed_s:g} s and was ended"
        result = failed(reason, seconds=time.monotonic() - running.began_s)
        return [Event(key, "end", result, running.host or "")]


class _Mailbox:
    """The messages of all runs, and the answers for those that wait at a rung."""

    def __init__(self) -> None:
        self._messages: list[tuple[str, str, object]] = []
        self._answers: dict[str, asyncio.Queue[bool]] = defaultdict(asyncio.Queue)

    async def put(self, key: str, word: str, value: object) -> None:
        self._messages.append((key, word, value))

    async def take(self) -> list[tuple[str, str, object]]:
        messages, self._messages = self._messages, []
        return messages

    async def answer(self, key: str, prune: bool) -> None:
        self._answers[key].put_nowait(prune)

    async def wait(self, key: str) -> bool:
        return await self._answers[key].get()


def _execute(
    run: RunConfig,
    rungs: tuple[int, ...],
    function: RunFunction,
    memory_limit: int | None,
    mailbox: Any,
    expected: str,
) -> None:
    """Execute a run in a process of Ray."""
    import ray

    if version("mlxhog") != expected:
        raise EnvironmentLacks(
            f"a machine of the cluster has mlxhog {version('mlxhog')}, the scheduler has "
            f"{expected}; install the same everywhere"
        )
    key = run.key()

    def send(word: str, value: object) -> None:
        ray.get(mailbox.put.remote(key, word, value))  # in order, and before the task ends
        if word == "spent":
            os._exit(1)

    send("ready", platform.node())
    if memory_limit is not None:
        limit_memory(memory_limit, send)
    callbacks = Messages(send, lambda: bool(ray.get(mailbox.wait.remote(key))))
    send("end", attempt(function, run, callbacks, rungs)[1])
