"""TF32 of MLX: off where numbers are promised, named where it acts, a user's value is kept."""

import os

import pytest

from mlxhog.arena.child import Child
from mlxhog.base import float32
from mlxhog.base.float32 import VARIABLE
from tests.arena import children
from tests.base.test_workers import linux, mac
from tests.pairs import each_of

GPU, M5 = ["mlx:gpu", "mlx:cpu"], mac("Apple M5 Pro")


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    """Put back afterwards, also if a test sets it."""
    monkeypatch.setenv(VARIABLE, "0")
    monkeypatch.delenv(VARIABLE)


def test_a_promise_switches_it_off_in_children_too_and_keeps_the_value_of_a_user():
    with Child(promises=True) as child:
        assert child.call(children.WAIT_S, children.variable, VARIABLE) == "0"
    os.environ[VARIABLE] = "1"
    float32.disable_tf32()
    assert os.environ[VARIABLE] == "1"
    assert "MLX_ENABLE_TF32=1 is set" in float32.user_note()
    assert "unset MLX_ENABLE_TF32" in float32.user_note()


@each_of(
    ("backends", "machine", "promised", "value", "why"),
    [
        (GPU, M5, False, None, "MLX's default here"),
        (GPU, M5, True, "1", "MLX_ENABLE_TF32=1 is set"),
        (GPU, M5, True, None, ""),
        *((GPU, M5, False, off, "") for off in ("0", "off")),  # as MLX reads them
        (["mlx:cpu", "torch:mps"], M5, False, None, ""),
        (GPU, mac("Apple M4 Max"), False, None, ""),
        (["mlx:cpu"], linux(), False, None, ""),
    ],
)
def test_it_is_named_where_it_acts_and_by_what(backends, machine, promised, value, why):
    os.environ.pop(VARIABLE, None)
    if value is not None:
        os.environ[VARIABLE] = value
    note = float32.note(backends, machine, disabled=promised)
    assert why in note
    assert bool(note) == bool(why)
    assert bool(float32.user_note()) == (value == "1")
