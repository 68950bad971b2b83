"""What mlxhog learns of a Mac: cores, memory, Rosetta, its own size."""

import json
import sys

import pytest

from mlxhog.errors import EnvironmentLacks
from mlxhog.machine import darwin, machine
from mlxhog.machine.workers import resolve_workers
from tests.machine.test_workers import mac
from tests.macos.simulation import linux_only, simulated

HERE = """
import json
from dataclasses import asdict
from mlxhog.machine import machine
found = machine.here()
print(json.dumps({**asdict(found), "frameworks": sorted(found.frameworks)}))
"""


@linux_only
def test_cores_are_the_performance_cores():
    result = json.loads(simulated(HERE, FAKE_PERFORMANCE_CORES=3, FAKE_CORES=11))
    assert (result["system"], result["cores"], result["chip"]) == ("macos", 3, "Apple M2 Pro")


@linux_only
def test_on_a_mac_without_efficiency_cores_all_cores_count():
    assert json.loads(simulated(HERE, FAKE_PERFORMANCE_CORES="", FAKE_CORES=6))["cores"] == 6


@linux_only
def test_memory_is_what_the_kernel_says_and_available_less_than_all_of_it():
    code = "from mlxhog.arena.process import available_bytes; print(available_bytes())"
    available = int(simulated(code))
    assert 0 < available < json.loads(simulated(HERE))["memory_bytes"]
    assert available % 16_384 == 0


@linux_only
def test_rosetta_is_noticed():
    assert json.loads(simulated(HERE, FAKE_ROSETTA=1))["translated"]
    assert not json.loads(simulated(HERE))["translated"]


def test_a_translated_python_is_refused_with_the_way_out():
    translated = machine.Machine(**{**vars(mac()), "translated": True})
    with pytest.raises(EnvironmentLacks, match="install an arm64 Python"):
        resolve_workers("auto", machine=translated)


@linux_only
def test_the_resident_set_is_counted_in_bytes():
    code = "from mlxhog.training.worker import resident_bytes; print(resident_bytes())"
    assert 5 << 20 < int(simulated(code)) < 5 << 30


class Silent:
    """A libSystem that knows no setting and fails every question."""

    def __getattr__(self, name):
        def call(*arguments):
            return -1

        setattr(self, name, call)
        return call


def test_a_kernel_that_does_not_answer_is_no_error(monkeypatch):
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr(darwin, "_system", Silent)
    assert darwin.sysctl("hw.memsize") is None
    assert darwin.sysctl_text("machdep.cpu.brand_string") == ""
    assert darwin.performance_cores() == 1
    assert darwin.available_bytes() == 0
    assert not darwin.translated()
    assert not darwin.ask_for_performance_cores()


@pytest.mark.skipif(sys.platform == "darwin", reason="this is macOS")
def test_elsewhere_nothing_of_macos_is_asked():
    assert darwin.sysctl("hw.memsize") is None
    assert darwin.available_bytes() == 0


@pytest.mark.macos
@pytest.mark.skipif(sys.platform != "darwin", reason="not macOS")
def test_this_mac_answers():
    assert darwin.memory_bytes() > 1 << 30
    assert 0 < darwin.available_bytes() < darwin.memory_bytes()
    assert darwin.performance_cores() >= 1
    assert darwin.sysctl_text("machdep.cpu.brand_string")
    assert darwin.ask_for_performance_cores()
