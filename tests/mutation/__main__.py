"""Do the tests notice small faults? A sample of the whole product; not part of CI.

    python -m tests.mutation --n 40                    as many mutants of each folder, by seed
    python -m tests.mutation --n 6 --only optim        of files whose path contains a text
    python -m tests.mutation --n 500 --json A          each result is written to A as it comes;
                                                       the same command continues
    python -m tests.mutation --seed baseline           96 mutants of the seed of baseline.json, then
                                                       --compare with it: 20 minutes of two cores
    python -m tests.mutation --compare A B             exit code 1 if B is weaker than A

A mutant is written into a copy of the tree, where files of tests run until one fails: those that
are named after its file, those that name its module, and those of its folder in tests/; the nearest
first, as many as pass in 12 s without it. It is killed if a test fails, times out after several
times of what the tests take, and survives otherwise; it is invalid if pytest cannot run. Timeouts
count as killed. A folder is weaker if its share of killed mutants is more than 3 points lower, and
so far that chance has less than 5 % of it (Fisher's exact test, all folders together). A folder
that one record lacks counts in `all` alone: baseline.json has counts of the folders of its tree,
not the fate of each mutant, so those that were divided since cannot be named anew. A few mutants
tell a suite that lost much, no more. Each core has a copy, and takes a folder at a time.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack, contextmanager, suppress
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from threading import Lock

from scipy import stats

from mlxhog import _native
from tests.mutation.mutants import SOURCES, sample
from tests.threads import begin

ROOT = Path(__file__).resolve().parents[2]
BASELINE, OF_BASELINE = Path(__file__).with_name("baseline.json"), 96
POINTS, ERROR = 3, 0.05
BUDGET_S = 12
"""Tests of a mutant take at most that of processors without it, so that other work on the machine
does not change the choice; the nearest file runs in any case."""
SLOWER = 5
"""Factor of their time by the clock, beside a minute, after which a mutant has timed out."""
FATES = {0: "survived", 1: "killed"}
"""By the exit code of pytest; others mean that it could not collect or run the tests."""

# Read by Python at its start: makes `mlxhog` the copy, whatever is installed.
SITE = """\
import importlib.machinery, importlib.util, sys


class Copy:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "mlxhog":
            return importlib.util.spec_from_file_location(
                name, PACKAGE + "/__init__.py", submodule_search_locations=[PACKAGE]
            )
        if name.startswith("mlxhog."):
            return importlib.machinery.PathFinder.find_spec(name, path)  # not an editable install's


sys.meta_path.insert(0, Copy)
"""


def listed(tree):
    """The files of a checkout, those that are not committed yet, too."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=tree, capture_output=True, check=True, text=True).stdout
    return sorted(name for name in names.split("\0") if name and (tree / name).is_file())


def module_of(file):
    """What a file of the product is imported as."""
    parts = [part for part in Path(file).with_suffix("").parts if part != "__init__"]
    return ".".join(parts if parts[0] == "mlxhog" else ["mlxhog", *parts])


@contextmanager
def scratch_copy(files):
    """A copy of the tree, and the environment in which Python runs it."""
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        copy, site = Path(folder, "tree").resolve(), Path(folder, "site")
        for name in files:
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
        package = site / "mlxhog"
        package.mkdir(parents=True)
        native = Path(_native.__file__)
        for entry in (*(copy / "mlxhog").iterdir(), copy / "models", copy / "metal", native):
            (package / entry.name).symlink_to(entry)
        (site / "sitecustomize.py").write_text(f"PACKAGE = {str(package)!r}\n{SITE}")
        path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "CI": "1"}
        yield copy, environment


def fate_of(tests, cwd, environment, limit_s):
    """What tests say of the tree as it is, with seconds of the clock and of processors."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    began, pid, code = time.monotonic(), 0, 0
    process = subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,  # so that what a test started can be killed with it
    )  # fmt: skip
    _running.add(process.pid)
    while not pid and time.monotonic() < began + limit_s:
        time.sleep(0.05)
        pid, code, used = os.wait4(process.pid, os.WNOHANG)
    if not pid:
        _kill(process.pid)
        _, _, used = os.wait4(process.pid, 0)
    _running.discard(process.pid)
    process.returncode = os.waitstatus_to_exitcode(code)
    fate = FATES.get(process.returncode, "invalid") if pid else "timeout"
    return fate, round(time.monotonic() - began, 1), round(used.ru_utime + used.ru_stime, 1)


_running = set()


def _kill(pid):
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def ranked(mutant, texts):
    """The files of tests for a mutant, of all by their texts: the nearest, and shortest, first."""
    package, _, name = module_of(mutant.file).rpartition(".")
    escaped = re.escape(package)
    names = re.compile(rf"\b{escaped}\.{name}\b|\b{escaped} import [^\n]*\b{name}\b")
    folder = f"tests/{Path(mutant.file).parent.as_posix().removeprefix('mlxhog/')}/"
    own = f"{folder}test_{Path(mutant.file).stem}.py"

    def distance(test):
        is_named = bool(names.search(texts[test]))
        return 0 if test == own else 3 - 2 * test.startswith(folder) - is_named

    near = (test for test in texts if distance(test) < 3)
    return sorted(near, key=lambda test: (distance(test), len(texts[test])))


def run(chosen, files, record):
    """Try the mutants that a record does not have yet; returns those chosen, by their labels."""
    tests = [file for file in files if re.fullmatch(r"tests/.*\btest_\w+\.py", file)]
    texts = {file: (ROOT / file).read_text(encoding="utf-8") for file in tests}
    kept = {"seconds": {}, "mutants": {}}
    if record and record.exists():
        kept = json.loads(record.read_text(encoding="utf-8"))
    fates, lock, folder = kept["mutants"], Lock(), attrgetter("folder")
    new = sorted((one for one in chosen if one.label not in fates), key=folder)
    todo = [list(own) for _, own in groupby(new, key=folder)]  # they share tests

    def work(place):
        while todo:
            for mutant in todo.pop():
                fate = tried(mutant, texts, kept["seconds"], *place)
                with lock:
                    if place not in places:
                        return  # the command ends
                    fates[mutant.label] = {"folder": mutant.folder, **fate}
                    print(f"{fate['fate']:8}  {fate['seconds']:5.1f} s  {mutant.label}", flush=True)
                    kept["folders"] = by_folder(fates)
                    if record:
                        record.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")

    with ExitStack() as stack:
        jobs = min(len(todo), os.cpu_count() or 1)
        places = [stack.enter_context(scratch_copy(files)) for _ in range(jobs)]
        try:
            for thread in begin(work, list(places)):
                thread.join()
        finally:
            todo.clear(), places.clear()
            for pid in list(_running):
                _kill(pid)
    return {mutant.label: fates[mutant.label] for mutant in chosen}


def tried(mutant, texts, clean, copy, environment):
    """What the tests nearest to a mutant say of it, its seconds and the tests.

    `clean` has the seconds of tests without a mutant; None where one fails, so it says nothing.
    """
    nearest, budget_s, limit_s = [], float(BUDGET_S), 60.0
    for test in ranked(mutant, texts):
        if test not in clean:
            fate, *seconds = fate_of([test], copy, environment, 600)
            clean[test] = seconds if fate == "survived" else None
        if clean[test] and (not nearest or clean[test][1] <= budget_s):
            nearest.append(test)
            limit_s += SLOWER * clean[test][0]
            budget_s -= clean[test][1]
        if budget_s < BUDGET_S / 2:
            break
    fate, took_s = "survived", 0.0
    if nearest:
        path = copy / mutant.file
        text = path.read_text(encoding="utf-8")
        try:
            path.write_text(mutant.applied(text), encoding="utf-8")
            fate, took_s, _ = fate_of(nearest, copy, environment, limit_s)
        finally:
            path.write_text(text, encoding="utf-8")
    return {"fate": fate, "seconds": took_s, "tests": nearest}


def by_folder(fates):
    """How many mutants of each folder had which fate."""
    counts = {}
    for mutant in fates.values():
        counts.setdefault(mutant["folder"], Counter())[mutant["fate"]] += 1
    return dict(sorted(counts.items()))


def compare(before, after):
    """Print how many mutants of each folder two records killed; returns the exit code."""
    counts = [Counter[tuple[str, str]]() for _ in (before, after)]
    for count, record in zip(counts, (before, after), strict=True):
        for name, fates in record["folders"].items():
            for fate, number in fates.items():
                for folder in (name, "all"):
                    count[folder, "killed" if fate == "timeout" else fate] += number
    worst, folders = 0, sorted({folder for folder, _ in counts[0] + counts[1]})
    for folder in folders:
        killed = [count[folder, "killed"] for count in counts]
        tried = [k + count[folder, "survived"] for k, count in zip(killed, counts, strict=True)]
        verdict = ""
        if all(tried) and killed[1] / tried[1] < killed[0] / tried[0] - POINTS / 100:
            table = [[k, n - k] for k, n in zip(killed, tried, strict=True)]
            chance = stats.fisher_exact(table, alternative="greater").pvalue
            is_weaker = chance < ERROR / len(folders)
            verdict = "  weaker" if is_weaker else "  lower, inconclusive"
            worst |= is_weaker
        cells = "".join(f"  {k:3} of {n:3}" for k, n in zip(killed, tried, strict=True))
        print(f"{folder:20}{cells}{verdict}")
    return int(worst)


def main():
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--n", type=int, metavar="N", help="mutants")
    parser.add_argument("--seed", default="0", help="a number, or baseline [0]")
    parser.add_argument("--only", default="", metavar="TEXT", help="files with this in their path")
    parser.add_argument("--json", type=Path, metavar="FILE", help="record of each mutant")
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("A", "B"), help="two records")
    options = parser.parse_args()
    if options.compare:
        return compare(*(json.loads(file.read_text()) for file in options.compare))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and end the tests that run
    files, baseline = listed(ROOT), None
    if options.seed == "baseline":
        baseline = json.loads(BASELINE.read_text(encoding="utf-8"))
        options.seed, options.n = baseline["seed"], options.n or OF_BASELINE
    if options.n is None:
        parser.error("say --n N, --seed baseline or --compare A B")
    product = [
        file
        for file in files
        if options.only in file and file.endswith(".py") and file.split("/")[0] in SOURCES
    ]
    chosen = sample(ROOT, product, seed=int(options.seed), n=options.n)
    fates = run(chosen, files, options.json)
    if baseline is not None:
        return compare(baseline, {"folders": by_folder(fates)})
    for folder, counts in by_folder(fates).items():
        print(f"{folder:20} {', '.join(f'{n} {fate}' for fate, n in sorted(counts.items()))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
