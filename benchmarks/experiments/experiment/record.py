"""The frame of every experiment: its scale, its verdicts, and the files of its result.

An experiment asks whether a claim of a document holds here. Its script has three parts:

    ABOUT = Experiment(name="staleness", title="...", source="document 001, Test 4", ...)
    def result(scale: Scale) -> Outcome: ...          measure, and say what it means for the claims
    def draw(outcome: Outcome) -> Figure: ...           one figure
    if __name__ == "__main__":
        raise SystemExit(run(ABOUT, result, draw))

    python benchmarks/experiments/NAME.py           one seed, minutes (--quick, the default)
    python benchmarks/experiments/NAME.py --full    three seeds, the documents' own sizes
    python benchmarks/experiments/NAME.py --tiny    does it run at all: its numbers mean nothing
    python benchmarks/experiments/NAME.py --tune    where offered: search settings and record them

It writes `NAME.json` and `NAME.png` into `--out` (benchmarks/results), prints the same as one JSON
line last, and ends with 0 (limits met), 1 (missed) or 3 (not measurable on a busy machine).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from harness.claims import EXIT_CODES, Claim, Sample, verdict
from harness.machine import (
    BUSY_SHARE,
    ROOT,
    LoadWatch,
    commit,
    cores,
    machine,
    own_cpu_s,
    versions,
    wait_until_quiet,
)

from experiment.figures import Figure
from mlxhog.files import plain_json
from mlxhog.files.durable import replace_file
from mlxhog.mad.scores import half_width
from mlxhog.report.charts import png

__all__ = [
    "FAILS",
    "HOLDS",
    "PARTLY",
    "UNTOLD",
    "Claim",
    "Compared",
    "Difference",
    "Experiment",
    "Outcome",
    "Sample",
    "Scale",
    "cores",
    "run",
    "say",
    "together",
    "told",
]

RESULTS = ROOT / "benchmarks" / "results"
HOLDS, PARTLY, FAILS, UNTOLD = "holds", "holds in part", "does not hold", "cannot be told here"
TINY, QUICK, FULL = "tiny", "quick", "full"


@dataclass(frozen=True)
class Experiment:
    """What is asked, and where the answer goes.

    Attributes:
        name: of the script, its files and its row in RESULTS.md.
        title: one line.
        source: the document and the place in it.
        about: what is done, two or three plain sentences for a reader of RESULTS.md.
        packages: whose versions are recorded, beside mlxhog and numpy.
    """

    name: str
    title: str
    source: str
    about: str
    packages: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scale:
    """How much is asked for.

    Attributes:
        mode: "tiny", "quick" or "full".
        out: folder of the results, where another experiment's may lie.
    """

    mode: str
    out: Path = RESULTS

    @property
    def quick(self) -> bool:
        """Whether minutes have to do; true of tiny as well."""
        return self.mode != FULL

    @property
    def seeds(self) -> tuple[int, ...]:
        """One seed, or three."""
        return (1, 2, 3) if self.mode == FULL else (1,)

    def pick(self, *, tiny: Any, quick: Any, full: Any) -> Any:
        """Return the one of three values that is for this mode."""
        return {TINY: tiny, QUICK: quick, FULL: full}[self.mode]


@dataclass(frozen=True)
class Compared:
    """A document's claim beside what was measured.

    Attributes:
        claim: in the document's words.
        measured: in ours, with the numbers.
        verdict: `HOLDS`, `PARTLY`, `FAILS` or `UNTOLD`; `--tiny` turns it into `UNTOLD`.
        timing: whether others' load would spoil it; a busy machine turns it into `UNTOLD`.
    """

    claim: str
    measured: str
    verdict: str
    timing: bool = True


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
    """

    compared: list[Compared]
    table: list[dict[str, Any]]
    claims: list[Claim] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] | None = None


# -- verdicts from intervals over seeds ------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """A mean over seeds, and half of its 95 % interval; None with one seed."""

    mean: float
    half: float | None

    @classmethod
    def of(cls, values: Iterable[float]) -> Difference:
        """Of one value for each seed."""
        values = list(values)
        return cls(fmean(values), half_width(values))

    def below(self, limit: float = 0.0) -> str:
        """Whether it is below a limit: `HOLDS`, `FAILS`, or `UNTOLD` where the interval has it."""
        if self.half is None:
            return UNTOLD
        if self.mean + self.half < limit:
            return HOLDS
        return FAILS if self.mean - self.half > limit else UNTOLD

    def __str__(self) -> str:
        """The mean with its interval."""
        return f"{self.mean:+.3f}" + ("" if self.half is None else f" ± {self.half:.3f}")


def told(holds: bool) -> str:
    """`HOLDS` or `FAILS`."""
    return HOLDS if holds else FAILS


def together(verdicts: Sequence[str]) -> str:
    """One verdict of several: `PARTLY` where some hold, `FAILS` where some do not and none does."""
    if len(set(verdicts)) == 1:
        return verdicts[0]
    return PARTLY if HOLDS in verdicts else FAILS


def say(text: str) -> None:
    """Print one line of progress at once."""
    print(text, flush=True)


# -- one run of a script --------------------------------------------------------------------------


def run(
    about: Experiment,
    result: Callable[[Scale], Outcome],
    draw: Callable[[Outcome], Figure],
    *,
    tune: Callable[[], None] | None = None,
    arguments: Sequence[str] | None = None,
) -> int:
    """Read the flags, measure, write JSON and figure, and return the exit code.

    Args:
        about: the experiment.
        result: measures; prints its progress with `say`.
        draw: makes the figure from the outcome.
        tune: searches settings and records them (`experiment.searches`); offers `--tune`.
        arguments: of the command; those of this process by default.
    """
    parser = argparse.ArgumentParser(description=f"{about.title} ({about.source}).\n{about.about}")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--quick", action="store_true", help="one seed, minutes (default)")
    mode.add_argument("--full", action="store_true", help="three seeds, the documents' sizes")
    mode.add_argument("--tiny", action="store_true", help="does it run? its numbers mean nothing")
    if tune is not None:
        mode.add_argument("--tune", action="store_true", help="search settings and record them")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of NAME.json, NAME.png")
    chosen = parser.parse_args(arguments)
    if tune is not None and chosen.tune:
        tune()
        return 0
    scale = Scale(FULL if chosen.full else TINY if chosen.tiny else QUICK, chosen.out)
    if scale.mode != TINY:
        wait_until_quiet(patience_s=10.0)
    watch, cpu, began = LoadWatch(), own_cpu_s(), time.monotonic()
    outcome = result(scale)
    seconds = time.monotonic() - began
    document = _document(about, scale, outcome, watch.stop(own_cpu_s() - cpu), seconds)
    chosen.out.mkdir(parents=True, exist_ok=True)
    document["figure"] = _write_figure(about, draw, outcome, chosen.out)
    replace_file(chosen.out / f"{about.name}.json", plain_json.dumps(document, indent=1) + b"\n")
    _print(document)
    return EXIT_CODES[document["verdict"]]


def _document(
    about: Experiment, scale: Scale, outcome: Outcome, others_load: float, seconds: float
) -> dict[str, Any]:
    busy, tiny = others_load > BUSY_SHARE, scale.mode == TINY
    return {
        "experiment": about.name,
        "title": about.title,
        "source": about.source,
        "about": about.about,
        "mode": scale.mode,
        "command": f"python benchmarks/experiments/{about.name}.py --{scale.mode}",
        "verdict": verdict(outcome.claims, others_load=others_load),
        "compared": [
            asdict(replace(one, verdict=UNTOLD) if tiny or (busy and one.timing) else one)
            for one in outcome.compared
        ],
        "table": outcome.table,
        "claims": [{**asdict(claim), "met": claim.met} for claim in outcome.claims],
        "settings": outcome.settings,
        "results": _as_objects(outcome.results),
        "seeds": scale.seeds if outcome.seeds is None else outcome.seeds,
        "seconds": round(seconds, 1),
        "others_load": round(others_load, 3),
        "busy": busy,
        "machine": machine(),
        "versions": versions("mlxhog", "numpy", *about.packages),
        "commit": commit(),
    }


def _as_objects(value: Any) -> Any:
    """Samples as objects, at any depth."""
    if isinstance(value, Sample):
        return asdict(value)
    if isinstance(value, Mapping):
        return {key: _as_objects(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_as_objects(item) for item in value]
    return value


def _write_figure(
    about: Experiment, draw: Callable[[Outcome], Figure], outcome: Outcome, out: Path
) -> str | None:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        say("no figure: it needs matplotlib, python -m pip install matplotlib")
        return None
    name = f"{about.name}.png"
    replace_file(out / name, png(draw(outcome)))
    return name


def _print(document: Mapping[str, Any]) -> None:
    say("")
    for row in document["table"]:
        say("  " + "  ".join(f"{name} {_cell(value)}" for name, value in row.items()))
    for one in document["compared"]:
        say(f"\n  claim     {one['claim']}\n  measured  {one['measured']}\n  {one['verdict']}")
    for claim in document["claims"]:
        mark = "met   " if claim["met"] else "MISSED"
        limit = f"{claim['relation']} {claim['limit']:g}"
        say(f"  {mark}  {claim['name']}: {claim['value']:.4g} (wanted {limit})")
    if document["busy"]:
        say(f"  busy machine: others used {document['others_load']:.2f} cores meanwhile")
    print(plain_json.dumps(document).decode(), flush=True)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
