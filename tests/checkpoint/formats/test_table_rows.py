"""Tables in files: touched rows only, the same bits back, and words for what does not fit."""

from pathlib import Path

import numpy as np
import pytest

from mlxhog.checkpoint.formats import contents, table_rows
from mlxhog.checkpoint.formats.converting import Conversion, planned
from mlxhog.errors import CheckpointError, ConfigError
from mlxhog.models import families
from tests.models.sample import config
from tests.pairs import each_of

CFG = config(ngram_orders=(2, 4), ngram_dim=4, ngram_rows=256)
NAME = "ngrams.table_4"


def tables():
    some = {
        name: np.zeros(spec.shape, np.float32) for name, spec in families.table_spec(CFG).items()
    }
    some[NAME][[3, 200]] = np.random.default_rng(0).standard_normal((2, 4))
    return some


def test_only_touched_rows_are_kept_and_all_come_back():
    whole = tables()
    entries = contents.our_entries(CFG, whole)
    assert sum(entry.nbytes for entry in entries.values()) == 2 * (4 + 16)
    stored = {name: entry.parts[0] for name, entry in entries.items()}
    back = table_rows.unpacked(stored, CFG, Path("here"))
    assert all(np.array_equal(back[name], table) for name, table in whole.items())


@each_of(
    ("part", "array"),
    [
        *(("rows", np.array(rows, np.int32)) for rows in ([200, 3], [3, 256], [-1, 3], [3, 3])),
        ("rows", np.array([3, 200], np.int64)),
        *(("values", np.ones(shape, np.float32)) for shape in ((3, 4), (2, 5))),
        ("values", np.ones((2, 4), np.int32)),
    ],
)
def test_rows_that_do_not_fit_are_refused(part, array):
    entries = contents.our_entries(CFG, tables())
    stored = {name: entry.parts[0] for name, entry in entries.items()} | {f"{NAME}.{part}": array}
    with pytest.raises(CheckpointError, match=f"the rows of {NAME} do not fit a table of 256 rows"):
        table_rows.unpacked(stored, CFG, Path("here"))


def test_other_formats_refuse_tables_by_name():
    words = "tables of n-grams \\(ngram_orders 2, 4\\), which {} does not have; use --to mlxhog"
    for to, package in (("hf", "transformers"), ("xlstm", "the xlstm package")):
        with pytest.raises(ConfigError, match=words.format(package)):
            planned(CFG, {}, Conversion(to))
