"""Python's sources use nothing that macOS lacks, and its compiler takes the native ones."""

import ast
import os
import re
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

import pytest

from tests import kept
from tests.arm64.cross import MACOS, run, zig
from tests.macos.simulation import ROOT

NATIVE = sorted((ROOT / "metal" / "native").rglob("*"))
PYTHON = sorted(
    path for folder in ("mlxhog", "models", "metal") for path in (ROOT / folder).rglob("*.py")
)
NOT_IN_OS = re.compile(
    r"sched_\w+|posix_fallocate|posix_fadvise|memfd_create|eventfd\w*|pidfd_open|waitid|"
    r"copy_file_range|sendfile|prlimit|getrandom"
)
VARIADIC = {"open", "fcntl", "ioctl", "shm_open", "printf", "sem_open"}


def linux_only_names(tree):
    """`os.X` that macOS lacks and that no `hasattr(os, "X")` of the same file guards."""
    used, guarded = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id == "os" and NOT_IN_OS.fullmatch(node.attr):
                used.add(node.attr)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "hasattr":
            guarded |= {a.value for a in node.args if isinstance(a, ast.Constant)}
    return used - guarded


def variadic_calls(tree):
    """Variadic C functions called in a file that loads libraries with ctypes."""
    nodes = list(ast.walk(tree))
    imported = [name.name for n in nodes if isinstance(n, ast.Import) for name in n.names]
    if not any("ctypes" in name for name in imported):
        return set()
    own = {"os", "Path", "path", "fcntl", "_posixshmem", "self", "io"}
    calls = [n.func for n in nodes if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)]
    return {
        f.attr for f in calls
        if f.attr in VARIADIC and ast.unparse(f.value).split(".")[0] not in own
    }  # fmt: skip


def test_python_uses_nothing_that_macos_lacks():
    wrong = {}
    for path in PYTHON:
        text = path.read_text(encoding="utf-8")
        if NOT_IN_OS.search(text) or "ctypes" in text:
            tree = ast.parse(text)
            if names := linux_only_names(tree) | variadic_calls(tree):
                wrong[path] = names
    assert not wrong, wrong


def test_workers_are_spawned_and_never_forked():
    for path in PYTHON:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"os\.fork|get_context\(\"fork|set_start_method", text), path
        if "multiprocessing" in text and "get_context(" in text:
            assert 'get_context("spawn")' in text


@pytest.mark.slow
def test_the_native_code_compiles_for_apple_silicon(tmp_path):
    """With macOS's headers and libc++: there uint64_t is not size_t, so mixing templates fails."""
    nanobind = pytest.importorskip("nanobind")
    python = tmp_path / "python"
    python.mkdir()
    for header in Path(sysconfig.get_path("include")).iterdir():
        if header.name != "pyconfig.h":  # Debian's knows the processors of Linux alone
            (python / header.name).symlink_to(header)
    (python / "pyconfig.h").symlink_to(sysconfig.get_config_h_filename())
    flags = [*MACOS, "-std=c++20", "-Wall", "-Wextra", "-Werror", "-fopenmp-simd"]
    flags += ["-g0", "-fno-sanitize=undefined"]  # which zig adds, and nothing here runs
    folders = [f"-isystem{nanobind.include_dir()}", f"-isystem{python}"]
    command = [*zig(), *flags, *folders]

    versions = [sys.version, *map(metadata.version, ("ziglang", "nanobind"))]
    own_headers = [path for path in NATIVE if path.suffix == ".h"]

    def compiled(source):
        return kept.made(
            f"macos-{source.stem}.o",
            lambda result: run([*command, "-c", source, "-o", result]),
            *versions, *flags, *own_headers, source,
        )  # fmt: skip

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = [pool.submit(compiled, path) for path in NATIVE if path.suffix == ".cpp"]
    complaints = [str(error) for result in results if (error := result.exception())]
    assert not complaints, "\n".join(complaints)
