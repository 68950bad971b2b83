"""Sides compute in processes of their own, and what goes wrong there is said."""

import os
from dataclasses import dataclass, replace

import numpy as np
import pytest

from mlxhog.errors import ConfigError, WorkerFailed
from mlxhog.models.families import param_spec
from mlxhog.parity import optimizers, tolerances
from mlxhog.parity.compute import compare_sides
from mlxhog.parity.subject import ParitySide, ParitySubject
from tests.models.sample import batch, config, perturbed_params

NUMPY = ParitySide("numpy", "numpy")
MLX = ParitySide("mlx:cpu", "mlx:cpu", "native")
EVERY = (
    NUMPY,
    ParitySide("torch:cpu", "torch:cpu", "native"),
    ParitySide("torch:cpu+reference", "torch:cpu", "reference"),
    MLX,
    ParitySide("mlx:cpu+reference", "mlx:cpu", "reference"),
)


def quiet(side, step):
    """No output."""


def failures(result):
    return [f"{row.a} {row.b} {row.what}" for row in result.rows if not row.ok]


@pytest.mark.slow
@pytest.mark.usefixtures("sides_here")
def test_every_backend_and_form_reads_the_same_rows_of_tables():
    tables = {"ngram_orders": (2, 4), "ngram_dim": 4, "ngram_rows": 256}
    subject = small(reset_at_document_boundaries=True, bos_token_id=1, **tables)
    comparison = compare_sides(subject, EVERY, quiet)
    assert comparison.ok, failures(comparison)
    compared = {row.what for row in comparison.rows}
    assert {"grad/ngrams.table_4", "grad/ngrams.weight", "stepwise/logits"} <= compared


def small(**changes):
    cfg = config(**changes)
    tokens, targets = batch(cfg, 2, 9, seed=1)
    fixed, params = {"tokens": tokens, "targets": targets}, perturbed_params(cfg, 1)
    return ParitySubject(title="small", cfg=cfg, steps=2, inputs=params, fixed=fixed)


@pytest.mark.slow
@pytest.mark.usefixtures("sides_here")
@pytest.mark.parametrize(
    ("name", "first"),
    [("lm_head.weight", "logits"), ("backbone.blocks.1.norm_ffn.weight", "hidden/2")],
)
def test_a_perturbed_parameter_shows_where_it_is_used_first(name, first):
    comparison = compare_sides(small(), [NUMPY, MLX], quiet, perturb=name)
    assert not comparison.ok
    assert comparison.first_bad is not None
    assert (comparison.first_bad.what, comparison.first_bad.a) == (first, "mlx:cpu")


@pytest.mark.slow
def test_a_perturbed_parameter_that_no_comparison_shows_is_a_failure():
    subject = small()
    inputs = subject.inputs | {"unused": np.ones(3, np.float32)}
    unused = replace(subject, steps=0, inputs=inputs)
    comparison = compare_sides(unused, [NUMPY, NUMPY_TWICE], quiet, perturb="unused")
    assert comparison.missed
    assert not comparison.ok


NUMPY_TWICE = ParitySide("numpy again", "numpy")


def one_gradient(seed):
    spec = param_spec(config())
    rng = np.random.default_rng(seed)
    return {name: rng.normal(0, 0.1, one.shape).astype(np.float32) for name, one in spec.items()}


def worst_steps():
    """How far our steps are from the formula, by rule, all of them along three given gradients."""
    steps = optimizers.ours(config(), small().inputs, lambda params, step: one_gradient(step), 3)
    return {rule: max(float(off[0]) for off in apart.values()) for rule, _, apart in steps}


def test_our_steps_are_what_the_formula_makes_of_the_same_gradients():
    assert max(worst_steps().values()) < tolerances.STEP


@pytest.mark.parametrize(
    ("name", "wrong", "rule"),
    [("MOMENTUM", 0.9001, "momentum"), ("EPS", 1.01e-2, "adamw"), ("BETA2", 0.9501, "adamw")],
)
def test_a_slightly_wrong_constant_of_an_optimizer_is_found(name, wrong, rule, monkeypatch):
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


def test_a_child_that_dies_is_named_with_its_last_words():
    subject = ParitySubject(title="deadly", cfg=Deadly())
    with pytest.raises(WorkerFailed, match="numpy cannot compute it: the process ended .*SIGABRT"):
        compare_sides(subject, [NUMPY, NUMPY_TWICE], quiet)


def test_an_error_in_a_child_is_named_with_its_side():
    odd = ParitySide("torch:cpu", "torch:cpu", "metal")
    with pytest.raises(ConfigError, match="torch:cpu cannot compute it: kernels is"):
        compare_sides(small(), [NUMPY, odd], quiet)


def test_one_side_alone_has_nothing_to_be_compared_with():
    with pytest.raises(ConfigError, match="numpy is the only side"):
        compare_sides(small(), [NUMPY], quiet)
