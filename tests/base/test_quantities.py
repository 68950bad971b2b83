"""Numbers with units are read and spelled, and a budget of time is shared out."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mlxhog.base.quantities import (
    MOST_SECONDS,
    Interval,
    format_bytes,
    format_clock,
    format_count,
    format_duration,
    format_share,
    format_value,
    parse_bytes,
    parse_count,
    parse_duration_s,
)
from tests.pairs import each_of


@each_of(
    ("read", "texts", "value"),
    [
        (parse_count, ["1e6", 1e6], 10**6),
        (parse_count, ["10k"], 10**4),
        (parse_count, ["2M"], 2 * 10**6),
        (parse_count, ["1_000"], 1000),
        (parse_count, ["1.5k"], 1500),
        (parse_duration_s, [60, "60", "60s", "1min"], 60),
        (parse_duration_s, ["10m"], 600),
        (parse_duration_s, ["1h30m", "1.5h", "1 hour 30 min"], 5400),
        (parse_duration_s, ["500ms"], 0.5),
        (parse_duration_s, ["5 minutes"], 300),
        (parse_duration_s, ["2 Days"], 172_800),
        (parse_bytes, [5_000_000, "5 MB"], 5_000_000),
        (parse_bytes, ["500", "500B"], 500),
        (parse_bytes, ["5GB", "5gb"], 5 * 10**9),
        (parse_bytes, ["2GiB"], 2 << 30),
        (parse_bytes, ["512 MiB"], 512 << 20),
    ],
)
def test_every_spelling_of_a_quantity_is_read(read, texts, value):
    assert {read(text) for text in texts} == {value}


@each_of(
    ("read", "texts", "wanted"),
    [
        (parse_count, ["", "k", "1.5", "ten", "nan", "inf", True, None, [1]], "whole number"),
        (parse_duration_s,
         ["", "s", "10 fortnights", "5 minutess", "minutes", "1x", "inf", False, None], "seconds"),
        (parse_bytes, ["", "GB", "0", "-1MB", "0.2", "inf", "five", None, True],
         "a size such as 5GB"),
    ],
)  # fmt: skip
def test_what_is_no_quantity_is_refused(read, texts, wanted):
    for text in texts:
        with pytest.raises(ValueError, match=wanted):
            read(text)


def test_an_interval_is_due_after_its_steps_or_its_seconds_or_never():
    assert Interval.parse("10m") == Interval(seconds=600)
    assert Interval.parse("5 minutes") == Interval(seconds=300)
    assert Interval.parse("10k") == Interval(steps=10_000)
    assert Interval(steps=5).due(steps=5, seconds=0)
    assert not Interval(steps=5).due(steps=4, seconds=1e9)
    assert Interval(seconds=5).due(steps=0, seconds=5)
    assert not Interval().due(steps=10**9, seconds=1e9)


@given(st.floats(min_value=0, max_value=MOST_SECONDS, exclude_min=True))
@example(12 * 86400.0)
@example(1e-5)
def test_an_interval_of_time_is_spelled_so_that_the_same_one_is_read(seconds):
    assert Interval.parse(str(Interval(seconds=seconds))) == Interval(seconds=seconds)


def test_numbers_are_spelled_shortly():
    assert [format_count(x) for x in (640, 17_200, 1_310_000)] == ["640", "17.2k", "1.31M"]
    assert [format_bytes(x) for x in (12, 212e6, 1.3e9)] == ["12 B", "212 MB", "1.3 GB"]
    assert [format_clock(x) for x in (42, 3725)] == ["00:42", "1:02:05"]
    assert [format_share(x) for x in (0, 0.0012, 0.48, 1)] == ["0 %", "0.12 %", "48 %", "100 %"]
    texts = ["10s", "0.5s", "500", "off"]
    assert [str(Interval.parse(text)) for text in texts] == texts
    assert str(Interval.parse("12d")) == "1036800s"


@each_of(
    ("seconds", "text"),
    [(0, "0 s"), (0.35, "350 ms"), (4.23, "4.2 s"), (9.96, "10 s"), (38.04, "38 s"),
     (59.7, "1 min"), (750, "12 min 30 s"), (3900, "1 h 05 min"), (3600, "1 h"),
     (273_600, "3 d 4 h"), (86_400, "1 d")],
)  # fmt: skip
def test_a_duration_is_spelled_with_its_units_and_read_back(seconds, text):
    assert format_duration(seconds) == text
    assert parse_duration_s(text) == pytest.approx(seconds, rel=0.05)


@each_of(
    ("value", "unit", "text"),
    [(0.004242640687119285, "", "0.00424"), (0.003, "", "0.003"), (0.9995, "", "0.9995"),
     (0.99951234, "", "0.999512"), (1e-8, "", "1e-08"), (0.1 + 0.2, "", "0.3"),
     (2000, "steps", "2,000 steps"), (16384.0, "tokens", "16,384 tokens"),
     (123456.7, "", "123,457"), (40.0, "s", "40 s"), (True, "", "on"), (False, "", "off"),
     ("10s", "", "10s")],
)  # fmt: skip
def test_an_option_is_spelled_without_needless_digits_and_with_its_unit(value, unit, text):
    assert format_value(value, unit) == text
