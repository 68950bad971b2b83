"""Ways between host memory and the frameworks: what works here, and failures that are told."""

from __future__ import annotations

import pytest

from mlxhog.doctor import frameworks
from mlxhog.doctor.checks import Result
from mlxhog.doctor.frameworks import Probe
from mlxhog.machine import machine
from mlxhog.machine.machine import Machine


@pytest.mark.usefixtures("no_apple_gpu")
def test_the_cpu_ways_work_and_those_of_a_gpu_are_absent_without_one() -> None:
    found = {check.name: check for check in frameworks.check_imports(machine.here(), quick=True)}
    for name in (
        "NumPy view of an MLX array",
        "refresh of a flat MLX array",
        "torch.from_numpy",
        "DLPack from MLX to torch on the CPU",
    ):
        assert found[name].result == Result.PASS, found[name]
    for name in (
        "mx.asarray(host, copy=False)",
        "donation of imported memory",
        "import of an unaligned address",
        "DLPack from MLX to torch on MPS",
    ):
        assert found[name].result == Result.ABSENT
        assert "no Apple GPU" in found[name].found
        assert found[name].expected


def test_a_machine_without_frameworks_has_nothing_to_try() -> None:
    bare = Machine("linux", "x86_64", 2, 8 << 30, "", frozenset())
    assert frameworks.check_imports(bare, quick=True) == []


def test_a_way_that_fails_names_what_follows_and_the_next_is_tried() -> None:
    broken, good = frameworks._run_probes(
        [
            Probe("memory of MLX", "no_such_module:examine"),
            Probe("memory of torch", "probes_torch:examine"),
        ]
    )[:2]
    assert (broken.name, broken.result) == ("memory of MLX", Result.FAIL)
    assert "ModuleNotFoundError" in broken.found
    assert "keep to the defaults" in broken.consequence
    assert good.result == Result.PASS
