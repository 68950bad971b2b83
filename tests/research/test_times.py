"""Distributions of times have the means they say, and are read from text."""

import itertools

import numpy as np
import pytest

from mlxhog.errors import DataError
from mlxhog.research.simulator.times import ComputeTime, parse, times_of
from tests.pairs import each_of

SPELLS = times_of("markov", 1.0, 10.0, 0.05, 0.2)
TEXTS = {
    "constant:20ms": times_of("constant", 0.02),
    "exponential:1s:2s": times_of("exponential", 1.0, 2.0),
    "lognormal:2:0.5": times_of("lognormal", 2.0, 0.5),
    "pareto:50ms:3.5": times_of("pareto", 0.05, 3.5),
    "markov:1:10:.05:.2": SPELLS,
}


def taken(time, count=40_000):
    return np.array(list(itertools.islice(time.successive(np.random.default_rng(1)), count)))


@each_of(
    "time",
    [
        *TEXTS.values(),
        times_of("recorded", 1.0, 2.0, 6.0),
        ComputeTime("constant", (1.0,), held_up=(0.1, 6.0)),
    ],
)
def test_the_mean_of_many_times_is_what_is_said(time):
    assert taken(time).mean() == pytest.approx(time.mean_s, rel=0.06)
    assert taken(time.scaled(3.0), 50) == pytest.approx(3 * taken(time, 50))
    assert time.scaled(3.0).mean_s == pytest.approx(3 * time.mean_s)


def test_times_have_the_spread_the_tail_the_spells_and_the_order_of_their_numbers():
    times = taken(times_of("lognormal", 2.0, 0.5))
    assert times.std() / times.mean() == pytest.approx(0.5, rel=0.05)
    tail = taken(times_of("pareto", 1.0, 1.5))
    assert tail.min() >= 1
    assert np.mean(tail > 4) == pytest.approx(4**-1.5, rel=0.1)
    slow = taken(SPELLS) == 10.0
    spells = sum(one for one, _ in itertools.groupby(slow))
    assert slow.sum() / spells == pytest.approx(1 / 0.2, rel=0.1)
    ordered = [1.0, 2.0, 3.0, 4.0, 5.0]  # round and round, from any of them on
    recorded = taken(times_of("recorded", *ordered), 12)
    first = ordered.index(recorded[0])
    assert recorded.tolist() == [ordered[(first + k) % 5] for k in range(12)]


@each_of(
    ("text", "message"),
    [
        *((text, None) for text in TEXTS),
        ("normal:1:2", "did you mean 'lognormal'"),
        ("constant", "wanted constant:TIME; got 'constant'"),
        ("constant:1:2", "wanted constant:TIME"),
        ("lognormal:soon:1", "in 'lognormal:soon:1', wanted seconds"),
        ("pareto:1:x", "wanted a number"),
        ("pareto:1:1", "a SHAPE above 1"),
        ("lognormal:1:-1", "a CV of 0 or more"),
        ("markov:1:2:.1:0", "chances above 0"),
    ],
)
def test_a_time_model_is_read_from_text_or_refused_with_the_form(text, message):
    if message is None:
        assert parse(text) == TEXTS[text]
        return
    with pytest.raises((ValueError, DataError), match=message):
        parse(text)


def test_a_run_without_a_step_has_no_times():
    with pytest.raises(DataError, match="no compute time was measured"):
        times_of("recorded")
