"""The runs of a study on a Ray cluster, or on one machine through Ray: a plain task for each.

Ray never retries a task. At a rung a task asks through one small actor, the mailbox; if its process
dies, the run is lost, as Ray does not tell a crash from a kill. The command starts Ray and shuts it
down, or joins a cluster. If it is killed, Ray's agents end after some minutes.

Source: Ray 2.60, `ray.init`, tasks, asynchronous actors, fault tolerance.
"""

import asyncio
import contextlib
import importlib.util
import os
import secrets
import socket
import sys
from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

from mlxhog.base.processes import limits_of_threads
from mlxhog.errors import EnvironmentLacks, WorkerFailed
from mlxhog.mad.run import CandidateRecord, EvalPoint, RunConfig
from mlxhog.mad.study.workers import Ended, RunFunction, ShouldPrune, attempt, explain

OBJECT_STORE_BYTES = 100 << 20
"""Results are kilobytes; by default Ray takes a third of the machine's memory."""
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
    run: RunFunction, *, parallel: int, threads: int, cores: int, address: str | None = None
) -> Iterator["Cluster"]:
    """Start or join Ray, after `check`, and yield the executor.

    `run` executes one run; it is pickled, so an importable function. Ray reserves `cores` for each
    of the `parallel` runs. Without the `address` of a cluster Ray is started here.

    Raises:
        EnvironmentLacks: Ray does not start, or the address does not answer.
    """
    what, how = f"the Ray cluster {address} cannot be joined", dict[str, Any](address=address)
    if address is None:
        what = "Ray does not start"
        how = {
            "address": "local", "num_cpus": parallel * cores, "num_gpus": 0,
            "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES,
        }  # fmt: skip
        # Ray reads these at its import: it sends no statistics, and its token is not written below
        # the home directory. Its processes, like ours, import nothing from the current directory.
        os.environ["PYTHONSAFEPATH"] = "1"
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if "ray" not in sys.modules and not any(n.startswith("RAY_AUTH_") for n in os.environ):
            os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    import ray  # half a second, for this command only

    try:
        host, colon, port = (address or "").rpartition("://")[2].rpartition(":")
        if colon and port.isdecimal():  # Ray itself would retry for minutes
            socket.create_connection((host, int(port)), CONNECT_S).close()
        ray.init(**how, configure_logging=False, log_to_driver=False)
    except Exception as error:  # Ray's own has no class where a node starts too slowly
        raise EnvironmentLacks(
            f"{what}: {explain(error)}; --executor local continues the same study"
        ) from error
    try:
        yield Cluster(run, threads, cores)
    finally:
        ray.shutdown()


class Cluster:
    """An `Executor` whose runs are tasks of Ray; ended by the shutdown of Ray."""

    def __init__(self, run: RunFunction, threads: int, cores: int) -> None:
        import ray

        self._run, self._running = run, dict[Any, RunConfig]()
        self._mailbox: Any = ray.remote(num_cpus=0, max_restarts=0)(_Mailbox).remote()
        self._task: Any = ray.remote(
            num_cpus=cores,
            max_retries=0,
            max_calls=1,  # a process of its own for each run, which ends with it
            runtime_env={"env_vars": limits_of_threads(threads)},
        )(_task)

    def start(self, config: RunConfig, rungs: tuple[int, ...]) -> None:
        """Begin a run as a task; a WorkerFailed as `ended`."""
        with _reached():
            task = self._task.remote(config, rungs, self._run, self._mailbox, version("mlxhog"))
        self._running[task] = config

    def ended(self, timeout_s: float, should_prune: ShouldPrune) -> Iterator[Ended]:
        """Yield a run that has ended.

        Raises:
            WorkerFailed: a machine has another mlxhog, or the cluster or the mailbox is lost.
        """
        import ray

        with _reached():
            ready, _ = ray.wait([*self._running], timeout=timeout_s)
            questions = ray.get(self._mailbox.questions.remote())
        for config, point in questions:
            prune = should_prune(config, point)
            with _reached():
                self._mailbox.answer.remote(config.key(), prune)
        for task in ready:
            result: CandidateRecord | str
            try:
                result = ray.get(task)
            except ray.exceptions.RayTaskError as error:  # before the run began
                why = f"a run cannot begin on the cluster: {explain(error.cause)}"
                raise WorkerFailed(why) from None
            except ray.exceptions.RayError as error:
                result = f"is lost with its machine: {explain(error)}"
            yield self._running.pop(task), result


@contextlib.contextmanager
def _reached() -> Iterator[None]:
    """Raise WorkerFailed if the block cannot reach the cluster, or the mailbox on it."""
    import ray

    try:
        yield
    except (ray.exceptions.RayError, OSError, RuntimeError) as error:
        raise WorkerFailed(
            "the Ray cluster is lost, or its process with the questions of runs: "
            f"{explain(error)}; runs that ended are kept, and mlxhog mad resume continues the "
            "study, also with --executor local"
        ) from None


class _Mailbox:
    """The questions of runs that wait at a rung, and the answers by the keys of the runs."""

    def __init__(self) -> None:
        self._questions: list[tuple[RunConfig, EvalPoint]] = []
        self._answers: dict[str, asyncio.Queue[bool]] = defaultdict(asyncio.Queue)

    async def ask(self, config: RunConfig, point: EvalPoint) -> bool:
        self._questions.append((config, point))
        return await self._answers[config.key()].get()

    async def questions(self) -> list[tuple[RunConfig, EvalPoint]]:
        questions, self._questions = self._questions, []
        return questions

    async def answer(self, key: str, prune: bool) -> None:
        self._answers[key].put_nowait(prune)


def _task(
    config: RunConfig, rungs: tuple[int, ...], run: RunFunction, mailbox: Any, expected: str
) -> CandidateRecord:
    """Execute a run in a process of Ray."""
    import ray

    if version("mlxhog") != expected:
        raise EnvironmentLacks(
            f"a machine of the cluster has mlxhog {version('mlxhog')}, the scheduler has "
            f"{expected}; install the same everywhere"
        )
    return attempt(
        run, config, rungs, lambda point: bool(ray.get(mailbox.ask.remote(config, point)))
    )
