"""The relaxed-atomic build of the kernels is free of data races and gives the same bits.

The kernels' contract is between processes, which the C++ memory model and the thread sanitizer know
nothing of. MLXHOG_ATOMIC_KERNELS=1 makes the same loops legal between threads of one program, so
the sanitizer can check locks and walks.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from mlxhog.optim.updates import WRITE_MODES
from tests import kept

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [
    "elements.cpp", "moments.cpp", "cas_add.cpp", "locks.cpp", "process_life.cpp", "turns.cpp",
    "../ops/pool.cpp",
]  # fmt: skip
OPTIONS = ["-std=c++20", "-O2", "-g1", "-ffp-contract=off", "-fno-math-errno", "-pthread"]
WATCHED = ["-fsanitize=thread", "-O1"]
ATOMIC = ("atomic", *WATCHED, "-DMLXHOG_ATOMIC_KERNELS=1")
PLAIN = ("plain", "-O3")  # the kernels as the wheel has them
RACE_FOUND = 66  # the sanitizer's exit code

no_compiler = pytest.mark.skipif(kept.COMPILER is None, reason="no C++ compiler")
pytestmark = [pytest.mark.slow, no_compiler]


def build(name, *options):
    """threads.cpp with the kernels' sources."""
    folder = ROOT / "metal/native/updates"
    sources = [ROOT / "tests/metal/threads.cpp", *(folder / source for source in SOURCES)]
    return kept.linked(name, sources, *OPTIONS, f"-I{folder}", *options)


def finish(*command):
    """Run a program to its end, or to the first race."""
    return subprocess.run(
        [str(part) for part in command],
        env={**os.environ, "TSAN_OPTIONS": f"halt_on_error=1:exitcode={RACE_FOUND}"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.fixture(scope="module")
def launcher(tmp_path_factory):
    """What to put before a sanitized program; skips where the sanitizer cannot run at all.

    Some of its versions do not survive some kernels' address randomization, which `setarch -R`
    switches off, where that is permitted.
    """
    directory = tmp_path_factory.mktemp("threads")
    probe, source = directory / "probe", directory / "probe.cpp"
    source.write_text("int main() { return 0; }\n")
    if finish(str(kept.COMPILER), "-fsanitize=thread", source, "-o", probe).returncode != 0:
        pytest.skip("this compiler has no thread sanitizer")
    for prefix in ([], ["setarch", "-R"]):
        if (not prefix or shutil.which(prefix[0])) and finish(*prefix, probe).returncode == 0:
            return prefix
    pytest.skip("the thread sanitizer does not run on this system")


@pytest.mark.parametrize("work", ["race", "striped"])
@pytest.mark.parametrize("mode", ["lossless", "racy", "cas"])
def test_no_data_race_in_the_relaxed_atomic_build(launcher, mode, work):
    ended = finish(*launcher, build(*ATOMIC), work, str(WRITE_MODES[mode]))
    assert ended.returncode == 0, ended.stderr[:4000]
    assert "WARNING" not in ended.stderr


def test_the_sanitizer_sees_the_races_of_the_plain_build(launcher):
    ended = finish(*launcher, build("watched", *WATCHED), "race", str(WRITE_MODES["racy"]))
    assert ended.returncode == RACE_FOUND
    assert "data race" in ended.stderr


@pytest.mark.parametrize("mode", ["lossless", "cas"])
def test_shared_moments_lose_none_of_a_hundred_million_updates(mode):
    ended = finish(build(*PLAIN), "count", str(WRITE_MODES[mode]), "2200")
    lost, _, all_of_them = ended.stdout.split()
    assert (int(lost), ended.returncode) == (0, 0)
    assert int(all_of_them) > 10**8


def test_both_builds_give_the_same_bits_with_one_worker(launcher):
    watched = finish(*launcher, build(*ATOMIC), "digest").stdout
    assert len(watched) == 17
    assert finish(build(*PLAIN), "digest").stdout == watched
