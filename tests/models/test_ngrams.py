"""Rows of n-grams: numbered where they fit, else hashed, from the ids of one document only."""

import itertools
from importlib import import_module

import numpy as np

from mlxhog.base import mapped
from mlxhog.models import families, lm_float64
from mlxhog.models.ngrams import ABSENT, NgramTables
from mlxhog.models.registry import load_architecture, to_yaml
from tests.models.sample import config, perturbed_params
from tests.nn.sides import SIDES
from tests.pairs import each_of
from tests.tolerances import LOGITS_F32, assert_close

FEW, RESET = 8, 1
"""Ids, and the one that begins a document."""


def tables(*orders, rows=1 << 10, reset=None):
    return NgramTables(orders=orders, dim=4, max_rows=rows, vocab_size=FEW, reset_token=reset)


def hashed(ids, rows):
    """The formula in Python's own integers; the newest id is the last."""
    mask, key = (1 << 64) - 1, 0
    for j, id in enumerate(reversed(ids)):
        z = (j + 1) * 0x9E3779B97F4A7C15 & mask
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
        key += ((z ^ z >> 31) | 1) * (id + 1)
    return (key & mask) >> (64 - (rows.bit_length() - 1))


def test_a_row_of_a_hashed_table_is_the_formula_on_the_last_ids_and_rows_are_spread():
    some = tables(2, 5, rows=64)
    ids = np.random.default_rng(0).integers(0, FEW, (3, 20), dtype=np.int32)
    rows = some.rows_of(ids)
    for n, b, t in itertools.product((2, 5), range(3), range(20)):
        before = [ABSENT] * n + ids[b, : t + 1].tolist()
        assert rows[f"ngrams.table_{n}"][b, t] == hashed(before[-n:], 64)
    some = NgramTables(orders=(8,), dim=1, max_rows=1 << 12, vocab_size=256, reset_token=None)
    ids = np.random.default_rng(2).integers(0, 256, (1, 1 << 14), dtype=np.int32)
    counts = np.bincount(some.rows_of(ids)["ngrams.table_8"][0], minlength=1 << 12)
    assert counts.max() < 20  # 4 on average
    assert (counts == 0).mean() < 0.04  # exp(-4) of a random function


def test_n_grams_that_fit_have_rows_of_their_own():
    some = tables(2, 3)
    assert [spec.shape[0] for spec in some.specs.values()] == [FEW * 9, FEW * 81]
    every = np.array(list(itertools.product(range(FEW), repeat=3)), np.int32)
    rows = some.rows_of(every)["ngrams.table_3"]
    assert len(np.unique(rows[:, 2])) == len(every)
    assert not set(rows[:, 0]) & set(rows[:, 2])  # an absent id is a symbol of its own
    assert rows.max() < some.specs["ngrams.table_3"].shape[0]


def test_rows_of_a_file_with_16_bits_are_float32():
    some, rng = tables(2, 3), np.random.default_rng(0)
    rows = some.rows_of(rng.integers(0, FEW, (2, 5), dtype=np.int32))
    own = {
        name: rng.standard_normal(spec.shape).astype(mapped.BFLOAT16)
        for name, spec in some.specs.items()
    }
    found, wanted = some.gather(own, rows), {n: w.astype(np.float32) for n, w in own.items()}
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, some.gather(wanted, rows))


def test_of_an_earlier_document_nothing_is_seen():
    some = tables(2, 4, reset=RESET)
    ids = np.array([[5, 6, RESET, 3, 4, 7]], np.int32)
    for name in some.specs:
        expected = some.rows_of(ids[:, 2:])[name][0]
        assert (some.rows_of(ids)[name][0, 2:] == expected).all()
        assert tables(2, 4).rows_of(ids)[name][0, 2] != expected[0]  # without a reset


@each_of("name", ["tiny", "5m-v1"])
def test_a_model_with_tables_is_read_as_it_was_written(name):
    cfg = load_architecture(name, "ngram_orders=2-4, ngram_dim=8, ngram_rows=4096")
    assert families.read(cfg.to_dict()) == cfg
    assert "ngram_orders: [2, 3, 4]" in to_yaml(cfg)
    plain = load_architecture(name)
    assert not [field for field in plain.to_dict() if field.startswith("ngram")]
    assert not any(one.kind == "table" for one in families.param_spec(plain).values())


def test_a_module_of_either_framework_continues_a_text_with_its_tables():
    cfg = config(ngram_orders=(2, 3), ngram_dim=4, ngram_rows=256)
    params = perturbed_params(cfg, seed=0)
    ids = np.random.default_rng(0).integers(0, cfg.vocab_size, (2, 12), dtype=np.int32)
    expected, _ = lm_float64.logits(cfg, params, ids)
    for side in (SIDES["torch"], SIDES["mlx"]):
        module = import_module(f"mlxhog.nn.{side.framework}").LanguageModel(cfg)
        side.load(module, params)
        first, state = side.run(module, ids[:, :5])
        rest, _ = side.run(module, ids[:, 5:], state)
        assert_close(np.concatenate([first, rest], 1), expected, LOGITS_F32)
