"""What is known to be wrong with a system or a version is found, and says what to do."""

import platform
from dataclasses import replace

import pytest

from mlxhog.base import machine
from mlxhog.base.machine import Machine
from mlxhog.doctor import checks
from mlxhog.doctor.checks import CheckResult
from mlxhog.errors import EnvironmentLacks

MAC = Machine("macos", "arm64", 10, 8 << 30, "Apple M4 Pro", frozenset({"mlx", "torch"}))
GOOD = {"page_bytes": 16_384, "versions": {"mlx": "0.32.4", "torch": "2.13.0"}}


def by_name(here, facts, **environ):
    return {check.name: check for check in checks.check_facts(here, facts, environ)}


@pytest.fixture
def mac(monkeypatch):
    monkeypatch.setattr(platform, "mac_ver", lambda: ("26.1", ("", "", ""), "arm64"))
    return MAC


def test_a_good_mac_passes(mac):
    assert {check.result for check in by_name(mac, GOOD).values()} == {CheckResult.PASS}


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("page size", {"page_bytes": 4096}, "4096 bytes"),
        ("mlx", {"versions": {"mlx": "0.32.3", "torch": "2.13.0"}}, "0.32.3"),
        ("torch", {"versions": {"mlx": "0.32.4", "torch": "2.9.1+cpu"}}, "2.9.1+cpu"),
    ],
)
def test_what_is_too_old_or_other_fails_with_a_consequence(mac, name, change, message):
    check = by_name(mac, {**GOOD, **change})[name]
    assert (check.result, check.found) == (CheckResult.FAIL, message)
    assert check.consequence


def test_torch_that_adds_long_sums_wrong_is_warned_of(mac):
    old = replace(mac, chip="Apple M2 Max")
    check = by_name(old, GOOD)["torch's long sums"]
    assert (check.result, check.found) == (CheckResult.WARN, "torch 2.13.0 on an Apple M2 Max")
    assert "mlxhog splits such sums" in check.consequence
    newer = {**GOOD, "versions": {"mlx": "0.32.4", "torch": "2.14.1"}}
    assert by_name(old, newer)["torch's long sums"].result == CheckResult.PASS


def test_a_framework_that_is_not_installed_is_absent(mac):
    facts = {**GOOD, "versions": {"mlx": "0.33.0", "torch": "not installed"}}
    assert by_name(mac, facts)["torch"].result == CheckResult.ABSENT


def test_spinning_gpu_fences_are_refused(mac):
    check = by_name(mac, GOOD, MLX_METAL_FAST_SYNCH="1")["MLX_METAL_FAST_SYNCH"]
    assert check.result == CheckResult.FAIL
    assert "unset it" in check.consequence


def test_an_intel_python_on_apple_silicon_is_told(mac):
    check = by_name(replace(mac, translated=True), GOOD)["Rosetta"]
    assert check.result == CheckResult.FAIL
    assert "install one for Apple silicon" in check.consequence


def test_an_old_macos_is_told(mac, monkeypatch):
    monkeypatch.setattr(platform, "mac_ver", lambda: ("13.6", ("", "", ""), "arm64"))
    assert by_name(mac, GOOD)["macOS"].result == CheckResult.FAIL


def test_this_machine_is_described_in_plain_values():
    here = checks.collect_facts(machine.here())
    assert here["cores"] >= 1
    assert here["memory_bytes"] > 1 << 28
    assert set(here["versions"]) == {"mlxhog", "mlx", "torch", "numpy"}


@pytest.mark.slow
def test_shared_memory_here_keeps_what_a_killed_child_wrote():
    large, killed = checks.check_shared_memory()
    assert large.result in (
        CheckResult.PASS,
        CheckResult.WARN,
    )  # WARN: a container with little /dev/shm
    assert "mode 0600, without a name" in large.found
    assert killed.result == CheckResult.PASS


def test_a_machine_without_shared_memory_cannot_train(monkeypatch):
    def refuse(nbytes):
        raise EnvironmentLacks("there is none")

    monkeypatch.setattr(checks.segment, "create", refuse)
    check = checks._large()
    assert (check.result, check.found) == (CheckResult.FAIL, "there is none")
