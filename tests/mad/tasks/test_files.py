"""A file of rows reads back as it was written, and a damaged or foreign one is refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from mlxhog.errors import DataError
from mlxhog.mad.tasks import BENCHMARK, TASKS_BESIDE, check, make_task
from mlxhog.mad.tasks.dataset import read, write
from tests.pairs import each_of

GOLDEN = Path(__file__).parents[1] / "golden"


@each_of("name", [*BENCHMARK, *TASKS_BESIDE])
def test_a_file_reads_back_as_it_was_written(name, tmp_path):
    data = make_task(name, train_rows=20, test_rows=10, val_rows=5)
    write(tmp_path / "a.npz", data)
    with np.load(tmp_path / "a.npz") as file:
        assert {file[key].dtype for key in file.files if key != "meta"} == {np.dtype(np.int16)}
    again = read(tmp_path / "a.npz")
    assert again.meta == data.meta
    for split, arrays in data.splits().items():
        for a, b in zip(arrays, again.splits()[split], strict=True):
            np.testing.assert_array_equal(a, b)
    if name == "memorization":
        np.testing.assert_array_equal(again.kv_values, data.kv_values)


@each_of("name", ["icr_v16_t32", "mem_v32_t16"])
def test_a_file_of_ours_has_what_a_golden_one_has(name, tmp_path):
    golden = read(GOLDEN / f"{name}.npz")
    write(tmp_path / "a.npz", make_task(golden.task, train_rows=4, test_rows=4))
    with np.load(GOLDEN / f"{name}.npz") as theirs, np.load(tmp_path / "a.npz") as ours:
        assert set(theirs.files) == set(ours.files)
        for key in theirs.files:
            assert theirs[key].ndim == ours[key].ndim


def test_arrays_that_do_not_fit_together_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    good = dict(np.load(GOLDEN / "mem_v32_t16.npz"))

    def meta(**settings):
        ours = {"task": "memorization", "seed": 7, "generator": "mlxhog 1"}
        return np.array(json.dumps({**ours, **settings}))

    for change, text in (
        ({"test_targets": None}, "lacks 'test_targets'"),
        ({"meta": None}, "lacks 'meta'"),
        ({"meta": np.array("{")}, "mlxhog mad data writes such files"),
        ({"meta": np.array("[]")}, "not a JSON object"),
        ({"meta": np.array("7")}, "not a JSON object"),
        ({"train_inputs": good["train_inputs"][:5]}, "inputs (5, 16) and targets (128, 16)"),
        ({"train_inputs": good["train_inputs"] + 0.5}, "train_inputs is float"),
        ({"meta": np.array("{}")}, "by an unknown generator, and only those by mlxhog 1"),
        ({"meta": meta(seed=None)}, "only those by mlxhog 1"),
        ({"meta": meta(seq_len=15)}, "in steps of 2"),
        ({"meta": meta(seq_len=18)}, "has shape (128, 16), its settings draw (256, 18)"),
    ):
        np.savez(path, **{k: v for k, v in {**good, **change}.items() if v is not None})
        with pytest.raises(DataError) as refusal:
            check(read(path))
        assert text in str(refusal.value)
