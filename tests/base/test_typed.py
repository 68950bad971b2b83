"""Dataclasses are read back from JSON by the types of their fields."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import pytest

from mlxhog.base.typed import fill, read


@dataclass(frozen=True)
class Part:
    name: str
    share: float = 0.5


@dataclass(frozen=True)
class Whole:
    n: int = 1
    ok: bool = False
    loss: float | None = None
    parts: tuple[Part, ...] = ()
    counts: Mapping[int, int] = field(default_factory=dict)


WHOLE = Whole(n=3, ok=True, loss=2.5, parts=(Part("a"), Part("b", 1.0)), counts={0: 4, 7: 1})


def test_what_asdict_wrote_is_read_back():
    record = {**asdict(WHOLE), "counts": {"0": 4, "7": 1}, "new field": 1}
    assert read(Whole, record) == fill(Whole, record) == WHOLE


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"n": True}, "^n is True; wanted a whole number$"),
        ({"n": 1.0}, "^n is 1.0; wanted a whole number$"),
        ({"ok": 1}, "^ok is 1; wanted true or false$"),
        ({"loss": "low"}, "^loss is 'low'; wanted a number or null$"),
        ({"loss": float("nan")}, "^loss is nan"),
        ({"loss": 10**400}, "^loss is a whole number of 400 digits"),
        ({"parts": {}}, "^parts is {}; wanted a list of an object$"),
        ({"parts": [{"share": 1}]}, "^parts 'name' is missing$"),
        ({"parts": [{"name": 5}]}, "^parts name is 5; wanted a text$"),
        ({"counts": {"many": 1}}, "^counts"),
    ],
)
def test_a_wrong_field_is_named_or_gets_its_default(record, message):
    with pytest.raises(ValueError, match=message):
        read(Whole, record)
    assert fill(Whole, record) == Whole()


def test_the_good_entries_of_a_list_are_taken_from_a_damaged_file():
    record = {"parts": [{"name": "a"}, 7, {"share": 1}], "counts": {"1": 2, "x": 3, "4": "y"}}
    assert fill(Whole, record) == Whole(parts=(Part("a"),), counts={1: 2})
