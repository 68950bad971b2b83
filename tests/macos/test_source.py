"""Python's sources use nothing that macOS lacks, and its compiler takes the native ones."""

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
    r"\bos\.(sched_\w+|posix_fallocate|posix_fadvise|memfd_create|eventfd\w*|pidfd_open|waitid|"
    r"copy_file_range|sendfile|prlimit|getrandom)\b"
)
VARIADIC = re.compile(r"\b(?!fcntl\b|_posixshmem\b)\w+\.(fcntl|ioctl|shm_open|printf|sem_open)\(")
"""Functions of C that ctypes calls wrongly on arm64."""


def test_python_uses_nothing_that_macos_lacks():
    """Unless `hasattr(os, "NAME")` of the same file guards it."""
    for path in PYTHON:
        text = path.read_text(encoding="utf-8")
        used = {name for name in NOT_IN_OS.findall(text) if f'hasattr(os, "{name}")' not in text}
        assert not used, path
        assert not ("ctypes" in text and VARIADIC.search(text)), path


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
