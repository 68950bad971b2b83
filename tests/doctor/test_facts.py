"""What is known to be wrong with a system or a version is found, and says what to do."""

import platform
from dataclasses import replace

import pytest

from mlxhog.base.machine import Machine
from mlxhog.doctor import checks
from mlxhog.doctor.checks import CheckResult
from tests.pairs import each_of

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


OLD_TORCH = {"mlx": "0.32.4", "torch": "2.9.1+cpu"}
M2 = replace(MAC, chip="Apple M2 Max")


@each_of(
    ("name", "here", "facts", "environ", "result", "words"),
    [
        ("page size", MAC, {"page_bytes": 4096}, {}, "FAIL", "4096 bytes"),
        ("torch", MAC, {"versions": OLD_TORCH}, {}, "FAIL", "2.9.1+cpu"),
        ("torch", MAC, {"versions": OLD_TORCH | {"torch": "not installed"}}, {}, "absent", ""),
        ("torch's long sums", M2, {}, {}, "WARN", "mlxhog splits such sums"),
        ("torch's long sums", M2, {"versions": OLD_TORCH | {"torch": "2.14.1"}}, {}, "PASS", ""),
        ("MLX_METAL_FAST_SYNCH", MAC, {}, {"MLX_METAL_FAST_SYNCH": "1"}, "FAIL", "unset it"),
        ("Rosetta", replace(MAC, translated=True), {}, {}, "FAIL", "for Apple silicon"),
    ],
)
def test_what_is_known_to_be_wrong_is_found_with_its_consequence(
    mac, name, here, facts, environ, result, words
):
    check = by_name(here, {**GOOD, **facts}, **environ)[name]
    assert check.result == result
    assert words in f"{check.found} {check.consequence}"
    assert bool(check.consequence) == (result in ("FAIL", "WARN"))


@pytest.mark.slow
def test_shared_memory_here_keeps_what_a_killed_child_wrote():
    large, killed = checks.check_shared_memory()
    assert large.result in (
        CheckResult.PASS,
        CheckResult.WARN,
    )  # WARN: a container with little /dev/shm
    assert "mode 0600, without a name" in large.found
    assert killed.result == CheckResult.PASS
