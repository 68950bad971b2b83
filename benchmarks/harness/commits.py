"""Modules of the package as an earlier commit has them, to measure a change beside what it was."""

from __future__ import annotations

import subprocess
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from typing import Any

from harness.machine import ROOT

FOLDERS = {"models": "models", "metal": "metal"}
"""Packages of mlxhog whose folder is not in that of mlxhog."""


def import_from(commit: str, *packages: str) -> None:
    """Import modules of some packages from a commit of this repository; others are today's.

    For a process of its own, before it imports any of them. Data files and the native module are
    today's, too.

    Args:
        commit: its hash.
        packages: of mlxhog, such as "models".

    Raises:
        SystemExit: the repository does not have the commit.
    """
    if _git("cat-file", "-e", f"{commit}^{{commit}}") is None:
        raise SystemExit(f"commit {commit} is not in this repository; git fetch --unshallow")
    sys.meta_path.insert(0, _Finder(commit, packages))


class _Finder(MetaPathFinder):
    def __init__(self, commit: str, packages: tuple[str, ...]) -> None:
        self.commit, self.packages = commit, packages

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        top, *below = fullname.split(".")
        if top != "mlxhog" or not below or below[0] not in self.packages:
            return None
        stem = "/".join([FOLDERS.get(below[0], f"mlxhog/{below[0]}"), *below[1:]])
        for file in (f"{stem}.py", f"{stem}/__init__.py"):
            source = _git("show", f"{self.commit}:{file}")
            if source is not None:
                loader = _Loader(fullname, str(ROOT / file), source)
                return spec_from_file_location(fullname, ROOT / file, loader=loader)
        return None


class _Loader(SourceFileLoader):
    """Loads another source in the place of a file's own, and none that Python has cached."""

    def __init__(self, fullname: str, path: str, source: bytes) -> None:
        super().__init__(fullname, path)
        self.source = source

    def path_stats(self, path: Any) -> Any:
        raise OSError("not cached")

    def get_data(self, path: Any) -> bytes:
        return self.source


def _git(*words: str) -> bytes | None:
    """The output of git, or None where it fails."""
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, check=False)
    return done.stdout if done.returncode == 0 else None
