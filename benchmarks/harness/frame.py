"""The frame of every benchmark: its flags, its result, how it ends.

A script says what it measures, and ends with

    if __name__ == "__main__":
        run(__doc__, measure, packages=("torch",), quiet=True)

`measure(findings, chosen)` adds claims and numbers to the findings. The frame prints them, then one
JSON line, and writes it to `--output FOLDER` as NAME.json. The exit code is 0 (met, or no limit of
our own), 1 (missed) or 3 (not measurable on a machine that others keep busy, or not to be decided
by these repeats).

Every script has `--tiny`: the work is as small as it gets, no exit code judges it, and of the
claims counts alone get a verdict. It takes the sizes of `--quick`, but for those that it gives as
`smallest(tiny, usual)` or `chosen.pick`; the harness takes one turn and does not wait for a quiet
machine.
"""

import argparse
import datetime
import json
import os
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from harness.claims import EXIT_CODES, Findings, show
from harness.estimates import Estimate
from harness.machine import ROOT, measured_with, set_tiny, wait_until_quiet

from mlxhog.base import plain_json
from mlxhog.base.durable import replace_file
from mlxhog.base.load import LoadWatch

TINY, QUICK, FULL = "tiny", "quick", "full"
MODES = {QUICK: "minutes (default)", FULL: "more seeds, the documents' sizes"}
KEEPING = "--keep", "--rows", "--folder", "--studies"
"""Flags of scripts for what an interrupted run continues from."""
MAX_ROW = 500  # characters of a list or object that stands in one line of a file


def _one_sentence(kind, error, trace):
    """Say which package a script lacks; show any other error as Python does."""
    name = (getattr(error, "name", None) or "").partition(".")[0]
    ours = any((folder / name).exists() for folder in (ROOT, ROOT / "benchmarks"))
    if not isinstance(error, ModuleNotFoundError) or ours:
        return sys.__excepthook__(kind, error, trace)
    print(
        f"{name} is not installed, and {os.path.basename(sys.argv[0])} needs it: "
        "python -m pip install -c constraints.txt -e '.[test,peers]'",
        file=sys.stderr,
    )


if (ROOT / "benchmarks") in Path(sys.argv[0]).resolve().parents:
    sys.excepthook = _one_sentence  # here, because scripts import packages after this module


class Chosen(argparse.Namespace):
    """The flags of a run of a script.

    Attributes:
        mode: "tiny", "quick" or "full".
        quick: whether minutes have to do; true of tiny as well.
        seeds: of the trainings, where the script gives their number to `measured`.
    """

    def pick(self, *, tiny, quick, full):
        """Return the one of three values that is for this mode."""
        return {TINY: tiny, QUICK: quick, FULL: full}[self.mode]


class Parser(argparse.ArgumentParser):
    """The parser of a script's flags."""

    def parse_args(self, args=None, namespace=None):
        """Read the flags; the sizes of a script with --full are those of --quick by default."""
        chosen = super().parse_args(args, namespace or Chosen())
        set_tiny(chosen.tiny)
        has_full = "full" in vars(chosen)
        quick = has_full and not chosen.full or vars(chosen).get("quick", False)
        chosen.mode = TINY if chosen.tiny else QUICK if quick else FULL
        chosen.quick = chosen.mode != FULL
        return chosen


def flags(about, *, parts=(), **modes):
    """The flags of a script.

    Args:
        about: shown by `--help`; the docstring of the script.
        parts: names, of which `chosen.only` is some, or None.
        modes: flags of which at most one is set, and what each changes: `quick="two turns"`;
            `tiny` is always there.
    """
    parser = Parser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    group = parser.add_mutually_exclusive_group()
    for mode, change in {**modes, TINY: "does it run? its numbers mean nothing"}.items():
        group.add_argument(f"--{mode}", action="store_true", help=change)
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="write FOLDER/NAME.json")
    if names := list(parts):
        parser.add_argument(
            "--only", nargs="+", action="extend", choices=names, metavar="PART",
            help=f"some of: {' '.join(names)}",
        )  # fmt: skip
    return parser


def measured(name, chosen, measure, *, packages=(), quiet=False, seeds=None):
    """Measure, and print what was measured; returns the exit code.

    Args:
        name: of the benchmark.
        chosen: the flags.
        measure: adds claims and numbers to the findings, and prints its progress.
        packages: whose versions are recorded, beside mlxhog and numpy.
        quiet: whether to wait for a quiet machine first: a minute, with `--quick` 10 s.
        seeds: numbers of them, of `--quick` and of `--full`.
    """
    findings = Findings()
    if seeds is not None:
        count = chosen.pick(tiny=1, quick=seeds[0], full=seeds[1])
        chosen.seeds = findings.seeds = tuple(range(1, count + 1))
    if quiet:
        wait_until_quiet(10.0 if chosen.quick else 60.0)
    watch, began = LoadWatch(), time.monotonic()
    measure(findings, chosen)
    others_load = findings.others_load
    if others_load is None:
        others_load = watch.look().others
    findings = findings.judged(others_load)
    print()
    show(findings, others_load)
    written = {
        "benchmark": name,
        "command": shlex.join(["python", *_command()]),
        "mode": chosen.mode,
        **document(findings, others_load, packages),
        "seconds": round(time.monotonic() - began, 1),
    }
    if chosen.output is not None:
        chosen.output.mkdir(parents=True, exist_ok=True)
        write_rows(chosen.output / f"{name}.json", written)
    print(plain_json.dumps(written).decode(), flush=True)
    return EXIT_CODES[written["verdict"]]


def run(about, measure, *, only=(), first=None, actions=None, options=None, modes=MODES, **how):
    """Do what the flags of a script ask for, and end with its exit code.

    Args:
        about: docstring of the script, which is its help.
        measure: what measures the result of the script's name, or name of a result -> what
            measures it.
        only: names of parts that `measure` takes from `chosen.only`; of several results theirs.
        first: mode -> how many results it has without `--only`; all by default.
        actions: further flags -> what is done in place of measuring, with the flags; its docstring
            is the help.
        options: further flags -> keywords of `add_argument`.
        modes: see `flags`.
        how: options of `measured`.
    """
    several, actions = isinstance(measure, Mapping), actions or {}
    parts = measure if several else {Path(sys.argv[0]).stem: measure}
    words = {name: act.__doc__.splitlines()[0] for name, act in actions.items()}
    parser = flags(about, parts=parts if several else only, **modes, **words)
    for flag, keywords in (options or {}).items():
        parser.add_argument(flag, **keywords)
    chosen = parser.parse_args()
    for name, act in actions.items():
        if getattr(chosen, name):
            chosen.mode, chosen.quick = FULL, False
            raise SystemExit(act(chosen))
    names = list(parts)[: (first or {}).get(chosen.mode)]
    names = chosen.only or names if several else names
    codes = [measured(name, chosen, parts[name], **how) for name in names]
    raise SystemExit(next((code for code in (1, 3) if code in codes), 0))


def each(parts):
    """Measure the parts that `--only` names, or all, for one result."""

    def measure(findings, chosen):
        for name in chosen.only or parts:
            parts[name](findings, chosen)

    return measure


def _command():
    """The words of this process, from the root of the checkout, but for paths of this machine."""
    script, words = Path(sys.argv[0]).resolve(), sys.argv[1:]
    for flag in ("--output", *KEEPING):
        if flag in words:
            at = words.index(flag)
            words = words[:at] + words[at + 2 :]
    return [str(script.relative_to(ROOT)) if ROOT in script.parents else script.name, *words]


def other_seed(seed):
    """The seed of an arm's second run (A/A) where runs of one seed repeat bit for bit."""
    return seed + 1000


def say(text):
    """Print one line of progress at once."""
    print(text, flush=True)


def document(findings, others_load, packages):
    """Verdict, claims and numbers of judged findings, and what they were measured with."""
    return {
        **findings.to_json(),
        **({"seeds": findings.seeds} if findings.seeds else {}),
        **_as_objects(findings.results),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "others_load": round(others_load, 3),
        **measured_with("mlxhog", "numpy", *packages),
    }


def write_rows(path, value):
    """Write a file of JSON with one row a line, so that a changed row is a changed line."""
    replace_file(path, f"{_rows(json.loads(plain_json.dumps(value)))}\n".encode())


def _rows(value, indent=""):
    """Short values, and those without a list or an object inside, in one line."""
    text = json.dumps(value)
    entries = value.values() if isinstance(value, dict) else value
    if len(text) <= MAX_ROW or not any(isinstance(entry, dict | list) for entry in entries):
        return text
    names = [f"{json.dumps(name)}: " for name in value] if text[0] == "{" else [""] * len(value)
    inner = ",\n".join(
        f"{indent} {name}{_rows(entry, indent + ' ')}"
        for name, entry in zip(names, entries, strict=True)
    )
    return f"{text[0]}\n{inner}\n{indent}{text[-1]}"


def _as_objects(value):
    """Estimates as objects, at any depth."""
    if isinstance(value, Estimate):
        return value.to_json()
    if isinstance(value, list | tuple):
        return [_as_objects(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _as_objects(item) for key, item in value.items()}
    return value
