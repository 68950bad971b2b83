"""Native code as arm64's, run by qemu: operators, updates, locks, marks and the ledger.

Qemu runs each instruction, so results are those of NEON. Its threads have the memory order of this
CPU: x86 lets a load overtake an earlier store and nothing else, an M1 more (docs/apple.md).
"""

import os
import shlex
import subprocess
import sys

import numpy as np
import pytest

from mlxhog import _native
from mlxhog.optim.muon import ORTHOGONALIZATIONS
from mlxhog.optim.updates import WRITE_MODES
from tests.arm64 import cross
from tests.arm64.cross import HERE, NATIVE, OPERATORS, program, qemu, zig
from tests.arm64.emulated import Emulated
from tests.metal.sample import draw
from tests.metal.test_thread_sanitizer import SOURCES as UPDATES
from tests.metal.test_thread_sanitizer import build
from tests.tolerances import POLAR_F32, assert_close

# Zig compiles its libraries for arm64 first, once for a user: two minutes of a core.
pytestmark = pytest.mark.timeout(900)

ROOT = HERE.parents[1]
TESTS = [
    "tests/metal/test_ops.py",
    "tests/models/test_native_sequence_ops.py",
    "tests/models/test_native_step.py",
    "tests/models/test_operators.py",
    "tests/optim/test_apollo.py::test_steps_are_those_of_the_authors_package",
    "tests/optim/test_rules.py::test_steps_are_those_of_the_formula",
    "tests/optim/test_soap.py",
    "tests/optim/test_muon.py::test_native_means_have_the_references_bits",
    "tests/optim/test_muon.py::test_the_size_of_a_gradient_does_not_matter",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    zig(), qemu()  # before a minute of work: skips without them
    return tmp_path_factory.mktemp("arm64")


@pytest.fixture(scope="module")
def driver(folder):
    """All native operators, behind bindings that read a stream in place of Python's objects."""
    own = [NATIVE / name for name in OPERATORS]
    own += [*sorted((NATIVE / "ops").glob("bind_*.cpp")), NATIVE / "ops/shapes.cpp"]
    own += [NATIVE / f"updates/bind_{name}.cpp" for name in ("directions", "muon")]
    own += [
        NATIVE / f"updates/{name}" for name in (*UPDATES, "directions.cpp", "shared_arrays.cpp")
    ]
    once = dict.fromkeys(source.resolve() for source in own)  # operators and updates have the pool
    return program(folder / "driver", (*once, HERE / "driver.cpp"))


@pytest.fixture(scope="module")
def emulated(driver):
    made = Emulated(driver)
    yield made
    made.close()


def runner(command):
    def run(*arguments):
        full = [*command, *map(str, arguments)]
        return subprocess.run(full, capture_output=True, text=True, timeout=200, check=True).stdout

    return run


@pytest.fixture(scope="module")
def threads(folder):
    """The updates and locks of tests/metal/threads.cpp."""
    sources = [ROOT / "tests/metal/threads.cpp", *(NATIVE / "updates" / name for name in UPDATES)]
    return runner(program(folder / "threads", sources))


@pytest.fixture(scope="module")
def litmus(folder):
    return runner(cross.litmus(folder))


@pytest.mark.slow
def test_the_tests_of_every_native_operator_pass_on_arm64(driver, tmp_path):
    own = ["-p", "tests.arm64.emulated", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'own'}"]
    own += ["-k", "not too_large_for_malloc"]  # about this system's memory, not the processor
    inherited = {name: x for name, x in os.environ.items() if not name.startswith("PYTEST_")}
    process = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *own, *TESTS],
        cwd=ROOT,
        env=inherited | {"MLXHOG_ARM64": shlex.join(driver)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout[-8000:] + process.stderr[-4000:]


@pytest.mark.slow
def test_an_m1_multiplies_by_neon_and_its_polar_factors_are_those_of_this_machine(emulated):
    assert emulated.call("ops.gemm_kernel") == "neon"
    for shape in ((1, 7), (31, 33), (64, 128), (128, 96)):
        x = draw(*shape)
        here, there = np.empty_like(x), np.empty_like(x)
        _native.polar([x], [here], [1.0], ORTHOGONALIZATIONS["polar3"])
        emulated.call("polar", [x], [there], [1.0], ORTHOGONALIZATIONS["polar3"])
        assert_close(there, here, POLAR_F32, label=str(shape))


@pytest.mark.slow
def test_every_update_rule_has_the_bits_of_this_machine(threads):
    here = runner([str(build("here", "-O3"))])
    assert threads("digest") == here("digest")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["lossless", "cas"])
def test_three_threads_lose_no_update_under_locks_or_compare_and_swap(threads, mode):
    lost, _, all_of_them = threads("count", WRITE_MODES[mode], 60).split()
    assert int(lost) == 0
    assert int(all_of_them) > 10**6


@pytest.mark.slow
def test_threads_see_fences_marks_and_every_ticket_once(litmus):
    assert int(litmus("dekel", 1, 5_000)) == 0, "of two threads with a fence one sees the other"
    _, mixed = map(int, litmus("marks", 20_000).split())
    assert mixed == 0, "a copy between equal marks is of one write"
    assert litmus("ledger", 20_000).split() == ["0", "20000"], "a small ring"
