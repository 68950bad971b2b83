"""What mlxhog learns of a Mac: cores, memory, Rosetta, its own size."""

import json
import re
import sys

import pytest

from mlxhog.base import darwin, machine
from mlxhog.base.resources import available_memory
from mlxhog.base.workers import resolve_workers
from mlxhog.errors import EnvironmentLacks
from tests.base.test_workers import mac
from tests.macos.simulation import linux_only, simulated, with_caffeinate

HERE = """
import json
from dataclasses import asdict
from mlxhog.base import machine
from mlxhog.base.resources import available_memory
from mlxhog.doctor.checks import collect_facts
from mlxhog.training.worker.loop import resident_bytes
found = machine.here()
more = {"available": available_memory(), "resident": resident_bytes()}
more["efficiency_cores"] = collect_facts(found)["efficiency_cores"]
print(json.dumps({**asdict(found), **more}, default=sorted))  # the frameworks are a set
"""


@pytest.mark.slow
@linux_only
@pytest.mark.parametrize(
    ("chip", "levels", "cores"),
    [
        ("Apple M5 Max", "Super:6,Performance:12,Efficiency:4", 18),
        ("Apple M1", "", 24),  # names no kinds of cores
    ],
)
def test_cores_are_all_but_the_efficiency_cores(chip, levels, cores):
    result = json.loads(simulated(HERE, FAKE_LEVELS=levels, FAKE_CORES=24, FAKE_CHIP=chip))
    assert (result["system"], result["cores"], result["chip"]) == ("macos", cores, chip)
    assert result["efficiency_cores"] == sum(map(int, re.findall("Efficiency:(.)", levels)))
    assert not result["translated"]


@pytest.mark.slow
@linux_only
def test_memory_is_what_the_kernel_says_the_resident_set_in_bytes_and_rosetta_is_noticed():
    result = json.loads(simulated(HERE, FAKE_ROSETTA=1))
    n_bytes, cause, way_out = result["available"]  # all but the wired memory
    assert (n_bytes, way_out) == (2 << 30, "quit other programs")
    assert cause == f"this Mac has {2 << 30:,} available"
    assert result["memory_bytes"] > 1 << 30
    assert 5 << 20 < result["resident"] < 5 << 30
    assert result["translated"]


def test_a_translated_python_is_refused_with_the_way_out():
    translated = machine.Machine(**{**vars(mac()), "translated": True})
    with pytest.raises(EnvironmentLacks, match="install an arm64 Python"):
        resolve_workers("auto", machine=translated)


AWAKE = """
import os, sys, time
from pathlib import Path
from mlxhog.base import darwin
log = Path(sys.argv[1])
with darwin.awake() as note:
    while note == "" and not log.exists():
        time.sleep(0.01)
    print(note or log.read_text().split() == ["-i", "-w", str(os.getpid())])
try:
    print(os.waitpid(-1, 0))
except ChildProcessError:
    print("no child")
"""


@linux_only
def test_a_mac_stays_awake_during_the_block_and_no_longer_or_says_so(tmp_path):
    log, path = with_caffeinate(tmp_path)
    assert simulated(AWAKE, log, PATH=path).splitlines() == ["True", "no child"]
    note, child = simulated(AWAKE, tmp_path / "none").splitlines()
    assert "may fall asleep" in note
    assert "caffeinate cannot start" in note
    assert child == "no child"


@pytest.mark.macos
@pytest.mark.skipif(sys.platform != "darwin", reason="not macOS")
def test_this_mac_answers():
    assert 0 < available_memory().n_bytes < machine.here().memory_bytes
    assert darwin.fast_cores() >= 1
    assert darwin.sysctl_text("machdep.cpu.brand_string")
    assert darwin.ask_for_performance_cores()
