"""Check that a data set has the properties its task must have, whoever made it.

The invariants have the numbers of the golden data's description:

    1 - 7    in-context recall and noisy recall     13 - 15  selective copying
    8 - 12   fuzzy recall                           16       compression
                                                    17, 18   memorization
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlxhog.config.options import options
from mlxhog.errors import ConfigError, DataError
from mlxhog.mad.check import copying, findings, fuzzy, recall
from mlxhog.mad.check.findings import Failure, Findings
from mlxhog.mad.tasks import find
from mlxhog.mad.tasks.compression import Compression
from mlxhog.mad.tasks.dataset import Dataset
from mlxhog.mad.tasks.fuzzy_in_context_recall import FuzzyInContextRecall
from mlxhog.mad.tasks.in_context_recall import InContextRecall, NoisyInContextRecall
from mlxhog.mad.tasks.memorization import Memorization
from mlxhog.mad.tasks.selective_copying import SelectiveCopying
from mlxhog.mad.tasks.task import Settings


def check(data: Dataset) -> Findings:
    """Apply every invariant of the task, and the bounds of what is random.

    Raises:
        DataError: `meta` names no task, or settings that the task cannot have.
    """
    settings = _settings(data.meta)
    result = Findings()
    strict = str(data.meta.get("generator", "")).startswith("mlxhog")
    for split, (x, y) in data.splits().items():
        if isinstance(settings, InContextRecall):
            recall.check(result, settings, split, x, y)
        elif isinstance(settings, FuzzyInContextRecall):
            ours = strict and not settings.fuzzy_compat
            fuzzy.check(result, settings, split, x, y, strict=ours)
        elif isinstance(settings, SelectiveCopying):
            copying.check_copying(result, settings, split, x, y)
        elif isinstance(settings, Compression):
            copying.check_compression(result, settings, split, x, y)
    if isinstance(settings, Memorization):
        copying.check_memorization(result, settings, data)
    findings.check_duplicates(result, data, _chance_of_equal_rows(settings))
    return result


def _settings(meta: Mapping[str, Any]) -> Settings:
    """Read the settings of a file; those of other tasks stand in it, too."""
    try:
        cls = find(str(meta["task"])).settings
        if issubclass(cls, InContextRecall) and meta.get("noise_vocab_size"):
            cls = NoisyInContextRecall  # as the reference counts it
        values = {}
        for name, spec in options(cls).items():
            keys = [key for key in (name, *spec.aliases) if key in meta]
            if keys and not name.endswith("_rows"):
                values[name] = meta[keys[0]]
        return cls(**values)
    except KeyError:
        raise DataError("meta names no task; the key 'task' is missing") from None
    except ConfigError as error:
        raise DataError(f"meta: {error}") from error


def _chance_of_equal_rows(settings: Settings) -> float:
    if isinstance(settings, InContextRecall):
        return recall.chance_of_equal_rows(settings)
    if isinstance(settings, FuzzyInContextRecall):
        return fuzzy.chance_of_equal_rows(settings)
    if isinstance(settings, SelectiveCopying):
        return copying.equal_copying_rows(settings)
    if isinstance(settings, Compression):
        return copying.equal_compression_rows(settings)
    assert isinstance(settings, Memorization)
    return copying.equal_memorization_rows(settings)


__all__ = ["Failure", "Findings", "check"]
