"""Native code for arm64, compiled by zig: assembly as for an M1, and programs that qemu runs here.

The options are those of CMakeLists.txt. Zig keeps what it has compiled, its C and C++ libraries
among it, where it does for everybody: a second session compiles what has changed.

    python -m tests.arm64.cross

compiles a small program, and with it those libraries: two minutes of a core, once for a user.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

HERE = Path(__file__).parent
NATIVE = HERE.parents[1] / "metal" / "native"
CMAKE = (NATIVE / "CMakeLists.txt").read_text()


def _words(pattern):
    found = re.search(pattern, CMAKE)
    assert found is not None, f"CMakeLists.txt has no {pattern}"
    return re.split(r"[\s;]+", found[1].strip())


OPERATORS = [
    f"ops/{file.name}"
    for file in sorted((NATIVE / "ops").glob("*.cpp"))
    if not file.name.startswith(("bind_", "shapes"))
]
OPERATOR_OPTIONS = _words(r'OPERATORS\}\s+PROPERTIES COMPILE_OPTIONS "(.*)"')
ELEMENTS = _words(r"set_source_files_properties\(([^$)]*)\sPROPERTIES")
ELEMENT_OPTIONS = _words(r"set\(MLXHOG_ELEMENT_OPTIONS (.*)\)")

MACOS = ("-target", "aarch64-macos.14.0", "-mcpu=apple_m1")
LINUX = ("-target", "aarch64-linux-musl", "-mcpu=apple_m1")  # the instructions of an M1
_CACHE = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))  # not that of a test
_ZIG_CACHE = os.environ.get("ZIG_GLOBAL_CACHE_DIR", f"{_CACHE}/zig")


def zig():
    """The compiler's command; a test that cannot have it is skipped."""
    package = importlib.util.find_spec("ziglang")
    if package is None or package.origin is None:
        pytest.skip("no zig, the compiler for arm64: python -m pip install ziglang")
    return [str(Path(package.origin).with_name("zig")), "c++"]


def qemu():
    """The emulator's program; a test that cannot have it is skipped."""
    for name in ("qemu-aarch64-static", "qemu-aarch64"):
        if found := shutil.which(name):
            return found
    pytest.skip(
        "no qemu-aarch64-static, which runs arm64 programs: apt-get install qemu-user-static"
    )


def options(source):
    """The options with which the wheel's build compiles a source of `metal/native`."""
    name = str(source.relative_to(NATIVE)) if source.is_relative_to(NATIVE) else ""
    found = ["-std=c++20", "-O3", "-ffp-contract=off"]
    found += OPERATOR_OPTIONS if name in OPERATORS else []
    found += ELEMENT_OPTIONS if name in ELEMENTS else []
    return found


def run(command, *, check=True):
    """Run the compiler; a complaint is a failure, unless the caller looks at it."""
    caches = {"ZIG_GLOBAL_CACHE_DIR": _ZIG_CACHE, "ZIG_LOCAL_CACHE_DIR": _ZIG_CACHE}
    process = subprocess.run(
        [*map(str, command)], env=os.environ | caches, capture_output=True, text=True, check=False
    )
    assert not check or process.returncode == 0, process.stderr[:4000]
    return process


def assembly(source, result):
    """What Apple's M1 gets of a source, as text."""
    run([*zig(), *MACOS, *options(source), f"-I{NATIVE / 'arena'}", "-S", source, "-o", result])
    return result.read_text()


def program(result, sources):
    """Compile sources and link them; programs in one folder share what both have.

    Returns:
        the command that runs the program here.
    """
    command = [*zig(), *LINUX]
    folders = (NATIVE / "arena", NATIVE / "updates", NATIVE / "ops")
    include = [f"-I{folder}" for folder in folders]

    def compiled(source):
        to = result.with_name(f"{source.parent.name}-{source.stem}.o")
        if not to.exists():
            run([*command, *options(source), *include, "-c", source, "-o", to])
        return to

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, sources))
    run([*command, *objects, "-o", result])
    return [qemu(), str(result)]


def litmus(folder):
    """Compile `litmus.cpp`; returns its command."""
    return program(folder / "litmus", (HERE / "litmus.cpp", NATIVE / "arena/ledger.cpp"))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        litmus(Path(folder))
