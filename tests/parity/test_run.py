"""Subjects, sides in processes of their own, optimizers; what is wrong is found and said."""

import os
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from mlxhog.backends import probes
from mlxhog.conformance import compare, optimizers, tolerances
from mlxhog.conformance.compute import compare_all, compare_sides
from mlxhog.conformance.engines import FrameworkEngine, NumPyEngine
from mlxhog.conformance.subject import (
    ParitySide,
    ParitySubject,
    check_memory,
    choose,
    open_subject,
    perturbed,
)
from mlxhog.errors import ConfigError, EnvironmentLacks, WorkerFailed
from mlxhog.models.families import param_spec
from tests.backends.imprecise import FAULTS
from tests.models.sample import batch, config, perturbed_params, v1_config
from tests.pairs import each_of
from tests.parity.planted import wrong_sign

NUMPY, NUMPY_TWICE = ParitySide("numpy", "numpy"), ParitySide("numpy again", "numpy")
MLX = ParitySide("mlx:cpu", "mlx:cpu", "native")
MLX_PLAIN = ParitySide("mlx:cpu+eager", "mlx:cpu", "eager")
SINGLE = ParitySide("torch:mps", "torch:mps")
TORCH_PLAIN = ParitySide("torch:cpu+eager", "torch:cpu", "eager")
EVERY = (NUMPY, ParitySide("torch:cpu", "torch:cpu", "native"), TORCH_PLAIN, MLX, MLX_PLAIN)

comparison_of = partial(compare_sides, tell=lambda side, step: None)


def small(B=2, S=9, steps=2, seed=1, **changes):
    cfg = config(**changes)
    tokens, targets = batch(cfg, B, S, seed=seed)
    fixed, params = {"tokens": tokens, "targets": targets}, perturbed_params(cfg, seed)
    return ParitySubject(title="small", cfg=cfg, steps=steps, inputs=params, fixed=fixed)


def test_sides_are_chosen_by_name_and_a_model_that_is_too_large_before_anything_is_drawn():
    names = [side.name for side in choose("mlx:cpu,numpy,torch:cpu", "all")[0]]
    assert names == ["numpy", "torch:cpu", TORCH_PLAIN.name, "mlx:cpu", MLX_PLAIN.name]
    (only,), _ = choose("mlx:cpu", "eager")
    assert (only.name, only.kernels) == (MLX_PLAIN.name, "eager")
    with pytest.raises(ConfigError, match="no backend 'numpi'.*did you mean 'numpy'"):
        choose("numpi", "all")
    chosen, _ = choose("numpy,torch:cpu", "auto")
    with pytest.raises(EnvironmentLacks, match=r"7b needs about \d+ GB in 2 processes"):
        check_memory(open_subject("config", "7b", Path("runs")), chosen)


def test_a_perturbed_parameter_differs_everywhere_and_by_its_own_size():
    inputs = {"w": np.full((50, 4), 100.0, np.float32), "zero": np.zeros(9, np.float32)}
    noise = perturbed(inputs, "w", 0) - inputs["w"]
    assert 5.0 < noise.std() < 20.0
    assert perturbed(inputs, "zero", 0).all()
    with pytest.raises(ConfigError, match="no parameter 'zer'; did you mean 'zero'"):
        perturbed(inputs, "zer", 0)


@pytest.mark.slow
@pytest.mark.usefixtures("sides_here")
def test_every_backend_and_form_reads_the_same_rows_of_tables():
    tables = {"ngram_orders": (2, 4), "ngram_dim": 4, "ngram_rows": 256}
    subject = small(reset_at_document_boundaries=True, bos_token_id=1, **tables)
    comparison = comparison_of(subject, EVERY)
    assert comparison.ok, [row for row in comparison.rows if not row.ok]
    compared = {row.what for row in comparison.rows}
    assert {"grad/ngrams.table_4", "grad/ngrams.weight", "stepwise/logits"} <= compared


@pytest.mark.slow
@pytest.mark.usefixtures("sides_here")
def test_a_wrong_sign_is_found_in_a_gradient_far_smaller_than_others():
    subject = small(1, 2, steps=0, seed=2, num_hidden_layers=1)  # the head norm hides most of k
    assert comparison_of(subject, EVERY).ok
    engine = NumPyEngine()
    engine.load(subject.cfg, subject.inputs)
    _, grads = engine.differentiate(subject.fixed["tokens"], subject.fixed["targets"])
    largest = max(float(np.abs(grad).max()) for grad in grads.values())
    name = "backbone.blocks.0.mlstm_layer.k.weight"
    roundings = np.abs(grads[name]).reshape(-1) / (largest * tolerances.ROUNDING)
    place = int(np.flatnonzero((roundings > 20) & (roundings < 30))[0])
    with wrong_sign(name, place):
        row = comparison_of(subject, [NUMPY, TORCH_PLAIN]).first_bad
    assert row.what == f"grad/{name}"
    assert row.wanted == pytest.approx(-row.got, rel=0.2)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_in_the_precision_of_float32_disagrees(monkeypatch, fault):
    engine, (operator, kind) = FrameworkEngine("mlx:cpu", "eager"), FAULTS[fault]
    wrong = fault(getattr(engine.ops, operator), probes.Device("mlx", "cpu", 1))
    monkeypatch.setitem(vars(engine.ops), operator, wrong)  # `setattr` would leave a copy there
    by_side = {NUMPY.name: (dict(probes.exact()), {}), MLX_PLAIN.name: (dict(engine.probes()), {})}
    rows, _ = compare_all(small(), [NUMPY, MLX_PLAIN], by_side)
    assert kind in {row.kind for row in rows if not row.ok}


@pytest.mark.slow
def test_a_perturbed_parameter_that_no_comparison_shows_is_a_failure():
    subject = small(steps=0)
    unused = replace(subject, inputs=subject.inputs | {"unused": np.ones(3, np.float32)})
    comparison = comparison_of(unused, [NUMPY, NUMPY_TWICE], perturb="unused")
    assert comparison.missed
    assert not comparison.ok


def one_gradient(seed):
    spec = param_spec(config())
    rng = np.random.default_rng(seed)
    return {name: rng.normal(0, 0.1, one.shape).astype(np.float32) for name, one in spec.items()}


def worst_steps():
    """How far our steps are from the formula, by rule, all of them along three given gradients."""
    steps = optimizers.native_steps(
        config(), small().inputs, lambda params, step: one_gradient(step), 3
    )
    return {rule: max(float(off[0]) for off in deviation.values()) for rule, _, deviation in steps}


@pytest.mark.parametrize(
    ("name", "wrong", "rule"),
    [("MOMENTUM", 0.9001, "momentum"), ("EPS", 1.01e-2, "adamw"), ("BETA2", 0.9501, "adamw")],
)
def test_steps_are_the_formulas_and_a_slightly_wrong_constant_is_found(
    name, wrong, rule, monkeypatch
):
    assert max(worst_steps().values()) < tolerances.STEP
    right = optimizers.Formula.step

    def step(formula, grads):
        with monkeypatch.context() as patch:
            patch.setattr(optimizers, name, wrong)
            right(formula, grads)

    monkeypatch.setattr(optimizers.Formula, "step", step)
    assert [r for r, off in worst_steps().items() if off > tolerances.STEP] == [rule]


@dataclass(frozen=True)
class Deadly:
    """Ends the process that unpickles it."""

    def __reduce__(self):
        return os.abort, ()


def test_a_child_that_dies_or_fails_is_named_with_its_last_words():
    deadly = ParitySubject(title="deadly", cfg=Deadly())
    with pytest.raises(WorkerFailed, match="numpy cannot compute it: the process ended .*SIGABRT"):
        comparison_of(deadly, [NUMPY, NUMPY_TWICE])
    odd = ParitySide("torch:cpu", "torch:cpu", "metal")
    with pytest.raises(ConfigError, match="torch:cpu cannot compute it: kernels is"):
        comparison_of(small(), [NUMPY, odd])
    with pytest.raises(ConfigError, match="numpy is the only side"):
        comparison_of(small(), [NUMPY])


def one(name, actual, expected, *, pairs=None, sides=(SINGLE, NUMPY), conditions=None, **more):
    """The comparison of one tensor, or the last of some."""
    if not isinstance(expected, dict):
        actual, expected = {name: np.asarray(actual)}, {name: np.asarray(expected)}
    pairs, more = pairs or [(n, n) for n in expected], {"start": {}} | more
    *_, row = compare.tensor_rows(actual, expected, pairs, sides, conditions or {}, **more)
    return row


def test_a_row_says_how_far_apart_relative_to_what_and_where():
    expected = np.arange(60.0).reshape(5, 12)
    actual = expected.copy()
    actual[3, 8] -= 1.0
    row = one("hidden/1", actual, expected)
    assert (row.max_abs, row.where, row.got, row.wanted, row.ok) == (1, (3, 8), 43, 44, False)
    assert row.max_rel == pytest.approx(1 / 59)
    row = one("state/0/C", np.zeros((2, 3)), np.zeros((3, 2)))
    assert (row.ok, row.reason) == (False, "the shapes are (2, 3) and (3, 2)")
    for odd in (np.nan, np.inf):  # disagrees even with itself
        row = one("hidden/0", [1.0, odd, 2.0], [1.0, odd, 2.0])
        assert (row.ok, row.where, row.max_abs, row.reason) == (False, (1,), None, "not finite")


SMALL, LINE = np.array([1e-5, 3e-7, 0.0]), np.linspace(-4, 4, 50)
MOVED, START = 7.0 + np.array([0.0, 0.1, 0.2]), {"w": np.full(3, 7.0)}
SIGN, TINY = np.array([1.0, 1e-3, -0.5]), np.array([0.0, 1e-4, 2e-4])


def last_places(value, units):
    """A parameter of this value after three steps, off by some units in its last place."""
    expected = np.full(3, value, np.float32).astype(np.float64) + 1e-5
    return expected + units * np.spacing(np.float32(value)), expected


@each_of(
    ("name", "actual", "expected", "condition", "start", "ok"),
    [
        ("logits", LINE + 0.9e-4, LINE, None, {}, True),  # one ten-thousandth
        ("logits", LINE + 1.1e-4, LINE, None, {}, False),
        ("grad/w", SMALL + 1.9e-8, SMALL, None, {}, True),  # by the largest entry of the tensor
        ("grad/w", SMALL + 2.1e-8, SMALL, None, {}, False),
        ("after/sgd/w", MOVED + 1e-3, MOVED, None, START, True),  # by how far it moved
        ("after/sgd/w", MOVED + 1e-2, MOVED, None, START, False),
        ("after/sgd/w", TINY + 6e-6, TINY, 2e-3, {"w": np.zeros(3)}, True),  # steps amplify
        ("after/sgd/w", TINY + 6e-6, TINY, 1e-6, {"w": np.zeros(3)}, False),
        ("grad/w", SIGN * [1, -1, 1], SIGN, 1e-6, {}, False),  # a sign of a thousandth is seen
        *(
            ("after/sgd/w", *last_places(value, units), 0.0, {"w": np.full(3, value)}, units < 5)
            for value in (0.1, 137.9, 2e5)
            for units in (3, 7)
        ),
    ],
)
def test_a_difference_is_allowed_by_the_scale_and_the_condition_of_its_tensor(
    name, actual, expected, condition, start, ok
):
    conditions = {} if condition is None else {name: condition}
    assert one(name, actual, expected, conditions=conditions, start=start, steps=3).ok is ok


def test_every_side_meets_the_reference_and_itself_and_the_first_disagreement_is_named():
    sides = [ParitySide(name, name) for name in ("numpy", "torch:cpu", "mlx:cpu")]
    exact = {n: np.ones(1) for n in ("hidden/0", "hidden/1", "logits", "stepwise/logits")}
    wrong = exact | {"hidden/1": np.full(1, 1.1), "logits": np.full(1, 9.0)}
    computed = {"numpy": exact, "torch:cpu": exact, "mlx:cpu": wrong}
    subject = ParitySubject(title="made up", cfg=config())
    rows = list(compare.rows(subject, sides, computed, {}))
    assert {(row.a, row.b) for row in rows} == {
        ("torch:cpu", "numpy"), ("mlx:cpu", "numpy"),
        ("numpy", "numpy"), ("torch:cpu", "torch:cpu"), ("mlx:cpu", "mlx:cpu"),
    }  # fmt: skip
    itself = [row for row in rows if row.a == row.b]
    assert {(row.what, row.against) for row in itself} == {("stepwise/logits", "logits")}
    assert compare.first_bad(list(reversed(rows)), computed).what == "hidden/1"


EMULATED = [ParitySide(f"{name}:cpu", f"{name}:cpu", "metal-emulated") for name in ("torch", "mlx")]


@pytest.mark.slow
@pytest.mark.usefixtures("sides_here")
@each_of("cfg", [config(), v1_config()], ids=["large", "v1"])
def test_gradients_in_mixed_precision_agree_and_a_wrong_product_is_found(cfg):
    tokens, targets = batch(cfg, 2, 9, seed=1)
    fixed, params = {"tokens": tokens, "targets": targets}, perturbed_params(cfg, 1)
    how = {"inputs": params, "fixed": fixed, "dtype": "bfloat16"}
    subject = ParitySubject(title="small", cfg=cfg, steps=1, **how)
    comparison = comparison_of(subject, EVERY)
    assert comparison.ok, [row for row in comparison.rows if not row.ok]
    comparison = comparison_of(replace(subject, steps=0), [NUMPY, *EMULATED])
    assert comparison.ok, [row for row in comparison.rows if not row.ok]
    exact = comparison_of(replace(subject, steps=0, dtype="float32"), EVERY[:2])
    by_name = {row.what: row for row in exact.rows if row.kind == "grad"}
    mixed = [row for row in comparison.rows if row.kind == "grad" and row.a == EMULATED[0].name]
    assert any(row.max_abs > 10 * by_name[row.what].tolerance for row in mixed)
    head = next(name for name in params if "embedding" in name)
    assert not comparison_of(subject, EVERY[:2], perturb=head).ok


def test_a_condition_is_how_far_a_result_moves_when_its_inputs_are_rounded():
    def results(x):
        a, b = x["a"].astype(np.float64), x["b"].astype(np.float64)
        yield "grad/cancels", a - b
        yield "grad/adds", a + b
        yield "grad/kink", np.where(x["a"] > 1.0 + 6 * tolerances.ROUNDING, 2.0, 1.0)
        yield "after/sgd/a", a + 0.25  # its way counts, not where it began

    inputs = {"a": np.full(50, 1.0, np.float32), "b": np.full(50, 0.9999, np.float32)}
    conditions = tolerances.measure(dict(results(inputs)), inputs, results, {})
    assert conditions["grad/adds"] < 1e-7
    assert 1e-4 < conditions["grad/cancels"] < 1e-2
    assert conditions["grad/kink"] == 1.0 / 16.0
    assert conditions["after/sgd/a"] < 1e-12
    moved = tolerances.rounded(inputs, 1)["a"]
    assert 0 < np.abs(moved - 1).max() <= 2.0**-24 * 1.001


def test_a_result_without_a_condition_of_its_own_has_that_of_what_it_stands_for():
    conditions = {"grad/w": 1.0, "logits": 3.0, "state/n": 4.0}
    results = {
        "after/adamw/w": 1.0, "stepwise/logits": 3.0, "stepwise/state/n": 4.0, "hidden/0": None,
    }  # fmt: skip
    assert {name: tolerances.condition_of(name, conditions) for name in results} == results
    for side, ok in ((SINGLE, True), (NUMPY, False)):
        known, pairs = {"logits": 1e-5}, [("stepwise/logits", "logits")]
        actual, expected = {"stepwise/logits": np.array([5.001])}, {"logits": np.array([5.0])}
        row = one("", actual, expected, pairs=pairs, conditions=known, sides=(side, NUMPY))
        assert row.ok is ok
