"""What a benchmark claims, beside limits and documents: estimates, verdicts, A/A arms.

A limit is compared with an estimate (`harness.estimates`), which brings its interval, its n and its
p-value; the p-values of all claims of a script are corrected together (`corrected`):

    times = take_turns(seeds, ("auto", "sync"), seconds)
    findings.at_least("sync / auto", Ratio.of(times["sync"], times["auto"]), 1.1)

Beside limits of our own stand those of documents (`Findings.document`), which decide no exit code;
`claims.yaml` has the sentences whose verdicts they are. An A/A arm is an arm that runs twice; a
script that tells it from itself gives no verdict `met`:

    times, again = with_control(seeds, ("auto", "sync"), seconds, control="sync")
    findings.same("sync", times["sync"], again)
"""

import math
import os
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from harness.estimates import ERROR, Estimate, Mean, Ratio, Share, holm
from harness.machine import BUSY_SHARE, smallest

SUPPORTED, REFUTED, NO_LIMIT = "supported", "refuted", "no_limit"
NOT_MEASURED, INCONCLUSIVE = "not_measured", "inconclusive"
SEVERITY = (REFUTED, NOT_MEASURED, INCONCLUSIVE, SUPPORTED, NO_LIMIT)
WORDS = {
    SUPPORTED: "supported",
    REFUTED: "refuted",
    INCONCLUSIVE: "inconclusive",
    NOT_MEASURED: "not measured",
    NO_LIMIT: "no limit of our own",
}
"""How verdicts are printed."""
EXIT_CODES = {SUPPORTED: 0, NO_LIMIT: 0, REFUTED: 1, NOT_MEASURED: 3, INCONCLUSIVE: 3}


# -- claims ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """One number and the limit it has to keep.

    Attributes:
        name: what was measured, with its unit.
        value: the measurement.
        relation: "<=", ">=" or "=="; "within" is from `least` to `limit`.
        limit: what `value` must be in relation to.
        timing: False for a claim that holds on a busy machine as well (a count).
        interval: where the value lies by its repeats; None for a number without one.
        n: how many measurements, or pairs of them, it rests on.
        p: two-sided p-value of the value being at its limit; None for a number without one.
        least: the lower limit of "within".
        p_of_page: `p`, corrected for the number of claims beside it (`corrected`).
        disturbed: whether others spoilt it, so that it has no verdict (`Findings.judged`).
        document: whether the limit is that of a document, so that it decides no exit code.
    """

    name: str
    value: float
    relation: str
    limit: float
    timing: bool = True
    interval: tuple[float, float] | None = None
    n: int | None = None
    p: float | None = None
    least: float | None = None
    p_of_page: float | None = None
    disturbed: bool = False
    document: bool = False

    @classmethod
    def of(cls, name, estimate, relation, limit, *, least=None, timing=True):
        """Claim what an estimate is.

        Args:
            name: what was measured, with its unit.
            estimate: of it.
            relation: "<=", ">=", or "within" for two arms that should not differ by much.
            limit: of the estimate.
            least: the lower limit of "within".
            timing: whether other load can spoil it.
        """
        # To lie within limits, or outside them, a value has to differ from both.
        limits = [limit] if least is None else [least, limit]
        p = max(map(estimate.p, limits))
        interval = (estimate.low, estimate.high)
        return cls(name, estimate.value, relation, limit, timing, interval, estimate.n, p, least)

    @property
    def ended(self):
        """Met, missed, untold where its interval has the limit or is missing, or disturbed."""
        if self.disturbed:
            return NOT_MEASURED
        ends = self.interval or (self.value,)
        p = self.p if self.p_of_page is None else self.p_of_page
        if self.interval and any(map(math.isnan, ends)):
            return INCONCLUSIVE
        if p is not None and not p <= ERROR and ends[0] < ends[-1]:
            return INCONCLUSIVE
        if all(map(self._keeps, ends)):
            return SUPPORTED
        return INCONCLUSIVE if any(map(self._keeps, ends)) else REFUTED

    @property
    def measured(self):
        """The value with its interval and n; of a count, how often its trials may fail."""
        if self.interval is None:
            if not self.n or self.relation != "==" or math.isnan(self.value):
                return f"{self.value:.4g}" + " (no interval)" * (self.relation != "==")
            failures = Share.of(round(abs(self.value - self.limit)), self.n)
            rate = f"failures {failures.low:.2g} to {failures.high:.2g}"
            return f"{self.value:.4g} (n {self.n:,}, {rate})"
        if any(map(math.isnan, self.interval)):
            return f"{self.value:.4g} (n {self.n}, no interval)"
        low, high = self.interval
        n = "" if self.n is None else f", n {self.n:,}"
        return f"{self.value:.4g} ({low:.4g} to {high:.4g}{n})"

    @property
    def wanted(self):
        """The limit with its relation."""
        if self.least is not None:
            return f"{self.least:g} to {self.limit:g}"
        return f"{self.relation} {self.limit:g}"

    def to_json(self):
        """As it stands in a result."""
        return {**asdict(self), "ended": self.ended}

    def _keeps(self, value):
        if self.least is not None:
            return self.least <= value <= self.limit
        if self.relation == "<=":
            return value <= self.limit
        return value >= self.limit if self.relation == ">=" else value == self.limit


def corrected(claims):
    """Correct the p-values of a page's claims for their number (`harness.estimates.holm`), once."""
    if any(claim.p_of_page is not None for claim in claims):
        return list(claims)
    known = [math.nan if claim.p is None else claim.p for claim in claims]
    return [
        claim if claim.p is None else replace(claim, p_of_page=p)
        for claim, p in zip(claims, holm(known), strict=True)
    ]


@dataclass(frozen=True)
class Control:
    """An arm that ran twice in pairs (A/A), and whether the harness told it from itself.

    Attributes:
        name: of the arm.
        estimate: ratio of the two, or their mean difference where a value is not above 0.
        p: that the true ratio is 1, or the difference 0.
    """

    name: str
    estimate: Estimate
    p: float

    @property
    def kind(self):
        """Which of the two the estimate is."""
        return "ratio" if isinstance(self.estimate, Ratio) else "difference"

    @classmethod
    def of(cls, name, own, again):
        """Compare an arm with itself."""
        if all(value > 0 for value in (*own, *again)):
            ratio = Ratio.of(own, again)
            return cls(name, ratio, ratio.p(1.0))
        difference = Mean.of_differences(own, again)
        return cls(name, difference, difference.p(0.0))


def false_verdicts(controls):
    """Return how many A/A arms differ from themselves; corrected for their number."""
    return sum(p <= ERROR for p in holm([control.p for control in controls]))


@dataclass
class Findings:
    """What a script adds to.

    Attributes:
        claims: numbers with limits of our own, which decide the exit code, and of documents.
        results: further numbers for the JSON line; estimates become objects.
        controls: A/A arms.
        seeds: of the measurements, where they have any.
        others_load: cores' worth of CPU that others used while it counted; None is all the time.
    """

    claims: list[Claim] = field(default_factory=list)
    results: dict[str, Any] = field(default_factory=dict)
    controls: list[Control] = field(default_factory=list)
    seeds: tuple[int, ...] = ()
    others_load: float | None = None

    def at_least(self, name, value, limit, *, timing=True):
        """Claim a number that should be large; `timing=False` where other load cannot spoil it."""
        self._claim(name, value, ">=", limit, timing)

    def at_most(self, name, value, limit, *, timing=True):
        """Claim a number that should be small; `timing=False` where other load cannot spoil it."""
        self._claim(name, value, "<=", limit, timing)

    def within(self, name, value, least, limit, *, timing=True):
        """Claim that two arms hardly differ: the interval lies between two limits."""
        self.claims.append(Claim.of(name, value, "within", limit, least=least, timing=timing))

    def exact(self, name, value, expected, *, n=None, timing=False):
        """Claim a count; n is the number of trials, `timing` whether other load can spoil it."""
        self.claims.append(Claim(name, value, "==", expected, timing=timing, n=n))

    def document(self, *claims):
        """Add claims with the limits of documents; one of a name that there is stands for it."""
        known = {claim.name for claim in self.claims}
        new = {claim.name: replace(claim, document=True) for claim in claims}
        self.claims += [claim for name, claim in new.items() if name not in known]

    def same(self, name, own, again):
        """Add an A/A arm: what one arm measured, and what it measured again in the same pairs."""
        self.controls.append(Control.of(name, own, again))

    def table(self, rows):
        """Print rows, each by the names of its columns, and keep them."""
        print()
        rows = list(rows)
        for row in rows:
            cells = (f"{name} {_cell(value)}" for name, value in row.items())
            print("  " + "  ".join(cells), flush=True)
        self.results.setdefault("table", []).extend(rows)

    def _claim(self, name, value, relation, limit, timing):
        if isinstance(value, Estimate):
            self.claims.append(Claim.of(name, value, relation, limit, timing=timing))
        else:
            self.claims.append(Claim(name, value, relation, limit, timing))

    def judged(self, others_load):
        """The same, claims corrected for their number, and without a verdict where spoilt.

        Others' load spoils times; `--tiny` spoils whatever is an estimate, and decides counts only.
        """
        busy, tiny = others_load > BUSY_SHARE, smallest(True, False)

        def spoilt(claim):
            return (busy and claim.timing) or (tiny and claim.interval is not None)

        claims = [replace(one, disturbed=spoilt(one)) for one in corrected(self.claims)]
        return replace(self, claims=claims)

    def to_json(self):
        """Verdict, claims and A/A arms of judged findings."""
        ended, wrong = verdict(self.claims), false_verdicts(self.controls)
        if ended == SUPPORTED and wrong:
            ended = INCONCLUSIVE  # it tells equal arms apart, for an unknown cause
        comparisons = [
            {"name": one.name, "kind": one.kind, **one.estimate.to_json(), "p": one.p}
            for one in self.controls
        ]
        return {
            "verdict": ended, "claims": [claim.to_json() for claim in self.claims],
            "controls": {"comparisons": comparisons, "false_verdicts": wrong},
        }  # fmt: skip


def _cell(value):
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def counted(name, estimate, relation, limit, *, least=None):
    """A claim that no load spoils."""
    return Claim.of(name, estimate, relation, limit, least=least, timing=False)


def worst(verdicts):
    """The one of several verdicts that counts."""
    return min(verdicts, key=SEVERITY.index, default=SUPPORTED)


def verdict(claims):
    """Missed if a judged claim of ours is; else not measurable if one was spoilt; else the worst.

    Without one, and with `--tiny`, it is `NO_LIMIT`: there is no limit of our own.
    """
    ours = [claim.ended for claim in claims if not claim.document]
    return worst(ours) if ours and not smallest(True, False) else NO_LIMIT


def show(findings, others_load):
    """Print judged claims, the A/A arms, and whether others kept the machine busy."""
    for claim in findings.claims:
        ended = WORDS[claim.ended]
        ended = ended.upper() if claim.ended == REFUTED else ended
        who = "a document says" if claim.document else "wanted"
        print(f"  {ended:14}  {claim.name}: {claim.measured} ({who} {claim.wanted})")
    if not findings.claims:
        print(f"  {WORDS[NO_LIMIT]}")
    if controls := findings.controls:
        values = "; ".join(
            f"{control.name} {control.estimate.spelt('.3f')}" for control in controls
        )
        print(f"  A/A: {false_verdicts(controls)} false verdicts in {len(controls)} ({values})")
    if others_load > BUSY_SHARE and any(claim.timing for claim in findings.claims):
        print(
            f"  busy machine: others used {others_load:.2f} cores meanwhile (load average "
            f"{os.getloadavg()[0]:.2f}); timings are not measurable, stop them and run this again"
        )
