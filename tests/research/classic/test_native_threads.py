"""No strategy of the classic problems has a data race, as threads of one program.

As in tests/metal/test_thread_sanitizer.py, whose compiler and launcher these are: the promise is
between processes, and the relaxed-atomic build makes the same loops legal between threads.
"""

from pathlib import Path

import pytest

from tests import kept
from tests.metal import test_thread_sanitizer as sanitizer

ROOT = sanitizer.ROOT / "metal" / "native"
SOURCES = ["classic/dense.cpp", "updates/locks.cpp", "updates/process_life.cpp"]
KINDS = ("racy", "lossless", "hot_cold", "aig", "round_robin", "sync")
EXAMPLES = 3 * 5 * 200

launcher = sanitizer.launcher  # a fixture
pytestmark = sanitizer.pytestmark


def build(name, *options):
    files = [Path(__file__).with_name("threads.cpp"), *(ROOT / source for source in SOURCES)]
    usual = (*sanitizer.OPTIONS, f"-I{ROOT / 'classic'}", *sanitizer.WATCHED)
    return kept.linked(f"classic-{name}", files, *usual, *options)


@pytest.mark.parametrize(
    ("kind", "rows"),
    [(kind, "sparse") for kind in KINDS]
    + [(kind, "dense") for kind in KINDS if kind != "hot_cold"],
)
def test_no_data_race_in_the_relaxed_atomic_build(launcher, kind, rows):
    program = build("atomic", "-DMLXHOG_ATOMIC_KERNELS=1")
    ended = sanitizer.finish(*launcher, program, kind, rows)
    assert ended.returncode == 0, ended.stderr[:4000]
    assert "WARNING" not in ended.stderr
    assert int(ended.stdout) == EXAMPLES


def test_the_sanitizer_sees_the_races_of_the_plain_build_on_dense_rows(launcher):
    ended = sanitizer.finish(*launcher, build("plain"), "racy", "dense")
    assert ended.returncode == sanitizer.RACE_FOUND
    assert "data race" in ended.stderr
