"""Kernels compile once, also for several processes at once; what does not compile is shown."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mlxhog.doctor import checks
from mlxhog.errors import EnvironmentLacks, MetalError
from mlxhog.metal.emulator import build, translate
from mlxhog.metal.emulator.engine import EmulatorEngine
from mlxhog.metal.kernel import read_source
from tests.metal.emulator.probes import GROUP_SUM, on

X = np.ones(64, np.float32)
RUN = """
import numpy
from mlxhog.metal.emulator.engine import EmulatorEngine
from tests.metal.emulator import probes
print(EmulatorEngine().run(probes.on(probes.GROUP_SUM, numpy.ones(64, numpy.float32)))["y"].sum())
"""


@pytest.mark.slow
def test_two_processes_may_build_one_kernel_at_once_in_the_users_cache_and_a_third_finds_it(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    root, how = Path(__file__).parents[3], {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    both = [subprocess.Popen([sys.executable, "-c", RUN], cwd=root, **how) for _ in range(2)]
    for process in both:
        out, err = process.communicate(timeout=240)
        assert (out.strip(), err) == (b"4096.0", b"")
    cache = tmp_path / "mlxhog" / "metal"
    assert len(list(cache.iterdir())) == 2, "the runtime and the kernel, and no unfinished file"
    monkeypatch.setattr(build.os, "replace", lambda *_: pytest.fail("compiled again"))
    assert EmulatorEngine().run(on(GROUP_SUM, X))["y"][0] == 64


def test_a_compile_error_names_file_and_line(emulator_cache, tmp_path):
    file = tmp_path / "misspelt.metal"
    file.write_text("#include <metal_stdlib>\n\nfloat f(float x) { return metal::exq(x); }\n")
    text = translate.cpp(read_source(str(file), lines=True))
    with pytest.raises(MetalError) as caught:
        build.library("misspelt", text, directory=emulator_cache)
    assert str(caught.value).startswith("misspelt does not compile:")
    assert f"{file}:3:" in str(caught.value)


def test_a_missing_compiler_is_named_with_what_to_install(new_emulator):
    with pytest.raises(EnvironmentLacks, match=r"no C\+\+ compiler 'no-such-g\+\+'.*install g\+\+"):
        new_emulator(compiler="no-such-g++").run(on(GROUP_SUM, X))


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("#!/bin/sh\necho 'xcode-select: no developer tools were found' >&2\nexit 1\n",
         r"ends with code 1 \(xcode-select: no developer tools were found\).*--install"),
        ("#!/bin/sh\nexit 72\n", r"ends with code 72 \(it left no message\)"),
        ("#!/no/such/shell\n", "no C.. compiler"),
        ("no program", "does not run"),
    ],
)  # fmt: skip
def test_a_compiler_that_does_not_run_is_named_in_words(script, words, tmp_path, monkeypatch):
    for name in ("emulator-g++", *checks.COMPILERS):
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    build.version.cache_clear()
    try:
        with pytest.raises(EnvironmentLacks, match=words):
            build.version("emulator-g++")
        assert checks.compiler() is None
    finally:
        monkeypatch.undo()
        build.version.cache_clear()
    assert checks.compiler().count("/") >= 1


def test_a_mac_without_developer_tools_is_not_asked_for_a_compiler(monkeypatch):
    def lacks(*command):
        assert command == ("xcode-select", "-p")
        raise EnvironmentLacks("xcode-select -p ended with code 2")

    monkeypatch.setattr(checks, "sys", SimpleNamespace(platform="darwin"))
    monkeypatch.setattr(checks, "output_of", lacks)
    monkeypatch.setattr(build, "version", lambda name: pytest.fail(name))
    assert checks.compiler() is None


def test_fibers_are_apples_own_on_every_mac_and_compile_there(tmp_path):
    """With a stand-in for its header: ours is written for Linux's assembler."""
    (tmp_path / "ucontext.h").write_text(
        "#ifndef _XOPEN_SOURCE\n"
        "#error The deprecated ucontext routines require _XOPEN_SOURCE to be defined\n"
        "#endif\n"
        "#include_next <ucontext.h>\n"
    )
    source = build.FOLDER / "runtime" / "fibers.cpp"
    command = ["g++", *build._FLAGS, *build._APPLE_FLAGS, f"-I{tmp_path}", "-D__APPLE__", "-S"]
    text = subprocess.run(
        [*command, str(source), "-o", "-"], check=True, capture_output=True, text=True
    ).stdout
    assert "swapcontext" in text
    assert "mlxhog_switch_stack" not in text
