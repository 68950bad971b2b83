"""Whether steps take longer the longer a run lasts, as on a chip that has grown hot.

Source of the rule: spec apple.md 12, number 14.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from mlxhog.doctor.checks import Check, Result, absent, check

LIMIT: Final = 0.2
_FEWEST: Final = 20  # steps in the first half whose time means something
_NAME: Final = "step time"
_EXPECTED: Final = f"second half of a run less than {LIMIT:.0%} slower than the first"


class Sample(NamedTuple):
    """Where a run was at some time, all its workers at work since the first sample."""

    elapsed_s: float
    steps: int


def judge(samples: Sequence[Sample]) -> Check:
    """Compare the time from step to step in the first half of a run with that in the second.

    Args:
        samples: in the order of time.
    """
    if len(samples) < 3:
        return absent(_NAME, f"{len(samples)} samples are too few to tell", _EXPECTED)
    first, last = samples[0], samples[-1]
    half = (first.elapsed_s + last.elapsed_s) / 2
    middle = min(samples[1:-1], key=lambda sample: abs(sample.elapsed_s - half))
    steps = middle.steps - first.steps
    if steps < _FEWEST:
        return absent(_NAME, f"{steps} steps are too few to tell", _EXPECTED)
    early = (middle.elapsed_s - first.elapsed_s) / steps
    late = (last.elapsed_s - middle.elapsed_s) / max(last.steps - middle.steps, 1)
    return check(
        _NAME,
        late < (1 + LIMIT) * early,
        f"{early * 1e3:.1f} ms, then {late * 1e3:.1f} ms ({late / early - 1:+.0%})",
        _EXPECTED,
        "the chip is hot or busy: see `pmset -g therm` on a Mac; long runs will be slower",
        otherwise=Result.WARN,
    )
