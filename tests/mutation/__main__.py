"""Do the tests notice small faults? Not part of CI.

    python -m tests.mutation                     every mutant: killed or survived
    python -m tests.mutation --only ledger       those whose file's name contains a word
    python -m tests.mutation --list              which mutants there are, and which no longer fit
    python -m tests.mutation --json A            write each result to A as it comes; go on from A
    python -m tests.mutation --tree DIR --native FILE --json B
                                                 another checkout's product, native module and tests
    python -m tests.mutation --compare B A       how many of those that B killed A kills, too

Each mutant is applied to a scratch copy of the tree, where the tests named for it run. A mutant is
killed where they fail or hang. Before that the tests have to pass on the copy as it is, and Python
has to import the copy's files. In another checkout a mutant's line may stand in another file, and
its tests in another folder; tests that are named after that file run, too.

Exit codes: 0; 1 where --compare finds less than 98 %, or tests fail without a mutant; 2 where a
mutant does not fit this tree any more.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from mlxhog import _native
from tests.mutation.mutants import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("mlxhog", "models", "metal")
SHARE = 0.98
SLOWER = 5
"""Factor of their time without a fault that tests may take: a busy machine is no fault."""
HANGS_S = 120
"""Tests never count as hanging before that, however fast they are without a fault."""

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
ORIGINS = """\
import importlib.util, json, os, sys

print(json.dumps({m: os.path.realpath(importlib.util.find_spec(m).origin) for m in sys.argv[1:]}))
"""


@dataclass(frozen=True)
class Fault:
    """A mutant as it is applied to a tree: the file that holds its line there, the tests to run."""

    mutant: Mutant
    file: str
    tests: tuple[str, ...]

    @property
    def label(self) -> str:
        """The mutant's name."""
        return label(self.mutant)

    @property
    def module(self) -> str:
        """What the file is imported as."""
        name = ".".join(Path(self.file).with_suffix("").parts)
        return name if name.startswith("mlxhog.") else f"mlxhog.{name}"

    def apply(self, copy: Path) -> str:
        """Write the fault into a copy of the tree; returns the file's text without it."""
        text = (copy / self.file).read_text(encoding="utf-8")
        faulty = text.replace(self.mutant.old, self.mutant.new)
        (copy / self.file).write_text(faulty, encoding="utf-8")
        return text


def label(mutant: Mutant) -> str:
    """A mutant's name, which outlives moves of its file."""
    return f"{Path(mutant.file).stem}: {mutant.old} -> {mutant.new or '(nothing)'}"


def fit(mutant: Mutant, tree: Path) -> Fault | str:
    """The mutant as a fault of a tree, or why it does not fit that tree."""
    file = _file_of(mutant, tree)
    if file is None:
        return "its line is not there, or there more than once"
    if tree == ROOT:
        tests = mutant.tests if all((tree / name).exists() for name in mutant.tests) else ()
    else:
        names = [_test_of(name, tree) for name in mutant.tests]
        named_after = [
            path.relative_to(tree).as_posix()
            for path in sorted((tree / "tests").rglob(f"test_{Path(file).stem}.py"))
            if path.parent.name in (Path(file).parent.name, "tests")
        ]
        tests = tuple(dict.fromkeys([*filter(None, names), *named_after]))
    return Fault(mutant, file, tests) if tests else f"no tests {' '.join(mutant.tests)}"


def _file_of(mutant: Mutant, tree: Path) -> str | None:
    """The one file with the mutant's line once: the mutant's own, in another tree any other."""
    own = tree / mutant.file
    if own.is_file() and own.read_text(encoding="utf-8").count(mutant.old) == 1:
        return mutant.file
    if tree == ROOT:
        return None
    files = [file for folder in SOURCES for file in (tree / folder).rglob("*.py")]
    counts = {file: file.read_text(encoding="utf-8").count(mutant.old) for file in files}
    hits = [file for file, count in counts.items() if count]
    return hits[0].relative_to(tree).as_posix() if sum(counts.values()) == 1 else None


def _test_of(name: str, tree: Path) -> str | None:
    """The file of tests, or the only one in the tree that is called so."""
    if (tree / name).exists():
        return name
    others = list((tree / "tests").rglob(Path(name).name))
    return others[0].relative_to(tree).as_posix() if len(others) == 1 else None


@contextmanager
def scratch_copy(tree: Path, native: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """A copy of the tree, and the environment in which Python runs it with a native module."""
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        copy, site = Path(folder, "tree").resolve(), Path(folder, "site")
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
        (package / native.name).symlink_to(native.resolve())
        (site / "sitecustomize.py").write_text(f"PACKAGE = {str(package)!r}\n{SITE}")
        path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        settings = {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
        yield copy, {**os.environ, **settings, "CI": "1"}  # all examples of hypothesis


def check_imports(
    faults: Sequence[Fault], copy: Path, native: Path, environment: dict[str, str]
) -> None:
    """See to it that Python imports the copy's files and the native module.

    Raises:
        RuntimeError: it imports a module from elsewhere.
    """
    files = {fault.module: (copy / fault.file).resolve() for fault in faults}
    files["mlxhog._native"] = native.resolve()
    command = [sys.executable, "-c", ORIGINS, *files]
    process = subprocess.run(
        command, cwd=copy, env=environment, capture_output=True, text=True, check=False
    )
    if process.returncode:
        raise RuntimeError(process.stderr[-2000:])
    origins: dict[str, str] = json.loads(process.stdout)
    for module, file in files.items():
        if Path(origins[module]) != file:
            raise RuntimeError(
                f"Python imports {module} from {origins[module]} instead of {file}, so mutants of "
                "the copy would not be noticed; see what PYTHONPATH and the environment's .pth "
                "files add to sys.meta_path"
            )


def passes(
    tests: Sequence[str], copy: Path, environment: dict[str, str], limit_s: float | None = None
) -> bool:
    """Whether tests pass on the copy as it is now, within a time.

    Raises:
        RuntimeError: pytest could not run them.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    with subprocess.Popen(
        command,
        cwd=copy,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # so that what a killed test started can be killed with it
    ) as process:
        try:
            output, _ = process.communicate(timeout=limit_s)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            if isinstance(error, subprocess.TimeoutExpired):
                return False
            raise
    if process.returncode in (3, 4, 5):
        raise RuntimeError(output[-2000:])
    return process.returncode == 0


def run(faults: Sequence[Fault], tree: Path, native: Path, record: Path | None) -> dict[str, str]:
    """What became of each mutant, by its label: killed or survived; also in a file, if named.

    Raises:
        RuntimeError: tests fail without a mutant, or Python does not import the copy.
    """
    fates: dict[str, str] = {}
    if record and record.exists():
        fates = json.loads(record.read_text(encoding="utf-8"))
    waiting = [fault for fault in faults if fault.label not in fates]
    with scratch_copy(tree, native) as (copy, environment):
        check_imports(faults, copy, native, environment)
        for tests, group in groupby(waiting, key=lambda fault: fault.tests):
            began = time.monotonic()
            if not passes(tests, copy, environment):
                raise RuntimeError(f"these fail without any mutant: {' '.join(tests)}")
            limit_s = max(HANGS_S, SLOWER * (time.monotonic() - began))
            for fault in group:
                began = time.monotonic()
                text = fault.apply(copy)
                survived = passes(fault.tests, copy, environment, limit_s)
                (copy / fault.file).write_text(text, encoding="utf-8")
                fates[fault.label] = "survived" if survived else "killed"
                took_s = time.monotonic() - began
                print(f"{fates[fault.label]:8}  {took_s:5.1f} s  {fault.label}", flush=True)
                if record:
                    record.write_text(json.dumps(fates, indent=1) + "\n", encoding="utf-8")
    return {fault.label: fates[fault.label] for fault in faults}


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
    parser.add_argument(
        "--native",
        type=Path,
        default=Path(_native.__file__),
        metavar="FILE",
        help="that checkout's native module; this one's if not named",
    )
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="write what became of each; mutants that stand in it already are not run again",
    )
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("A", "B"), help="two such files")
    options = parser.parse_args()
    if options.compare:
        first, second = (json.loads(file.read_text()) for file in options.compare)
        return compare(first, second)
    tree = options.tree.resolve()
    faults, misfits = [], 0
    for mutant in MUTANTS:
        if options.only in mutant.file:
            fault = fit(mutant, tree)
            if isinstance(fault, str):
                misfits += 1
                print(f"{fault}: {label(mutant)}")
                continue
            faults.append(fault)
            if options.list:
                print(f"fits {fault.file}, {' '.join(fault.tests)}: {fault.label}")
    if not options.list:
        try:
            fates = run(faults, tree, options.native, options.json)
        except RuntimeError as error:
            print(error, file=sys.stderr)
            return 1
        print(f"{list(fates.values()).count('killed')} of {len(fates)} killed")
    return 2 if misfits and tree == ROOT else 0


if __name__ == "__main__":
    sys.exit(main())
