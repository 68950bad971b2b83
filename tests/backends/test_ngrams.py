"""Models with tables of n-grams: both backends next to the reference, whole and token by token."""

from dataclasses import replace

import numpy as np
import pytest

from mlxhog import backends
from mlxhog.data.batch import IGNORED, Batch
from mlxhog.models import families, lm_float64, ngrams
from mlxhog.optim.gradients import Rows
from tests.backends.untrained import bound
from tests.models.sample import batch, config, perturbed_params, v1_config
from tests.pairs import each_of
from tests.tolerances import GRADIENT_ANY_F32, LOGITS_F32, LOSS_F32, assert_close

TABLES = {
    "ngram_orders": (2, 3, 5),
    "ngram_dim": 4,
    "ngram_rows": 1024,
    "reset_at_document_boundaries": True,
    "bos_token_id": 2,
}
MODELS = {"xlstm": config(**TABLES), "xlstm_v1": v1_config(**TABLES)}

pytestmark = [
    pytest.mark.parametrize("name", ["torch:cpu", "mlx:cpu"]),
    pytest.mark.parametrize("family", MODELS),
]


def sample(family):
    """A model, its parameters and tables, and a batch in which documents end."""
    cfg = MODELS[family]
    x, y = batch(cfg, 3, 12, seed=5)
    x[1, 4] = x[2, 9] = 2
    return cfg, perturbed_params(cfg, seed=5), Batch(x, y, n_bytes=0, seed=1)


@each_of("kernels", ["reference", "auto"])
def test_loss_and_gradients_are_those_of_the_reference(name, family, kernels):
    cfg, params, given = sample(family)
    tables = ngrams.of(cfg)
    assert tables is not None
    loss, grads = bound(name, cfg, params, kernels).loss_and_grads(given)
    expected_loss, expected = lm_float64.differentiate(cfg, params, given.x, given.y)
    assert_close(loss, expected_loss, LOSS_F32)
    assert grads.keys() == families.param_spec(cfg).keys() | families.table_spec(cfg).keys()
    assert_close(grads[ngrams.WEIGHT], expected[ngrams.WEIGHT], GRADIENT_ANY_F32)
    rows = tables.rows_of(given.x)
    parts = np.split(expected[ngrams.ROWS], len(tables.orders), axis=-1)
    for table, part in zip(rows, parts, strict=True):
        grad = grads[table]
        assert isinstance(grad, Rows)
        assert grad.index.tolist() == np.unique(rows[table]).tolist()
        whole = np.zeros(params[table].shape)
        np.add.at(whole, rows[table], part)
        assert_close(grad.values, whole[grad.index], GRADIENT_ANY_F32, label=table)


def test_the_reference_differentiates_its_own_loss(name, family):
    cfg, params, given = sample(family)
    _, grads = lm_float64.differentiate(cfg, params, given.x, given.y)
    rng, step, tables = np.random.default_rng(0), 1e-5, ngrams.of(cfg)
    assert tables is not None
    rows, at = tables.rows_of(given.x), 0
    towards = {ngrams.WEIGHT: rng.standard_normal(params[ngrams.WEIGHT].shape)}
    expected = float((grads[ngrams.WEIGHT] * towards[ngrams.WEIGHT]).sum())
    for table, index in rows.items():
        towards[table] = rng.standard_normal(params[table].shape)
        part = grads[ngrams.ROWS][..., at : at + tables.dim]
        expected += float((part * towards[table][index]).sum())
        at += tables.dim

    def loss_at(length):
        moved = {name: params[name] + length * direction for name, direction in towards.items()}
        return lm_float64.loss(cfg, params | moved, given.x, given.y)

    change = (loss_at(step) - loss_at(-step)) / (2 * step)
    assert abs(change - expected) < 1e-5 * max(1.0, abs(expected))


@each_of("kernels", ["reference", "auto"])
def test_logits_do_not_depend_on_how_tokens_are_read(name, family, kernels):
    cfg, params, given = sample(family)
    backend = bound(name, cfg, params, kernels)
    x = lm_float64.embed(cfg, params, given.x)
    expected, _ = lm_float64.forward(cfg, params, x, starts=lm_float64.starts(cfg, given.x))
    every, _ = backend.every_logits(given.x, None)
    assert_close(every, expected, LOGITS_F32)
    state = None
    for begin, end in ((0, 1), (1, 2), (2, 7), (7, 8), (8, 12)):
        last, state = backend.logits(given.x[:, begin:end], state)
        assert_close(last, expected[:, end - 1], LOGITS_F32)


def test_states_are_stacked_and_taken_with_the_ids_before_them(name, family):
    cfg, params, given = sample(family)
    backend = bound(name, cfg, params)
    states = [backend.logits(given.x[k : k + 1, :6], None)[1] for k in range(3)]
    together = backend.take_state(backend.stack_states(states), [2, 0])
    last, _ = backend.logits(given.x[[2, 0], 6:7], together)
    expected, _ = backend.logits(given.x[:, :7], None)
    assert_close(last, expected[[2, 0]], LOGITS_F32)


def test_behind_a_frozen_context_its_ids_count(name, family):
    cfg, params, given = sample(family)
    backend = bound(name, cfg, params)
    y = given.y.copy()
    y[0, :5] = y[1, :0] = y[2, :8] = IGNORED
    y[0, 5] = y[1, 0] = y[2, 8] = 3
    whole = replace(given, y=y)
    loss, grads = backend.loss_and_grads(whole)
    frozen_loss, frozen = backend.loss_and_grads(replace(whole, frozen=True))
    assert_close(frozen_loss, loss, LOSS_F32)
    for table in families.table_spec(cfg):
        moved, every = (
            {*one[table].index[np.abs(one[table].values).max(1) > 1e-8]} for one in (frozen, grads)
        )
        assert moved < every  # no gradient flows into the contexts


def test_a_loaded_checkpoint_computes_the_same(name, family):
    cfg, params, given = sample(family)
    expected = bound(name, cfg, params).evaluate(given)
    backend = backends.create(name, threads=1, kernels="auto", cpu_blas="auto")
    assert backend.load(cfg, params) == []
    assert_close(backend.evaluate(given).nats, expected.nats, LOSS_F32)
