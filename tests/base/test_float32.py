"""TF32 of MLX: off where numbers are promised, named where it acts, a user's value is kept."""

import os
from dataclasses import replace

import pytest

from mlxhog.arena.child import Child
from mlxhog.base import float32
from mlxhog.base.float32 import VARIABLE
from tests.arena import children
from tests.base.test_workers import linux, mac

GPU = ["mlx:gpu", "mlx:cpu"]


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    """Put back afterwards, also if a test sets it."""
    monkeypatch.setenv(VARIABLE, "0")
    monkeypatch.delenv(VARIABLE)


def test_a_promise_switches_it_off_and_keeps_the_value_of_a_user():
    float32.promise()
    assert os.environ[VARIABLE] == "0"
    assert float32.user_value() is None
    os.environ[VARIABLE] = "1"
    float32.promise()
    assert (os.environ[VARIABLE], float32.user_value()) == ("1", "1")
    assert "MLX_ENABLE_TF32=1 is set" in float32.user_note()
    assert "unset MLX_ENABLE_TF32" in float32.user_note()


def test_it_acts_on_the_gpu_of_an_m5_unless_numbers_are_promised():
    m5 = mac("Apple M5 Pro")
    assert float32.multiplies_as_tf32(GPU, m5, promised=False)
    assert "MLX_ENABLE_TF32=0 switches that off" in float32.note(GPU, m5, promised=False)
    for names, machine, promised in (
        (GPU, m5, True),
        (["mlx:cpu", "torch:mps"], m5, False),
        (GPU, mac("Apple M4 Max"), False),
        (GPU, replace(m5, chip="Apple A18 Pro"), False),
        (["mlx:cpu"], linux(), False),
    ):
        assert not float32.multiplies_as_tf32(names, machine, promised=promised)
        assert float32.note(names, machine, promised=promised) == ""


def test_a_value_of_the_user_decides_and_is_named(monkeypatch):
    m5 = mac("Apple M5")
    for off in ("0", "", "off", " 0"):  # as MLX reads them
        monkeypatch.setenv(VARIABLE, off)
        assert not float32.multiplies_as_tf32(GPU, m5, promised=False)
        assert float32.user_value() is None
    monkeypatch.setenv(VARIABLE, "1")
    assert "MLX_ENABLE_TF32=1 is set" in float32.note(GPU, m5, promised=True)


def test_a_child_of_doctor_or_parity_has_it_off():
    with Child(promises=True) as child:
        assert child.call(children.WAIT_S, children.variable, VARIABLE) == "0"
