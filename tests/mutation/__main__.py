"""Do the tests notice small faults? Not part of CI.

    python -m tests.mutation                     every mutant: killed or survived
    python -m tests.mutation --only ledger       those whose file's name contains a word
    python -m tests.mutation --list              which mutants there are, and which no longer fit
    python -m tests.mutation --tree DIR --json A  another checkout's product and tests
    python -m tests.mutation --compare A B       how many of those that A killed B kills, too

Each mutant is applied to a scratch copy of the tree, where the tests named for it run. A mutant is
killed where they fail or hang. Before that the tests have to pass on the copy as it is. Exit codes:
0; 1 where --compare finds less than 95 %, or tests fail without a mutant; 2 where a mutant does not
fit the source any more.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mlxhog import _native
from tests.mutation.mutants import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[2]
SHARE = 0.95
LONGEST_S = 300

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
        if name.startswith("mlxhog.") and not name.startswith("mlxhog._native"):
            return importlib.machinery.PathFinder.find_spec(name, path)  # not an editable install's


sys.meta_path.insert(0, Copy)
"""


def label(mutant: Mutant) -> str:
    """A mutant's name, which outlives moves of its file."""
    return f"{Path(mutant.file).stem}: {mutant.old} -> {mutant.new or '(nothing)'}"


def mutated(mutant: Mutant, text: str) -> str | None:
    """The file's text with the fault, or None where the mutant does not fit it."""
    return text.replace(mutant.old, mutant.new) if text.count(mutant.old) == 1 else None


def misfit(mutant: Mutant, tree: Path) -> str | None:
    """Why a mutant does not fit a tree, or None."""
    file = tree / mutant.file
    if not file.is_file():
        return "no such file"
    if gone := [name for name in mutant.tests if not (tree / name).exists()]:
        return f"no tests {' '.join(gone)}"
    if mutated(mutant, file.read_text(encoding="utf-8")) is None:
        return "its line is not there, or there more than once"
    return None


@contextmanager
def scratch_copy(tree: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """A copy of the tree, and the environment in which Python runs it."""
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        copy, site = Path(folder, "tree"), Path(folder, "site")
        listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(listing, cwd=tree, capture_output=True, check=True).stdout
        for name in filter(None, names.decode().split("\0")):
            if (tree / name).is_file():
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(tree / name, copy / name)
        package = site / "mlxhog"
        package.mkdir(parents=True)
        for entry in (*(copy / "mlxhog").iterdir(), copy / "models", copy / "metal"):
            (package / entry.name).symlink_to(entry)
        (package / Path(_native.__file__).name).symlink_to(_native.__file__)
        (site / "sitecustomize.py").write_text(f"PACKAGE = {str(package)!r}\n{SITE}")
        path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        yield copy, {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}


def passes(tests: Sequence[str], copy: Path, environment: dict[str, str]) -> bool:
    """Whether tests pass on the copy as it is now.

    Raises:
        RuntimeError: pytest could not run them.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    try:
        done = subprocess.run(
            command,
            cwd=copy,
            env=environment,
            timeout=LONGEST_S,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    if done.returncode in (3, 4, 5):
        raise RuntimeError(done.stdout[-2000:])
    return done.returncode == 0


def run(mutants: Sequence[Mutant], tree: Path) -> dict[str, str]:
    """What became of each mutant, by its label: killed or survived.

    Raises:
        RuntimeError: tests fail without a mutant.
    """
    fates = {}
    with scratch_copy(tree) as (copy, environment):
        tests = sorted({name for mutant in mutants for name in mutant.tests})
        if not passes(tests, copy, environment):
            raise RuntimeError(f"these fail without any mutant: {' '.join(tests)}")
        for mutant in mutants:
            file = copy / mutant.file
            text = file.read_text(encoding="utf-8")
            file.write_text(mutated(mutant, text) or text, encoding="utf-8")
            began = time.monotonic()
            survived = passes(mutant.tests, copy, environment)
            file.write_text(text, encoding="utf-8")
            fates[label(mutant)] = "survived" if survived else "killed"
            took_s = time.monotonic() - began
            print(f"{fates[label(mutant)]:8}  {took_s:5.1f} s  {label(mutant)}", flush=True)
    return fates


def compare(before: dict[str, str], after: dict[str, str]) -> int:
    """Say which mutants the second killed of those that the first did; returns the exit code."""
    killed = [name for name, fate in before.items() if fate == "killed" and name in after]
    lost = [name for name in killed if after[name] != "killed"]
    print("\n".join(f"no longer killed: {name}" for name in lost))
    share = 1 - len(lost) / len(killed) if killed else 0.0
    print(f"{len(killed) - len(lost)} of {len(killed)} ({share:.1%}); at least {SHARE:.0%} wanted")
    return 0 if share >= SHARE else 1


def main() -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--only", default="", metavar="WORD", help="files whose name contains this")
    parser.add_argument("--list", action="store_true", help="run nothing")
    parser.add_argument("--tree", type=Path, default=ROOT, metavar="DIR", help="another checkout")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what became of each")
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("A", "B"), help="two such files")
    options = parser.parse_args()
    if options.compare:
        first, second = (json.loads(file.read_text()) for file in options.compare)
        return compare(first, second)
    chosen = [mutant for mutant in MUTANTS if options.only in mutant.file]
    reasons = {mutant: misfit(mutant, options.tree) for mutant in chosen}
    for mutant, reason in reasons.items():
        if reason or options.list:
            print(f"{reason or 'fits'}: {label(mutant)}")
    if not options.list:
        try:
            fates = run([each for each in chosen if reasons[each] is None], options.tree)
        except RuntimeError as error:
            print(error, file=sys.stderr)
            return 1
        if options.json:
            options.json.write_text(json.dumps(fates, indent=1) + "\n", encoding="utf-8")
        print(f"{list(fates.values()).count('killed')} of {len(fates)} killed")
    return 2 if any(reasons.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
