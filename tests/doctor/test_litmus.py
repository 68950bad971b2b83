"""Two writers, and a reader beside one: our promises hold, bad ones on purpose are caught."""

from functools import partial

import numpy as np
import pytest

from mlxhog.base.load import Load, LoadWatch
from mlxhog.doctor import litmus as tests_of
from mlxhog.doctor.checks import broken
from mlxhog.doctor.litmus import COUNTS, LOSSLESS, NATIVE, Accessor, Litmus, LitmusCase, cases, torn
from tests.doctor import planted as bad

METAL = Accessor("metal:mlx", partial(tests_of.metal, name="emulated"))


def planted(make):
    """The writer or reader that a function makes."""
    return Accessor(make.__name__, make)


@pytest.fixture(scope="module")
def litmus():
    pair = Litmus(0.02)
    yield pair
    pair.close()


def test_every_pair_of_writers_is_tried_and_beside_metal_by_compare_and_swap():
    trials = [(*(kind.name for kind in one.writers), one.mode) for one in cases(["mlx", "mps"])]
    pairs = [("native", "native", mode) for mode in (*LOSSLESS, "racy")]
    metal = ("native", "metal:mlx", "metal:mps")
    pairs += [(a, b, "cas") for k, a in enumerate(metal) for b in metal[max(k, 1) :]]
    assert sorted(trials) == sorted(pairs * len(COUNTS))


@pytest.mark.parametrize("kernel", COUNTS)
def test_a_metal_writer_loses_nothing_and_one_that_drops_adds_is_caught_with_their_number(
    litmus, kernel
):
    row = litmus.run(LitmusCase((METAL, NATIVE), kernel, "cas"))
    assert (row["lost"], row["torn"], "error" in row) == (0, 0, False)
    row = litmus.run(LitmusCase((planted(bad.dropper), planted(bad.dropper)), kernel, "cas"))
    each = int(COUNTS[kernel].sum())
    dropped, passes = row["lost"] // each, row["adds"] // each
    assert row["lost"] == dropped * each > 0
    assert 0 <= dropped - passes / bad.EVERY < 2  # each of the two begins with a pass that it drops
    assert broken(row)


def test_what_no_order_of_whole_adds_explains_is_torn_and_seen_while_it_is_written(litmus):
    values = np.float32([0, 5, 4, 0.5, -1, 101, np.nan])
    for least, expected in ((0, [0, 0, 0, 1, 1, 1, 1]), (5, [1, 0, 1, 1, 1, 1, 1])):
        assert torn(values, 100, least).tolist() == expected
    row = litmus.run(LitmusCase((planted(bad.tearer), NATIVE), "dense", "cas"))
    assert row["torn"] > 0
    assert broken(row)


def test_a_writer_that_fails_is_reported_and_the_next_pair_runs(litmus):
    for make, message in ((bad.crasher, "the GPU is gone"), (bad.refuser, "no such device")):
        row = litmus.run(LitmusCase((NATIVE, planted(make)), "dense", "cas"))
        assert message in row["error"]
        assert broken(row)
    assert "error" not in litmus.run(LitmusCase((NATIVE, NATIVE), "dense", "lossless"))


def test_losses_of_racy_and_gpu_writers_and_a_late_answer_break_no_promise():
    write = {"writers": ["native", "native"], "mode": "racy", "lost": 9, "torn": 0}
    read = {"reader": "torch:cpu", "torn": 0, "backwards": 0}
    late = {"lost": 0, "error": "late"}
    for row, is_broken in (
        (write, False), (write | {"torn": 1}, True), (write | {"mode": "cas"}, True),
        (write | {"mode": "cas", "writers": ["native", "metal:mlx"]}, False),
        (write | late, True), (write | late | {"inconclusive": "busy"}, False),
        (read | late, True), (read | late | {"inconclusive": "busy"}, False),
        (read | late | {"inconclusive": "busy", "torn": 1}, True),  # which no load explains
        (read | {"torn": 1, "reader": "mlx:gpu"}, False),
    ):  # fmt: skip
        assert broken(row) == is_broken


def test_a_reader_of_torn_or_old_values_is_caught_and_one_that_is_late_unless_it_had_no_time(
    litmus, monkeypatch
):
    assert litmus.read(planted(bad.torn_reader), "lossless")["torn"] > 0
    row = {"samples": 0}
    while row["samples"] < 4 * tests_of.FLOATS:  # on busy cores its time may be over after one read
        row = litmus.read(planted(bad.old_reader), "lossless")
    assert row["backwards"] > 0
    monkeypatch.setattr(litmus, "seconds", 100.0)  # it ends when the blind one's patience does
    blind = planted(bad.blind_reader)
    row = litmus.read(blind, "lossless", patience_s=0.5)
    assert "not seen within 0.5 s" in row["error"]
    monkeypatch.setattr(LoadWatch, "look", lambda watch: Load(1.8, 2, 9.3))
    row = litmus.read(blind, "lossless", patience_s=0.5)
    assert row["inconclusive"] == "inconclusive: busy machine (load average 9.3 on 2 processors)"
    crashing = LitmusCase((NATIVE, planted(bad.crasher)), "dense", "cas")
    assert broken(litmus.run(crashing))  # a crash is no late answer
