"""Parse and format numbers and addresses: "10k", "10M", an interval "500", HOST:PORT.

`M` is a million and `m` a minute, everywhere, and no duration has an `M` or `Ms`; the case of other
units does not matter.

`format_value` formats the value of an option for people. Tables and pages call `format_bytes`,
`format_duration`, ... Files and command lines keep every digit.
"""

import ipaddress
import math
import numbers
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, TypeVar, cast

from mlxhog.errors import shown

T = TypeVar("T")

_COUNTS = {"k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9}
_SECONDS = {
    name: seconds
    for names, seconds in (
        ("ms millisecond milliseconds", 0.001), ("s sec secs second seconds", 1.0),
        ("m min mins minute minutes", 60.0), ("h hr hrs hour hours", 3600.0),
        ("d day days", 86400.0),
    )
    for name in names.split()
}  # fmt: skip
MAX_COUNT = 2**63 - 1  # largest whole number: what the arena's counters hold
MAX_SECONDS = 1e9  # longest duration, 32 years: deadlines and timeouts still hold it
_LONGEST_FIRST = "|".join(sorted(_SECONDS, key=len, reverse=True))
# Digits are read from their first one only: else a long number takes quadratic time.
_MILLION, _MINUTE = re.compile(r"[\d.]\s*M[sS]?(?![A-Za-z])"), re.compile(r"[\d.]\s*m$")
_MEANINGS = "1M is a million, 1m a minute and 1ms a millisecond"
_DURATION_PART = re.compile(rf"(?<![\d.])(\d++(?:\.\d*)?)({_LONGEST_FIRST})(?![a-z])")


def parse_count(value: object) -> int:
    """Return a whole number from 1000000, 1e6, "1e6", "10k", "2M" or "1_000".

    Raises:
        ValueError: not a whole number; the message names the accepted forms.
    """
    expected = "a whole number such as 2000, 10k or 1e6"
    if _MINUTE.search(text := _text(value, expected, lower=False)):
        raise ValueError(f"wanted {expected}; {_MEANINGS}")
    text = text.lower().replace("_", "")
    factor = _COUNTS.get(text[-1:], 1)
    digits = text[:-1] if factor > 1 else text
    try:
        # A float would make 4.1M a fraction, and round counts above 2^53.
        number = Decimal(digits) * factor
        is_whole = number == number.to_integral_value()
    except ArithmeticError:  # not a number, or an exponent of ten digits
        is_whole = False
    if not is_whole:
        raise ValueError(f"wanted {expected}")
    if abs(number) > MAX_COUNT:
        raise ValueError(f"wanted {expected}, and below 2^63")
    return int(number)


def parse_number(value: object) -> float:
    """Return a finite float from a number or a text such as "1e-3".

    PyYAML reads `1e-3` (no dot) as a string, hence the text.

    Raises:
        ValueError: not a finite number.
    """
    return _finite(_text(value, "a number"), "a number")


def parse_duration_s(value: object) -> float:
    """Return seconds from 60, "60", "60s", "10m", "1h30m", "5 minutes" or "500ms".

    Raises:
        ValueError: not a duration.
    """
    expected = 'seconds, or a duration such as "90s", "5 minutes" or "1h30m"'
    if _MILLION.search(_text(value, expected, lower=False)):
        raise ValueError(f"wanted {expected}; {_MEANINGS}")
    text = "".join(_text(value, expected).split())
    if text and not _DURATION_PART.sub("", text):
        seconds = sum(float(n) * _SECONDS[unit] for n, unit in _DURATION_PART.findall(text))
    else:
        seconds = _finite(text, expected)
    if abs(seconds) > MAX_SECONDS:
        raise ValueError(f"wanted {expected}, and at most {MAX_SECONDS:g} s")
    return seconds


def python_number(value: T) -> T:
    """Return a number of another package, such as NumPy's, as Python's own; others unchanged."""
    if isinstance(value, int | float) or not isinstance(value, numbers.Real):
        return value
    own: Any = int(value) if isinstance(value, numbers.Integral) else float(value)
    return cast(T, own)


def _text(value: object, expected: str, *, lower: bool = True) -> str:
    """Return a number as text, or a text, perhaps in lower case."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"wanted {expected}")
    try:
        text = str(value).strip()
        return text.lower() if lower else text
    except ValueError:
        raise ValueError(f"wanted {expected}") from None


def _finite(value: float | str, expected: str) -> float:
    try:
        number = float(value)
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"wanted {expected}")
    return number


@dataclass(frozen=True)
class Interval:
    """A frequency: every `steps` steps, every `seconds` seconds, or never."""

    steps: int | None = None
    seconds: float | None = None

    @classmethod
    def parse(cls, value: object, *, is_amount: bool = False) -> "Interval":
        """Parse 500, "10k" or "1M" (steps), "10s" or "1m" (time), "off", None, 0 or -1 (never).

        Of an amount, such as a budget, 0 and -1 are not legal.

        Raises:
            ValueError: another value.
        """
        if isinstance(value, Interval):
            return value
        if value is None or value is False:
            return cls()
        text = "".join(str(value).lower().split())
        if text in ("off", "none") or (text in ("0", "-1") and not is_amount):
            return cls()
        is_time = isinstance(value, str) and _DURATION_PART.search(text)
        if is_time and not re.fullmatch(r"[\d._\s]+M", str(value).strip()):
            interval = cls(seconds=parse_duration_s(value))
        else:
            interval = cls(steps=parse_count(value))
        if (interval.steps or interval.seconds or 0) <= 0:
            raise ValueError("wanted something above 0")
        return interval

    @property
    def on(self) -> bool:
        """Whether it ever happens."""
        return self.steps is not None or self.seconds is not None

    def due(self, *, steps: int, seconds: float) -> bool:
        """Whether the interval has passed, given the steps and seconds since the last time."""
        if self.steps is not None:
            return steps >= self.steps
        return self.seconds is not None and seconds >= self.seconds

    def __str__(self) -> str:
        if self.steps is not None:
            return str(self.steps)
        return "off" if self.seconds is None else f"{_all_digits(self.seconds)}s"


def _all_digits(value: float) -> str:
    digits = f"{Decimal(repr(float(value))):f}"
    return digits.rstrip("0").rstrip(".") if "." in digits else digits


def format_count(value: float) -> str:
    """Format a number in at most four characters and a suffix: 17.2k, 1.31M, 640."""
    scaled, prefix = _scaled(value)
    digits = 0 if not prefix else 2 if scaled < 10 else 1 if scaled < 100 else 0
    return f"{scaled:.{digits}f}{prefix}"


def format_bytes(value: float) -> str:
    """Format a number of bytes: 212 MB, 1.3 GB (decimal units)."""
    scaled, prefix = _scaled(value)
    return f"{scaled:.{1 if prefix and scaled < 10 else 0}f} {prefix}B"


def _scaled(value: float) -> tuple[float, str]:
    every = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
    return next(
        ((value / limit, name) for limit, name in every if abs(value) >= limit), (value, "")
    )


def format_clock(seconds: float) -> str:
    """Format seconds as 00:42 or 1:02:05."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"


def format_duration(seconds: float) -> str:
    """Format seconds with units: 350 ms, 4.2 s, 38 s, 12 min 30 s, 1 h 05 min, 3 d 4 h."""
    if 0 < seconds < 0.9995:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 9.95:
        return f"{seconds:.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days:,} d {hours} h" if hours else f"{days:,} d"
    if hours:
        return f"{hours} h {minutes:02} min" if minutes else f"{hours} h"
    if minutes:
        return f"{minutes} min {rest:02} s" if rest else f"{minutes} min"
    return f"{rest} s"


def format_number(value: float) -> str:
    """Format a number in few digits: 0.00424, 0.9995, 1e-08, 2,000.

    A number of up to six digits, as a person types it, keeps them. Others get three digits, or six
    if three would round them to 1.
    """
    if abs(value) < 1e15 and value == round(value):
        return f"{value:,.0f}"
    chosen, rounded = f"{value:.6g}", f"{value:.3g}"
    if abs(value) >= 1000 and "e" not in chosen:
        return f"{value:,.0f}"
    return chosen if float(chosen) == value or float(rounded) == 1 else rounded


def format_share(value: float) -> str:
    """Format a fraction in percent: 48 %, 0.12 %."""
    percent = 100 * value
    return f"{percent:.2g} %" if 0 < abs(percent) < 9.95 else f"{percent:.0f} %"


def format_value(value: object, unit: str = "") -> str:
    """Format the value of an option: a text, a boolean, or a number with its unit."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if not isinstance(value, int | float):
        return str(value)
    if unit == "s":
        return format_duration(value)
    return f"{format_number(value)} {unit}".rstrip()


_NAME = r"[a-z0-9_](?:[a-z0-9._-]*[a-z0-9_])?"
_HOST = re.compile(
    rf"(?:\[([0-9a-f:.]+)\]|({_NAME}))(?::([0-9]{{1,5}}))?", re.IGNORECASE | re.ASCII
)


def split_host(text: str) -> tuple[str, int | None]:
    """Return the host, in small letters, and the port of HOST, HOST:PORT or [IPv6]:PORT.

    Raises:
        ValueError: anything else, such as a user before the host, a path after it, an empty port.

    >>> split_host("LocalHost:8321"), split_host("[::1]")
    (('localhost', 8321), ('::1', None))
    """
    if (match := _HOST.fullmatch(text)) is None or not 0 < int(match[3] or 1) < 1 << 16:
        raise ValueError(f"{shown(text)} is not HOST or HOST:PORT")
    host = match[2] or str(ipaddress.IPv6Address(match[1]))
    return host.lower(), None if match[3] is None else int(match[3])
