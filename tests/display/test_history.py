"""A run's metrics over time: read as they grow, whatever stands in the file."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxhog.display.history import History, buckets, ends, newest_line, thin
from mlxhog.display.tensorboard import TensorBoard
from mlxhog.display.trackers import TrackedRun, Trackers
from mlxhog.errors import EnvironmentLacks
from mlxhog.progress import Progress
from mlxhog.training.supervisor.reporting import Reporter
from tests.display.sample_run import append, lines, write_run
from tests.pairs import each_of


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
    st.lists(st.floats(-1e9, 1e9) | st.just(math.nan), min_size=1, max_size=400), st.integers(2, 60)
)
def test_few_points_keep_the_smallest_and_largest_number_and_the_ends_of_the_axis(values, points):
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


def progress(step, *, loss=2.0, val_loss=None, val_step=None):
    """A run after so many steps."""
    bits = None if val_loss is None else val_loss / 2
    numbers = {"val_loss": val_loss, "val_step": val_step, "val_bits_per_byte": bits}
    return Progress(
        step=step, loss=loss, train_bits_per_byte=loss / 2, lr=0.5, tokens_per_s=100.0, **numbers
    )


def trackers(folder, first_step=0):
    """TensorBoard's files alone."""
    known = {"name": "a", "id": "a-1", "config": {"seed": 3}, "resumed": first_step > 0}
    run = TrackedRun(folder=folder, first_step=first_step, **known)
    return Trackers(["tensorboard"], run, pytest.fail)


def scalars(folder):
    """Tag -> (step, value) as TensorBoard shows them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder))
    read.Reload()
    return {
        tag: [(event.step, event.value) for event in read.Scalars(tag)]
        for tag in read.Tags()["scalars"]
    }


def test_evaluations_stand_at_the_step_they_scored_and_a_resumed_run_forgets_lost_steps(tmp_path):
    killed = trackers(tmp_path)
    killed.write(progress(10, loss=3.0), 0.5)
    killed.write(progress(20, loss=2.5, val_loss=2.0, val_step=12), 1.0)
    killed.write(progress(30), 1.5)
    (path,) = tmp_path.iterdir()
    with path.open("ab") as file:
        file.write(b"\x18\x00\x00\x00torn")  # by the kill
    resumed = trackers(tmp_path, first_step=20)
    resumed.write(progress(35), 1.75)
    resumed.write(
        progress(35, val_loss=1.5, val_step=35), 1.75
    )  # the last evaluation: no step is new
    assert scalars(tmp_path) == {
        "train/loss": [(10, 3.0), (20, 2.5), (35, 2.0)],
        "train/bits_per_byte": [(10, 1.5), (20, 1.25), (35, 1.0)],
        "train/lr": [(10, 0.5), (20, 0.5), (35, 0.5)],
        "train/epoch": [(10, 0.5), (20, 1.0), (35, 1.75)],
        "train/tokens_per_s": [(10, 100.0), (20, 100.0), (35, 100.0)],
        "eval/loss": [(12, 2.0), (35, 1.5)],
        "eval/bits_per_byte": [(12, 1.0), (35, 0.75)],
    }


def test_curves_of_a_run_that_is_renamed_continue_in_their_file(tmp_path):
    (run := tmp_path / "run").mkdir()
    curves = trackers(run)
    curves.write(progress(10, loss=3.0), 0.5)
    run.rename(tmp_path / "renamed")
    curves.write(progress(20), 1.0)
    assert scalars(tmp_path / "renamed")["train/loss"] == [(10, 3.0), (20, 2.0)]


def test_what_cannot_be_written_is_named(tmp_path):
    with pytest.raises(EnvironmentLacks, match=r"writing .*gone/events.* failed"):
        TensorBoard(tmp_path / "gone")


def test_an_evaluation_that_a_full_disk_refuses_stands_on_the_next_line():
    told, written = [], []

    def append(line):
        if not told:
            raise EnvironmentLacks("the disk is full")
        written.append(line["val_step"])

    reporter = SimpleNamespace(
        monitor=SimpleNamespace(progress=lambda: progress(20, val_loss=2.0, val_step=12)),
        run=SimpleNamespace(append_metrics=append), report_once=told.append, _lr=lambda: 0.5,
        _trackers=None, _written={}, _tracked={},
    )  # fmt: skip
    for _ in range(3):
        Reporter.append_metrics(reporter)
    assert written == [12, None]
