"""Native code as arm64's, run by qemu: products, updates, locks, marks and the ledger.

Only products have code of their own for arm64 (`gemm.cpp`, `skinny_gemm.cpp`). Qemu runs each
instruction, so results are those of NEON. Its threads have the memory order of this CPU: x86 lets a
load overtake an earlier store and nothing else, an M1 more (docs/numerics-and-apple.md).
"""

import subprocess

import pytest

from mlxhog.optim.updates import WRITE_MODES
from tests.arm64 import cross
from tests.arm64.cross import HERE, NATIVE, program, qemu, zig
from tests.metal.test_blas import SOURCES as PRODUCTS
from tests.metal.test_blas import assert_products
from tests.metal.test_thread_sanitizer import SOURCES as UPDATES
from tests.metal.test_thread_sanitizer import build

# Zig compiles its libraries for arm64 first, once for a user: two minutes of a core.
pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]

ROOT = HERE.parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    zig(), qemu()  # before a minute of work: skips without them
    return tmp_path_factory.mktemp("arm64")


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


def test_products_and_orthogonalizations_by_neon_are_those_of_this_machine(folder):
    sources = (ROOT / "tests/metal/blas.cpp", *(NATIVE / "ops" / name for name in PRODUCTS))
    assert_products(program(folder / "products", sources))


def test_every_update_rule_has_the_bits_of_this_machine(threads):
    here = runner([str(build("here", "-O3"))])
    assert threads("digest") == here("digest")


@pytest.mark.parametrize("mode", ["lossless", "cas"])
def test_three_threads_lose_no_update_under_locks_or_compare_and_swap(threads, mode):
    lost, _, all_of_them = threads("count", WRITE_MODES[mode], 60).split()
    assert int(lost) == 0
    assert int(all_of_them) > 10**6


def test_threads_see_marks_and_every_ticket_once(folder):
    litmus = runner(cross.litmus(folder))
    _, mixed = map(int, litmus("marks", 2_000).split())
    assert mixed == 0, "a copy between equal marks is of one write"
    assert litmus("ledger", 20_000).split() == ["0", "20000"], "a small ring"
