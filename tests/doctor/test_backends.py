"""A gradient of every backend: right, measured, and the same again; children stand in for a GPU."""

import numpy as np
import pytest

from mlxhog.arena.child import Failed
from mlxhog.base.load import Load
from mlxhog.base.machine import Machine
from mlxhog.base.workers import BACKENDS
from mlxhog.doctor import backends
from mlxhog.doctor.checks import CheckResult

QUIET, BUSY = Load(0.0, 2, 0.4), Load(1.8, 2, 9.3)
MAC = Machine("macos", "arm64", 10, 8 << 30, "Apple M4", frozenset({"mlx", "torch"}))
RIGHT = {"loss": np.array(5.5), "w": np.array([1.0, -2.0])}

Form = tuple[str, str]


class Children:
    """Children that compute RIGHT and a speed, unless told otherwise by (backend, form)."""

    def __init__(self):
        self.gradients = {}
        self.failing = set()
        self.speeds = []

    def __call__(self, **_):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def start(self, lane, function, *form):
        self.form = form[0], form[1]

    def take(self, lane, timeout_s):
        if self.form in self.failing:
            raise Failed("the GPU is gone")
        planned = self.gradients.get(self.form)
        return planned.pop(0) if planned else RIGHT

    def call(self, limit_s, function, name, form, n):
        self.speeds.append((name, form))
        return 300.0 if form == "metal" else 200.0


@pytest.fixture
def children(monkeypatch):
    fake = Children()
    monkeypatch.setattr(backends, "Child", fake)
    monkeypatch.setattr(backends, "reference", lambda: RIGHT)
    return fake


def results(measured):
    return {check.name: check.result for check in measured.checks}


def test_a_gpu_is_measured_with_both_forms_where_the_kernels_agreed(children):
    measured = backends.check_backends(MAC, 4, {"mlx"})
    assert children.speeds == [
        ("mlx:gpu", "reference"),
        ("mlx:gpu", "metal"),
        ("mlx:cpu", "auto"),
        ("torch:mps", "reference"),
        ("torch:cpu", "auto"),
    ]
    assert measured.tokens_per_s == dict.fromkeys(BACKENDS, 200.0)
    assert measured.metal == {"mlx:gpu": 300.0}
    assert measured.repeats == {
        "mlx:gpu": {"reference": True, "metal": True},
        "torch:mps": {"reference": True},
    }
    assert set(results(measured).values()) == {CheckResult.PASS}


@pytest.mark.parametrize(
    ("form", "result"), [("metal", CheckResult.WARN), ("reference", CheckResult.FAIL)]
)
def test_a_form_that_fails_on_a_gpu_is_told_with_what_follows(children, form, result):
    children.failing = {("mlx:gpu", form)}
    measured = backends.check_backends(MAC, 4, {"mlx"})
    (bad,) = [check for check in measured.checks if check.result != CheckResult.PASS]
    assert (bad.result, bad.found) == (result, "the GPU is gone")
    assert "mlx:gpu" in bad.consequence
    assert ("mlx:gpu" in measured.tokens_per_s) == (form == "metal")
    assert ("mlx:gpu" in measured.metal) == (form == "reference")
    assert form not in measured.repeats["mlx:gpu"]


@pytest.mark.parametrize("bad", [[1.0, -2.01], [np.nan, -2.0], [1.0, np.inf], [0.0, 0.0]])
def test_a_wrong_gradient_fails_and_names_the_parameter(children, bad):
    wrong = {**RIGHT, "w": np.array(bad)}
    children.gradients = {("torch:cpu", "auto"): [wrong]}
    measured = backends.check_backends(MAC, 4)
    check = next(each for each in measured.checks if each.result == CheckResult.FAIL)
    assert check.name == "backend torch:cpu"
    assert "(w)" in check.found
    assert "mlxhog parity" in check.consequence
    assert "torch:cpu" not in measured.tokens_per_s


def test_a_form_whose_bits_differ_is_not_recorded(children):
    other = {**RIGHT, "w": RIGHT["w"] * (1 + 1e-6)}
    children.gradients = {("torch:mps", "reference"): [RIGHT, other]}
    measured = backends.check_backends(MAC, 4)
    assert measured.repeats == {"mlx:gpu": {"reference": True}, "torch:mps": {"reference": False}}
    (bad,) = [check for check in measured.checks if check.result != CheckResult.PASS]
    assert bad.result == CheckResult.WARN
    assert "--determinism record" in bad.consequence
