"""What experiments add to the frame of benchmarks: scale, verdicts, and the files of a result.

An experiment asks whether a claim of a document holds here. Its script has three parts:

    ABOUT = Experiment(name="staleness", title="...", source="document 001, Test 4", ...)
    def result(scale: Scale) -> Outcome: ...          measure, and say what it means for the claims
    def draw(outcome: Outcome) -> Figure: ...           one figure
    if __name__ == "__main__":
        raise SystemExit(run(ABOUT, result, draw))

    python benchmarks/experiments/NAME.py           minutes (--quick, the default)
    python benchmarks/experiments/NAME.py --full    more seeds, the documents' own sizes
    python benchmarks/experiments/NAME.py --tiny    does it run at all: its numbers mean nothing
    python benchmarks/experiments/NAME.py --tune    where offered: search settings and record them
    python benchmarks/experiments/NAME.py --draw    the figure of the recorded result

It writes `NAME.json` into `--out` (benchmarks/results/MODE), prints the same as JSON last, and ends
with the exit code of `harness.claims`. `--draw` reads `NAME.json` (of --full, or in `--out`) and
writes `NAME.png` beside it. Estimates decide on claims of documents:

    faster = Ratio.of(times["serial"], times["hogwild"])             pairs, by seed
    Compared.of("8-10x speedup", Claim.of("serial / hogwild, seconds", faster, ">=", 8.0))

All such claims of a script, its own limits and its documents', are corrected together.
"""

from __future__ import annotations

import json
import math
import textwrap
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness.claims import (
    FULL,
    MET,
    MISSED,
    MODES,
    NOT_MEASURABLE,
    QUICK,
    TINY,
    Claim,
    Findings,
    Twin,
    corrected,
    document,
    finish,
    flags,
    mode_of,
    show,
    write_rows,
)
from harness.machine import BUSY_SHARE, ROOT, LoadWatch, wait_until_quiet

from mlxhog.base.durable import replace_file
from mlxhog.report.charts import png

RESULTS = ROOT / "benchmarks" / "results"
HOLDS, PARTLY, FAILS, UNTOLD = "holds", "holds in part", "does not hold", "cannot be told here"
DESCRIBED = "follows from the definitions"


@dataclass(frozen=True)
class Experiment:
    """What is asked, and where the answer goes.

    Attributes:
        name: of the script, its files and its row in RESULTS.md.
        title: one line.
        source: the document and the place in it.
        about: what is done, two or three plain sentences for a reader of RESULTS.md.
        packages: whose versions are recorded, beside mlxhog and numpy.
        quick_seeds: number of seeds of `--quick`; below two nothing about a training can be told.
        full_seeds: number of seeds of `--full`.
        script: that has several experiments, of which the name chooses this one.
    """

    name: str
    title: str
    source: str
    about: str
    packages: tuple[str, ...] = ()
    quick_seeds: int = 3
    full_seeds: int = 5
    script: str = ""

    @property
    def command(self):
        """What a user types, but for the mode."""
        words = f"{self.script} {self.name}" if self.script else f"{self.name}.py"
        return f"python benchmarks/experiments/{words}"


@dataclass(frozen=True)
class Scale:
    """How much is asked for.

    Attributes:
        mode: "tiny", "quick" or "full".
        out: folder of the results, where another experiment's may lie.
        seeds: of the trainings.
    """

    mode: str
    out: Path = RESULTS
    seeds: tuple[int, ...] = (1,)

    @property
    def quick(self):
        """Whether minutes have to do; true of tiny as well."""
        return self.mode != FULL

    @classmethod
    def of(cls, about, mode, out=RESULTS):
        """Return the scale of an experiment's mode, with its seeds."""
        count = {TINY: 1, QUICK: about.quick_seeds, FULL: about.full_seeds}[mode]
        return cls(mode, out, tuple(range(1, count + 1)))

    def pick(self, *, tiny, quick, full):
        """Return the one of three values that is for this mode."""
        return {TINY: tiny, QUICK: quick, FULL: full}[self.mode]


def other_seed(seed):
    """The seed of an arm's second run (A/A) where runs of one seed repeat bit for bit."""
    return seed + 1000


@dataclass(frozen=True)
class Compared:
    """A document's claim beside what was measured.

    Attributes:
        claim: in the document's words.
        measured: in ours, with the numbers.
        verdict: `HOLDS`, `PARTLY`, `FAILS`, `UNTOLD`, or `DESCRIBED` where no measurement could
            end otherwise; `--tiny` turns it into `UNTOLD`.
        timing: whether others' load would spoil it; a busy machine turns it into `UNTOLD`.
        rests_on: the estimates beside their limits that decide it.
        whole: whether one missed limit refutes it, as a single rival that is ahead refutes "best".
    """

    claim: str
    measured: str
    verdict: str
    timing: bool = True
    rests_on: tuple[Claim, ...] = ()
    whole: bool = False

    @classmethod
    def of(cls, claim, *rests_on, measured="", whole=False):
        """Compare a claim directly with estimates; they decide the verdict.

        Args:
            claim: in the document's words.
            rests_on: the claim in numbers; several hold together.
            measured: in our words; by default names and values of the numbers.
            whole: whether one missed limit refutes it.
        """
        text = measured or "; ".join(f"{one.name}: {one.measured}" for one in rests_on)
        timing = any(one.timing for one in rests_on)
        return cls(claim, text, _of_claims(rests_on, whole), timing, rests_on, whole)

    @classmethod
    def described(cls, claim, reason):
        """State what follows from definitions: a measurement of it could not end otherwise."""
        return cls(claim, reason, DESCRIBED, timing=False)

    def to_json(self):
        """As it stands in a result."""
        own = {name: getattr(self, name) for name in ("claim", "measured", "verdict", "timing")}
        return {**own, "rests_on": [one.to_json() for one in self.rests_on]}


@dataclass
class Outcome:
    """What an experiment found.

    Attributes:
        compared: every claim of the document that it is about.
        table: rows of a table, each by the name of its column; a float is shown with 4 digits.
        claims: numbers with limits of our own (`harness.claims.Claim`); they decide the exit code.
        settings: sizes, step sizes, budgets: what a second person needs to repeat it.
        results: every other number, `Sample`s included.
        seeds: of the measurements, where they are not the scale's.
        twins: A/A arms (`harness.interleaved.with_twin`).
        others_load: as that of `Findings`, where trainings were run before (`experiment.runs`).
    """

    compared: list[Compared]
    table: list[dict[str, Any]]
    claims: list[Claim] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] | None = None
    twins: list[Twin] = field(default_factory=list)
    others_load: float | None = None


# -- verdicts --------------------------------------------------------------------------------------


def _of_claims(claims, whole):
    """`UNTOLD` if one of several cannot be told and none is missed."""
    ends = {claim.ended for claim in claims}
    if ends == {MET}:
        return HOLDS
    if MISSED not in ends:
        return UNTOLD
    return PARTLY if MET in ends and not whole else FAILS


def together_corrected(outcome):
    """Correct the p-values of all numbers that decide a verdict, and decide anew."""
    deciding = [claim for one in outcome.compared for claim in one.rests_on]
    claims = list(dict.fromkeys([*outcome.claims, *deciding]))
    of_page = dict(zip(claims, corrected(claims), strict=True))
    compared = []
    for one in outcome.compared:
        rests_on = tuple(of_page[claim] for claim in one.rests_on)
        decided = _of_claims(rests_on, one.whole) if rests_on else one.verdict
        compared.append(replace(one, rests_on=rests_on, verdict=decided))
    own = [of_page[claim] for claim in outcome.claims]
    return replace(outcome, claims=own, compared=compared)


def say(text):
    """Print one line of progress at once."""
    print(text, flush=True)


# -- one run of a script --------------------------------------------------------------------------


def run(about, result, draw, *, tune=None, arguments=None):
    """Read the flags, measure, write the result, and return the exit code.

    Args:
        about: the experiment.
        result: measures; prints its progress with `say`.
        draw: makes the figure from the table, the settings and the results of the written file.
        tune: searches settings and records them (`experiment.searches`); offers `--tune`.
        arguments: of the command; those of this process by default.
    """
    modes = {**MODES, "draw": "the figure of the recorded result"}
    if tune is not None:
        modes["tune"] = "search settings and record them"
    text = f"{about.title} ({about.source}). {about.about}"
    parser = flags(textwrap.fill(text, 100), **modes)
    parser.add_argument("--out", type=Path, help="folder of NAME.json and NAME.png")
    chosen = parser.parse_args(arguments)
    if tune is not None and chosen.tune:
        tune()
        return 0
    if chosen.draw:
        return _draw(about, draw, chosen.out or RESULTS / FULL)
    mode = mode_of(chosen)
    scale = Scale.of(about, mode, chosen.out or RESULTS / mode)
    if scale.mode != TINY:
        wait_until_quiet(patience_s=10.0)
    watch, began = LoadWatch(), time.monotonic()
    outcome = together_corrected(result(scale))
    seconds = time.monotonic() - began
    others_load = watch.stop() if outcome.others_load is None else outcome.others_load
    written = document_of(about, scale, outcome, others_load, seconds)
    scale.out.mkdir(parents=True, exist_ok=True)
    write_rows(scale.out / f"{about.name}.json", written)
    _show(outcome, written)
    return finish(written)


def document_of(about, scale, outcome, others_load, seconds):
    """Return everything that is known of a result."""
    busy, tiny = others_load > BUSY_SHARE, scale.mode == TINY
    numbers = {
        "title": about.title,
        "source": about.source,
        "about": about.about,
        "mode": scale.mode,
        "command": f"{about.command} --{scale.mode}",
        "compared": [
            (
                replace(one, verdict=UNTOLD)
                if one.verdict != DESCRIBED and (tiny or (busy and one.timing))
                else one
            ).to_json()
            for one in outcome.compared
        ],
        "table": outcome.table,
        "settings": outcome.settings,
        "results": outcome.results,
        "seconds": round(seconds, 1),
        "busy": busy,
    }
    seeds = scale.seeds if outcome.seeds is None else outcome.seeds
    findings = Findings(outcome.claims, numbers, outcome.twins, seeds)
    written = {"experiment": about.name, **document(findings, others_load, about.packages)}
    spoilt = any(one.timing and one.verdict != DESCRIBED for one in outcome.compared)
    if busy and spoilt and not tiny and written["verdict"] != MISSED:
        written["verdict"] = NOT_MEASURABLE  # so that `all.py` runs it again
    return written


def _draw(about, draw, folder):
    path = folder / f"{about.name}.json"
    if not path.exists():
        raise SystemExit(
            f"{path} is missing, so there is no result to draw; run {about.command} --full, "
            "or name another folder by --out"
        )
    known = _with_nan(json.loads(path.read_text()))
    outcome = Outcome([], known["table"], settings=known["settings"], results=known["results"])
    replace_file(path.with_suffix(".png"), png(draw(outcome)))
    say(str(path.with_suffix(".png")))
    return 0


def _with_nan(value):
    """Return a value of JSON with NaN for null: numbers that are not finite are written as null."""
    if isinstance(value, dict):
        return {name: _with_nan(one) for name, one in value.items()}
    if isinstance(value, list):
        return list(map(_with_nan, value))
    return math.nan if value is None else value


def _show(outcome, written):
    say("")
    for row in outcome.table:
        say("  " + "  ".join(f"{name} {_cell(value)}" for name, value in row.items()))
    for one in written["compared"]:
        say(f"\n  claim     {one['claim']}\n  measured  {one['measured']}\n  {one['verdict']}")
    show(Findings(outcome.claims, twins=outcome.twins), written["others_load"])


def _cell(value):
    return f"{value:.4g}" if isinstance(value, float) else str(value)
