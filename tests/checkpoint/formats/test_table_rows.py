"""Tables in files: touched rows only, the same bits back, and words for what does not fit."""

from pathlib import Path

import numpy as np
import pytest

from mlxhog.checkpoint.formats import contents, table_rows
from mlxhog.errors import CheckpointError, ConfigError
from mlxhog.models import families
from tests.models.sample import config

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


@pytest.mark.parametrize(
    "change",
    [
        {f"{NAME}.rows": np.array([200, 3], np.int32)},
        {f"{NAME}.rows": np.array([3, 256], np.int32)},
        {f"{NAME}.rows": np.array([-1, 3], np.int32)},
        {f"{NAME}.rows": np.array([3, 3], np.int32)},
        {f"{NAME}.rows": np.array([3, 200], np.int64)},
        {f"{NAME}.values": np.ones((3, 4), np.float32)},
        {f"{NAME}.values": np.ones((2, 5), np.float32)},
        {f"{NAME}.values": np.ones((2, 4), np.int32)},
    ],
)
def test_rows_that_do_not_fit_are_refused(change):
    entries = contents.our_entries(CFG, tables())
    stored = {name: entry.parts[0] for name, entry in entries.items()} | change
    with pytest.raises(CheckpointError, match=f"the rows of {NAME} do not fit a table of 256 rows"):
        table_rows.unpacked(stored, CFG, Path("here"))


def test_other_formats_refuse_tables_by_name():
    words = "tables of n-grams \\(ngram_orders 2, 4\\), which {} does not have; use --to mlxhog"
    with pytest.raises(ConfigError, match=words.format("transformers")):
        contents.refuse(CFG, {})
    with pytest.raises(ConfigError, match=words.format("the xlstm package")):
        contents.package_entries(CFG, {}, fused=False, slstm="vanilla")
