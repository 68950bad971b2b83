"""Verdicts of statements about recorded results: one rule for every row of `claims.yaml`.

A row names quantities of one result and what is expected of each: `> 1`, `< 0`, `>= .98`, `== 0`,
`.95 to 1.05`, or `limits`, which are those of the script, set before it ran.

- A quantity with an interval is supported or refuted if its 95 % interval lies on one side of the
  bound and its p-value, corrected for all comparisons of the result that one page judges (`Family`,
  Holm 1979), is at most .05. Where equal arms of the script differ (A/A), the bound of a ratio has
  to be missed by more than they do.
- What is no timing is compared as it is, without an interval; a timing without one decides nothing.
- A row is supported if all its quantities are, refuted if one is refuted, else inconclusive.
- A row without an expectation has numbers and no verdict.
"""

import math
from dataclasses import dataclass
from functools import cached_property

from harness.claims import INCONCLUSIVE, NOT_MEASURED, REFUTED, SUPPORTED, worst
from harness.estimates import ERROR, holm, pairs_needed
from scipy import stats

MAX_PLANNED = 4
"""Comparisons that a page may judge of one script."""

LIMITS = "limits"


@dataclass(frozen=True)
class Expected:
    """Where the true value should lie; ends that are excluded count as inside for an interval.

    Attributes:
        low: lower end, or minus infinity.
        high: upper end, or infinity.
    """

    low: float
    high: float

    @classmethod
    def of(cls, text, quantity):
        """Read an expectation, or take the limit that the script of a quantity has."""
        if text == LIMITS:
            relation, limit = quantity["relation"], quantity["limit"]
            within = relation == "within"
            text = f"{quantity['least']} to {limit}" if within else f"{relation} {limit}"
        first, *others = str(text).split()
        if others[0] == "to":
            return cls(float(first), float(others[1]))
        bound = float(others[0])
        return {
            ">": cls(bound, math.inf), ">=": cls(bound, math.inf), "==": cls(bound, bound),
            "<": cls(-math.inf, bound), "<=": cls(-math.inf, bound),
        }[first]  # fmt: skip

    @property
    def bounds(self):
        """The ends that are numbers."""
        return [end for end in dict.fromkeys((self.low, self.high)) if math.isfinite(end)]

    def widened(self, spread):
        """Both ends moved: inward for who wants support, and outward for who wants refutation."""
        inner = Expected(self.low * spread, self.high / spread)
        return inner, Expected(self.low / spread, self.high * spread)

    def __contains__(self, value):
        """Whether a value lies inside."""
        return self.low <= value <= self.high

    def margin(self, value):
        """How far inside a value lies; below 0 outside."""
        return min(value - self.low, self.high - value)

    def __str__(self):
        """As a table shows it."""
        if self.low == self.high:
            return f"== {self.low:g}"
        if math.inf in (-self.low, self.high):
            return f"<= {self.high:g}" if self.low == -math.inf else f">= {self.low:g}"
        return f"{self.low:g} to {self.high:g}"


def interval_of(quantity):
    """Both ends of a recorded interval; None without one."""
    ends = quantity.get("interval") or (None, None)
    return None if None in ends else tuple(ends)


def distance_of(quantity, bound):
    """How far a value is from a bound, and its standard error; NaN where its repeats say nothing.

    The interval says on which scale it was computed: ratios have it in logarithms.
    """
    (low, high), value, n = interval_of(quantity), quantity["value"], quantity.get("n")
    if n is None or n < 2 or low >= high:
        return math.nan, math.nan
    scales = [(low, value, high, bound)]
    if low > 0 and bound > 0:
        scales.append(tuple(map(math.log, scales[0])))
    low, value, high, bound = min(scales, key=lambda s: abs(s[0] + s[2] - 2 * s[1]) / (s[2] - s[0]))
    return abs(value - bound), (high - low) / 2 / float(stats.t.ppf(1 - ERROR / 2, n - 1))


def p_value(quantity, bound):
    """Two-sided p-value of a true value at a bound: as recorded, or by Student's t."""
    if quantity.get("p") is not None and bound == quantity["limit"] and not quantity.get("least"):
        return quantity["p"]
    distance, error = distance_of(quantity, bound)
    return float(2 * stats.t.sf(distance / error, (quantity.get("n") or 1) - 1))


def control_ratios(result):
    """The A/A arms whose estimate is a ratio; not a difference, and not without a value.

    Earlier results do not say which it is, but the interval of a ratio is above 0.
    """
    every = result.get("controls", {"comparisons": []})["comparisons"]
    return [
        one for one in every
        if one.get("kind", "ratio") == "ratio"
        and (one["value"] or 0) > 0 and (one.get("low") or 1) > 0
    ]  # fmt: skip


def spread_of(result):
    """By which factor equal arms differ at most; 1 unless the script tells them from each other."""
    if not result.get("controls", {"false_verdicts": 0})["false_verdicts"]:
        return 1.0
    ratios = [one["value"] for one in control_ratios(result)]
    return max((max(ratio, 1 / ratio) for ratio in ratios), default=1.0)


class Family:
    """The comparisons that a page plans of one script, and their verdicts."""

    def __init__(self, result, rows):
        """Collect what the rows of a page expect of a result."""
        self.spread = spread_of(result)
        self._planned = {}  # name, expectation -> quantity; what has no interval is no comparison
        for row in rows:
            for one in named(result, row):
                if "expected" in row and interval_of(one):
                    self._planned[one["name"], Expected.of(row["expected"], one)] = one

    @cached_property
    def corrected(self):
        """(Name, bound) -> p-value, corrected for the number of comparisons."""
        keys = {(name, bound): one for (name, expected), one in self._planned.items()
                for bound in expected.bounds}  # fmt: skip
        known = {key: p_value(one, key[1]) for key, one in keys.items()}
        return dict(zip(known, holm(list(known.values())), strict=True))

    @property
    def names(self):
        """Names of the planned comparisons; a question asked in both directions is one."""
        return {name for name, _ in self._planned}

    def plan(self):
        """The planned comparisons: recorded n, and the pairs that would decide them, or None."""
        rows = []
        for (name, expected), one in self._planned.items():
            distance, error = min(distance_of(one, bound) for bound in expected.bounds)
            deviation = error * math.sqrt(one["n"] or 1)
            pairs = pairs_needed(distance, deviation, comparisons=len(self.corrected))
            rows.append({"name": name, "expected": str(expected), "n": one["n"], "pairs": pairs})
        return rows

    def verdict(self, quantity, text):
        """What becomes of one quantity."""
        expected, value = Expected.of(text, quantity), quantity["value"]
        if value is None or math.isnan(value) or quantity.get("disturbed"):
            return NOT_MEASURED
        if (ends := interval_of(quantity)) is None:
            if quantity.get("timing", True) or quantity.get("interval"):
                return INCONCLUSIVE
            return SUPPORTED if value in expected else REFUTED
        inner, outer = expected.widened(self.spread if ends[0] > 0 else 1.0)
        p_values = [self.corrected[quantity["name"], bound] for bound in expected.bounds]
        if all(end in inner for end in ends) and max(p_values) <= ERROR:
            return SUPPORTED
        outside = ends[0] > outer.high or ends[1] < outer.low
        return REFUTED if outside and max(p_values) <= ERROR else INCONCLUSIVE

    def row(self, quantities, text):
        """Verdict of a row, from those of its quantities."""
        return worst([self.verdict(one, text) for one in quantities])


def named(result, row):
    """The quantities of a row: those of our own whose names begin as it says, or all of them."""
    every = result["claims"]
    starts = row.get("quantity")
    if starts is None:
        return [one for one in every if not one.get("document")]
    found = [one for start in starts for one in every if one["name"].startswith(start)]
    return list({one["name"]: one for one in found}.values())
