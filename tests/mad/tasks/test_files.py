"""A file of rows reads back as it was written, and has what a golden one has."""

import numpy as np

from mlxhog.mad.tasks import BENCHMARK, TASKS_BESIDE, make_task
from mlxhog.mad.tasks.dataset import write
from tests.mad.tasks.golden import GOLDEN, read
from tests.pairs import each_of


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
