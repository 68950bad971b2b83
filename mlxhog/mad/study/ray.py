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
import secrets
import socket
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from typing import Any

from mlxhog.base.processes import limits_of_threads
from mlxhog.errors import EnvironmentLacks, WorkerFailed
from mlxhog.mad.run import RunConfig
from mlxhog.mad.study.workers import AtRungs, Executor, Message, RunFunction, attempt, explain

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
    cores: int | None = None,
    address: str | None = None,
) -> Iterator[RayPool]:
    """Start or join Ray, and yield an executor of runs.

    Args:
        run: executes one run; pickled, so an importable function.
        parallel: runs at once.
        threads: of a worker's libraries.
        cores: CPU cores that Ray reserves for a run; None is `threads`.
        address: of a running cluster; None starts Ray here and shuts it down afterwards.

    Raises:
        EnvironmentLacks: Ray is missing, or does not start, or the address does not answer.
    """
    check()
    cores, what = cores or threads, f"the Ray cluster {address} cannot be joined"
    how: dict[str, Any] = {"address": address}
    if address is None:
        what = "Ray does not start"
        how = {
            "address": "local", "num_cpus": parallel * cores, "num_gpus": 0,
            "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES,
        }  # fmt: skip
        _keep_to_ourselves()
    import ray  # half a second, for this command only

    try:
        host, colon, port = (address or "").rpartition("://")[2].rpartition(":")
        if colon and port.isdecimal():  # Ray itself would retry for minutes
            socket.create_connection((host, int(port)), CONNECT_S).close()
        ray.init(**how, configure_logging=False, log_to_driver=False)
    except (OSError, OverflowError, RuntimeError, ValueError) as error:
        raise EnvironmentLacks(
            f"{what}: {explain(error)}; --executor local continues the same study"
        ) from error
    try:
        task = ray.remote(
            num_cpus=cores,
            max_retries=0,
            max_calls=1,  # a process of its own for each run, which ends with it
            runtime_env={"env_vars": limits_of_threads(threads)},
        )(_execute)
        mailbox = ray.remote(num_cpus=0, max_restarts=0)(_Mailbox).remote()
        yield RayPool(task, mailbox, run, parallel)
    finally:
        ray.shutdown()


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


class RayPool(Executor):
    """An executor whose runs are tasks of Ray."""

    def __init__(self, task: Any, mailbox: Any, run: RunFunction, parallel: int) -> None:
        super().__init__(parallel)
        self._task, self._mailbox, self._run = task, mailbox, run
        self._tasks: dict[str, Any] = {}  # by the keys of their runs

    def _begin(self, run: RunConfig, rungs: tuple[int, ...]) -> None:
        how = (rungs, self._run, self._mailbox, version("mlxhog"))
        self._tasks[run.key()] = self._task.remote(run, *how)

    def answer(self, key: str, prune: bool) -> None:
        """Tell a run that waits at a rung whether it is pruned."""
        self._mailbox.answer.remote(key, prune)

    def _messages(self, timeout_s: float) -> Iterable[Message]:
        """Wait for messages, and for tasks that end without a result.

        Raises:
            WorkerFailed: a machine of the cluster has another mlxhog.
        """
        import ray

        self._tasks = {key: task for key, task in self._tasks.items() if key in self.runs}
        keys = {task: key for key, task in self._tasks.items()}
        ended = ray.wait([*keys], num_returns=len(keys), timeout=LOOK_S)[0] if keys else []
        yield from ray.get(self._mailbox.take.remote())
        for task in ended:
            how = "ended without a result"  # ignored if its result has arrived
            try:
                ray.get(task)
            except ray.exceptions.RayTaskError as error:  # before the run began
                raise WorkerFailed(
                    f"a run cannot begin on the cluster: {explain(error.cause)}"
                ) from None
            except ray.exceptions.RayError as error:
                how = f"is lost with its machine: {explain(error)}"
            yield keys[task], "lost", how


class _Mailbox:
    """The messages of all runs, and the answers for those that wait at a rung."""

    def __init__(self) -> None:
        self._messages: list[Message] = []
        self._answers: dict[str, asyncio.Queue[bool]] = defaultdict(asyncio.Queue)

    async def put(self, *message: Any) -> None:
        self._messages.append(message)

    async def take(self) -> list[Message]:
        messages, self._messages = self._messages, []
        return messages

    async def answer(self, key: str, prune: bool) -> None:
        self._answers[key].put_nowait(prune)

    async def wait(self, key: str) -> bool:
        return await self._answers[key].get()


def _execute(
    plan: RunConfig, rungs: tuple[int, ...], run: RunFunction, mailbox: Any, expected: str
) -> None:
    """Execute a run in a process of Ray."""
    import ray

    if version("mlxhog") != expected:
        raise EnvironmentLacks(
            f"a machine of the cluster has mlxhog {version('mlxhog')}, the scheduler has "
            f"{expected}; install the same everywhere"
        )
    key = plan.key()

    def send(word: str, value: object) -> None:
        ray.get(mailbox.put.remote(key, word, value))  # in order, and before the task ends

    callbacks = AtRungs(send, lambda: bool(ray.get(mailbox.wait.remote(key))))
    send("end", attempt(run, plan, callbacks, rungs))
