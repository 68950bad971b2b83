"""What scores need to know of a run that has ended, and of the suite it was part of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class Recorded(Protocol):
    """One line of a study's runs.jsonl; the attributes are those of `RunResult`, and these.

    Attributes:
        candidate: canonical string of the layers.
        config: what `RunConfig.to_dict` wrote.
        label: name of the setting within its task, such as "vocab=32".
        state: numbers that the model keeps after the longest row.
    """

    @property
    def candidate(self) -> str: ...  # noqa: D102
    @property
    def config(self) -> Mapping[str, Any]: ...  # noqa: D102
    @property
    def label(self) -> str: ...  # noqa: D102
    @property
    def status(self) -> str: ...  # noqa: D102
    @property
    def acc_token(self) -> float: ...  # noqa: D102
    @property
    def acc_macro(self) -> float: ...  # noqa: D102
    @property
    def val_macro(self) -> float | None: ...  # noqa: D102
    @property
    def ceiling(self) -> float: ...  # noqa: D102
    @property
    def state(self) -> int: ...  # noqa: D102
    @property
    def seconds(self) -> float: ...  # noqa: D102


class Setting(Protocol):
    """One setting of one task.

    Attributes:
        task: full name of the task.
        label: name of the setting within it.
    """

    @property
    def task(self) -> str: ...  # noqa: D102
    @property
    def label(self) -> str: ...  # noqa: D102


class Measured(Protocol):
    """A suite: what every candidate is measured on.

    Attributes:
        settings: every setting of every task.
        points: optimiser points, as fields of the protocol.
    """

    @property
    def settings(self) -> Sequence[Setting]: ...  # noqa: D102
    @property
    def points(self) -> Sequence[Mapping[str, Any]]: ...  # noqa: D102
