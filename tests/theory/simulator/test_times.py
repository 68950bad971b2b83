"""Distributions of times have the means they say, and are read from text."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mlxhog.errors import DataError
from mlxhog.theory.simulator.times import (
    ComputeTime,
    Constant,
    HeldUpTimes,
    LogNormal,
    Markov,
    Pareto,
    RecordedTimes,
    ShiftedExponential,
    parse,
)
from tests.pairs import each_of

SPELLS = Markov(Constant(1.0), Constant(10.0), to_slow=0.05, to_fast=0.2)


def taken(time: ComputeTime, count: int = 40_000) -> np.ndarray:
    return np.array(list(itertools.islice(time.successive(np.random.default_rng(1)), count)))


@each_of(
    "time",
    [
        LogNormal(2.0, 0.5),
        Pareto(1.0, 3.5),
        SPELLS,
        HeldUpTimes(Constant(1.0), 0.1, 6.0),
        ShiftedExponential(1.0, 2.0),
        RecordedTimes([1.0, 2.0, 6.0]),
    ],
)
def test_the_mean_of_many_times_is_what_is_said(time: ComputeTime) -> None:
    assert taken(time).mean() == pytest.approx(time.mean_s, rel=0.06)
    assert taken(time.scaled(3.0), 50) == pytest.approx(3 * taken(time, 50))


def test_a_lognormal_has_its_coefficient_of_variation_and_a_pareto_its_tail() -> None:
    times = taken(LogNormal(2.0, 0.5))
    assert times.std() / times.mean() == pytest.approx(0.5, rel=0.05)
    tail = taken(Pareto(1.0, 1.5))
    assert tail.min() >= 1
    assert np.mean(tail > 4) == pytest.approx(4**-1.5, rel=0.1)


def test_slow_spells_last_as_long_as_their_probability_says() -> None:
    slow = taken(SPELLS) == 10.0
    assert slow.mean() == pytest.approx(SPELLS.slow_share, rel=0.1)
    spells = sum(one for one, _ in itertools.groupby(slow))
    assert slow.sum() / spells == pytest.approx(1 / 0.2, rel=0.1)


def test_recorded_times_come_in_their_order_round_and_round() -> None:
    ordered = [1.0, 2.0, 3.0, 4.0, 5.0]
    times = taken(RecordedTimes(ordered), 12)
    first = ordered.index(times[0])
    assert times.tolist() == [ordered[(first + k) % 5] for k in range(12)]


@each_of(
    ("text", "time"),
    [
        ("constant:20ms", Constant(0.02)),
        ("exponential:1s:2s", ShiftedExponential(1.0, 2.0)),
        ("lognormal:1:0.2", LogNormal(1.0, 0.2)),
        ("pareto:50ms:1.5", Pareto(0.05, 1.5)),
        ("markov:1:10:.05:.2", SPELLS),
    ],
)
def test_a_time_model_is_read_from_text(text: str, time: ComputeTime) -> None:
    assert parse(text) == time


@each_of(
    ("text", "message"),
    [
        ("normal:1:2", "did you mean 'lognormal'"),
        ("constant", "wanted constant:TIME; got 'constant'"),
        ("constant:1:2", "wanted constant:TIME"),
        ("lognormal:soon:1", "in 'lognormal:soon:1', wanted seconds"),
        ("pareto:1:x", "wanted a number"),
    ],
)
def test_what_is_no_time_model_is_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        parse(text)


def test_parameters_out_of_range_are_refused() -> None:
    with pytest.raises(DataError, match="shape of 1"):
        Pareto(1.0, 1.0)
    with pytest.raises(DataError, match="variation of -1"):
        LogNormal(1.0, -1.0)
    with pytest.raises(DataError, match="to_fast = 0"):
        Markov(Constant(1.0), Constant(2.0), 0.1, 0.0)
