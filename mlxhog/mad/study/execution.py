"""How a session of a study is executed; none of it changes the results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlxhog.config.options import option, options
from mlxhog.config.quantities import parse_bytes, parse_count, parse_duration_s
from mlxhog.errors import ConfigError
from mlxhog.machine.machine import Machine
from mlxhog.machine.workers import GPU_BACKENDS, resolve_workers

if TYPE_CHECKING:
    from mlxhog.mad.study.study import Study

_GROUP = "how it is executed; may be another the next time"
GPU_CANDIDATES = 2
"""At once on one GPU, where nothing else is asked for: one computes while the other prepares."""


@dataclass(frozen=True, kw_only=True)
class ExecutionConfig:
    """Options that `search`, `bench` and `resume` share.

    Raises:
        ConfigError: naming every wrong value at once.
    """

    parallel: int | None = option(
        None, "candidates at once; auto: a core for each, one left free", low=1, none="auto",
        group=_GROUP,
    )  # fmt: skip
    executor: str = option(
        "local", "who runs them: processes of this command, or Ray (extra [ray])",
        choices=("local", "ray"), group=_GROUP,
    )  # fmt: skip
    ray_address: str | None = option(
        None, "join this Ray cluster, such as auto or head:6379, instead of starting Ray here",
        group=_GROUP,
    )  # fmt: skip
    budget: str | None = option(
        None, "begin no run after so many runs (40) or so much time (2h) of the whole study",
        group=_GROUP,
    )  # fmt: skip
    memory_limit: str | None = option(
        None, "a run whose process needs more memory, such as 2GB, has failed", group=_GROUP
    )
    silence: float = option(
        300.0, "a run that gives no sign of life for so long has failed", unit="s", above=0,
        group=_GROUP,
    )  # fmt: skip
    out: str = option("studies", "folder that holds the studies", group=_GROUP)

    def __post_init__(self) -> None:
        """Convert and check every value."""
        problems = []
        for name, spec in options(type(self)).items():
            try:
                object.__setattr__(self, name, spec.convert(getattr(self, name)))
            except ValueError as error:
                problems.append(f"{name} {error}")
        for check in (lambda: self.limit, lambda: self.memory_bytes):
            try:
                check()
            except ConfigError as error:
                problems.append(str(error))
        if self.ray_address is not None and self.executor != "ray":
            problems.append("--ray-address is given without --executor ray; add it")
        if problems:
            raise ConfigError("\n".join(problems))

    def require(self, study: Study, here: Machine) -> None:
        """Refuse what cannot be executed here, before anything is made.

        Args:
            study: whose runs are executed.
            here: this machine.

        Raises:
            ConfigError: candidates share an embedding, and Ray may put them on other machines; or
                nobody says how many candidates a cluster has room for.
            EnvironmentLacks: a backend, or Ray, is asked for and not installed.
        """
        if self.ray_address is None:
            resolve_workers(study.workers, study.threads, machine=here)
        elif self.parallel is None:
            raise ConfigError(
                "--ray-address is given without --parallel; say how many candidates at once the "
                "cluster has room for"
            )
        if self.executor == "ray":
            if study.share_embedding:
                raise ConfigError(
                    "--share-embedding keeps one table in this machine's memory; use --executor "
                    "local"
                )
            from mlxhog.mad.study import ray  # which loads the pool

            ray.check()

    @property
    def limit(self) -> Limit:
        """The budget."""
        return Limit.parse(self.budget)

    @property
    def memory_bytes(self) -> int | None:
        """The memory limit of one run."""
        if self.memory_limit is None:
            return None
        try:
            return parse_bytes(self.memory_limit)
        except ValueError as error:
            raise ConfigError(f"--memory-limit is {self.memory_limit!r}; {error}") from error

    def resolve_parallel(self, study: Study, machine: Machine) -> int:
        """Return how many candidates run at once.

        Args:
            study: whose candidates they are.
            machine: where they will run.
        """
        if self.parallel is not None:
            return self.parallel
        if any(backend in GPU_BACKENDS for backend in study.workers.split(",")):
            return GPU_CANDIDATES
        return max(1, (machine.cores - 1) // study.cores)


@dataclass(frozen=True)
class Limit:
    """No run begins after so many runs, or so many seconds, of the whole study.

    Earlier sessions count: a study that was killed and resumed ends where it would have ended.
    """

    runs: int | None = None
    seconds: float | None = None

    @classmethod
    def parse(cls, text: str | None) -> Limit:
        """Read "40" (runs), "2h" (time), or None.

        Raises:
            ConfigError: it is neither.
        """
        if text is None:
            return cls()
        try:
            limit = (
                cls(runs=parse_count(text))
                if text.strip()[-1:].isdigit()
                else cls(seconds=parse_duration_s(text))
            )
        except ValueError:
            limit = cls(runs=0)
        if (limit.runs is not None and limit.runs < 1) or limit.seconds == 0:
            raise ConfigError(
                f"--budget is {text!r}; wanted a number of runs such as 40, or a time such as 2h"
            )
        return limit

    def reached(self, *, runs: int, seconds: float) -> bool:
        """Whether no further run may begin."""
        return (self.runs is not None and runs >= self.runs) or (
            self.seconds is not None and seconds >= self.seconds
        )
