"""Numbers with units are read and spelled, and a budget of time is shared out."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mlxhog.base import quantities
from mlxhog.base.quantities import (
    MAX_SECONDS,
    Interval,
    format_duration,
    format_value,
    parse_count,
    parse_duration_s,
)
from tests.pairs import each_of


@each_of(
    ("read", "values"),
    [
        (parse_count, {"1e6": 10**6, 1e6: 10**6, "10k": 10**4, "2M": 2 * 10**6, "1_000": 1000,
                       "1.5k": 1500, "8.05k": 8050, "4.1M": 4_100_000, "16.4M": 16_400_000,
                       "9223372036854775807": 2**63 - 1}),
        (parse_duration_s, {60: 60, "60": 60, "60s": 60, "1min": 60, "10m": 600, "1h30m": 5400,
                            "1.5h": 5400, "1 hour 30 min": 5400, "500ms": 0.5, "2 Days": 172_800,
                            "5 Minutes": 300, "2MIN": 120, "1H": 3600}),
    ],
)  # fmt: skip
def test_every_spelling_of_a_quantity_is_read(read, values):
    assert {text: read(text) for text in values} == values


@each_of(
    ("read", "texts", "wanted"),
    [
        (parse_count,
         ["", "k", "1.5", "1m", "1.2345k", "1e-9", "1e9999999", "ten", "nan", "inf", True, None,
          [1]],
         "whole number"),
        (parse_duration_s,
         ["", "s", "10 fortnights", "5 minutess", "minutes", "1x", "inf", False, None],
         "seconds"),
        (parse_duration_s, ["1M", "5M30s", "5M 30s", "1h5M", "1Ms", "10 MS"], "1m a minute"),
        (Interval.parse, ["5M30s", "1Ms", "1h 5M"], "1m a minute"),
    ],
)  # fmt: skip
def test_what_is_no_quantity_is_refused(read, texts, wanted):
    for text in texts:
        with pytest.raises(ValueError, match=wanted):
            read(text)


def test_an_interval_is_due_after_its_steps_or_its_seconds_or_never():
    assert Interval.parse("10m") == Interval(seconds=600)
    assert Interval.parse("1M") == Interval(steps=parse_count("1M")) == Interval(steps=10**6)
    assert Interval.parse("5 Min") == Interval(seconds=300)
    assert Interval.parse("10k") == Interval(steps=10_000)
    for interval, steps, seconds, is_due in (
        (Interval(steps=5), 5, 0, True),
        (Interval(steps=5), 4, 1e9, False),
        (Interval(seconds=5), 0, 5, True),
        (Interval(), 10**9, 1e9, False),
    ):
        assert interval.due(steps=steps, seconds=seconds) is is_due
    for text in ("10s", "0.5s", "500", "off"):
        assert str(Interval.parse(text)) == text


@given(st.floats(min_value=0, max_value=MAX_SECONDS, exclude_min=True))
@example(12 * 86400.0)
@example(1e-5)
def test_an_interval_of_time_is_spelled_so_that_the_same_one_is_read(seconds):
    assert Interval.parse(str(Interval(seconds=seconds))) == Interval(seconds=seconds)


@each_of(
    ("kind", "spelled"),
    [
        ("count", {640: "640", 17_200: "17.2k", 1_310_000: "1.31M"}),
        ("bytes", {12: "12 B", 212e6: "212 MB", 1.3e9: "1.3 GB"}),
        ("clock", {42: "00:42", 3725: "1:02:05"}),
        ("share", {0: "0 %", 0.0012: "0.12 %", 0.48: "48 %", 1: "100 %"}),
        ("duration", {0: "0 s", 0.35: "350 ms", 4.23: "4.2 s", 9.96: "10 s", 38.04: "38 s",
                      59.7: "1 min", 750: "12 min 30 s", 3900: "1 h 05 min", 3600: "1 h",
                      273_600: "3 d 4 h", 86_400: "1 d"}),
    ],
)  # fmt: skip
def test_numbers_are_spelled_shortly_and_durations_are_read_back(kind, spelled):
    for value, text in spelled.items():
        assert getattr(quantities, f"format_{kind}")(value) == text
        if kind == "duration":
            assert parse_duration_s(format_duration(value)) == pytest.approx(value, rel=0.05)


@each_of(
    ("value", "unit", "text"),
    [(0.004242640687119285, "", "0.00424"), (0.003, "", "0.003"), (0.9995, "", "0.9995"),
     (0.99951234, "", "0.999512"), (1e-8, "", "1e-08"), (0.1 + 0.2, "", "0.3"),
     (2000, "steps", "2,000 steps"), (16384.0, "tokens", "16,384 tokens"),
     (123456.7, "", "123,457"), (40.0, "s", "40 s"), (True, "", "on"), ("10s", "", "10s")],
)  # fmt: skip
def test_an_option_is_spelled_without_needless_digits_and_with_its_unit(value, unit, text):
    assert format_value(value, unit) == text
