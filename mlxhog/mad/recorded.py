"""What a score needs to know of a run that has ended."""

from __future__ import annotations

from collections.abc import Mapping
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
