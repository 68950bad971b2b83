"""A run's metrics over time: read as they grow, whatever stands in the file."""

import json
import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mlxhog.report.history import History, buckets, ends, newest_line, thin
from tests.pairs import each_of
from tests.report.sample_run import append, lines, write_run


def history(run):
    read = History(run.metrics_path)
    read.update()
    return read


def test_a_file_that_grows_is_read_on_and_a_replaced_one_anew_and_a_torn_line_waits(tmp_path):
    run = write_run(tmp_path, metrics=lines(3))
    read = history(run)
    more = list(lines(5))[3:]
    append(run, more[:1])
    text = json.dumps(more[1]) + "\n"
    lengths = []
    with run.metrics_path.open("a") as file:
        for part in (text[:50], text[50:], ""):
            file.write(part)
            file.flush()
            read.update()
            lengths.append(len(read))
    assert lengths == [4, 5, 5]
    run.drop_metrics_after(step=80, elapsed_s=8.0)  # replaces the file
    read.update()
    assert len(read) == 4


@each_of(
    "damage",
    ["", "{", "[]", "7", '"text"', '{"step": 1}', '{"step": "x", "elapsed_s": 1}', "\x00\xff",
     '{"step": 1e999, "elapsed_s": 1}', "[" * 10**5],
    ids=lambda text: text[:12],
)  # fmt: skip
def test_a_damaged_line_is_left_out(tmp_path, damage):
    good = [json.dumps(line) for line in lines(4)]
    run = write_run(tmp_path)
    run.metrics_path.write_text("\n".join([*good[:2], damage, *good[2:], ""]), errors="replace")
    read = history(run)
    assert len(read) == 4


def test_workers_of_a_resumed_run_count_from_0(tmp_path):
    first, second = list(lines(4)), list(lines(3, pid=500))
    for line in second:
        line["step"] += first[-1]["step"]
        line["elapsed_s"] += first[-1]["elapsed_s"]
    read = history(write_run(tmp_path, metrics=[*first, *second]))
    assert read.last("step") == 20 * 7
    assert read.backends == {1: "torch:cpu", 2: "torch:cpu"}
    assert read.column("staleness", 2).tolist() == [1.0] * 7


@given(
    st.lists(st.floats(-1e9, 1e9) | st.just(math.nan), min_size=1, max_size=400),
    st.integers(2, 60),
)
def test_few_points_keep_the_smallest_and_the_largest_number_and_the_ends_of_the_axis(
    values, points
):
    column = np.array(values)
    starts = buckets(len(column), points)
    kept, rows = thin(column, starts), ends(np.arange(len(column)), starts)
    assert len(kept) == len(rows) <= max(points, 2)
    assert (rows[0], rows[-1]) == (0, len(column) - 1)
    if not np.isnan(column).all():
        assert np.nanmin(kept) == np.nanmin(column)
        assert np.nanmax(kept) == np.nanmax(column)
    assert np.isnan(kept).all() == np.isnan(column).all()


def test_every_evaluation_is_one_point_and_the_larger_score_another(tmp_path):
    """A resumed run has a larger score at the end of each command."""
    score = {"val_bits_per_byte": 2.5, "final_bits_per_byte": 2.4, "final_share": 0.2}
    none = {"val_bits_per_byte": None, "final_bits_per_byte": None}
    metrics = [
        {**line, "supervisor_pid": 1 + (k > 3)}
        | (score | {"val_step": k - k % 2} if k in (2, 3, 6) else none)
        for k, line in enumerate(lines(8))
    ]
    run = write_run(tmp_path, metrics=metrics)
    read = history(run)
    for name, value in (("val_bits_per_byte", 2.5), ("final_bits_per_byte", 2.4)):
        column = read.column(name)
        assert np.flatnonzero(~np.isnan(column)).tolist() == [2, 6]
        assert set(column[~np.isnan(column)]) == {value}
    newest = newest_line(run.metrics_path)  # as `mlxhog runs` shows it
    assert newest["step"] == read.progress.step
    assert newest["final_bits_per_byte"] == read.progress.final_bits_per_byte == 2.4
