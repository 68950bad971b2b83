"""How long a study goes on: a number of runs, or a time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from mlxhog.config.quantities import parse_count, parse_duration_s
from mlxhog.errors import ConfigError
from mlxhog.mad.study.record import Record


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


def seconds_used(records: Iterable[Record]) -> float:
    """Return the time during which any of some runs was in progress."""
    spans = []
    for record in records:
        end = datetime.fromisoformat(record.at).timestamp()
        spans.append((end - record.seconds, end))
    used, until = 0.0, float("-inf")
    for begin, end in sorted(spans):
        used += max(0.0, end - max(begin, until))
        until = max(until, end)
    return used
