"""Cases of a test in which every two values of two axes meet, without the full product."""

from collections.abc import Callable, Iterable, Mapping
from itertools import combinations, product
from typing import Any

import pytest

Axis = Mapping[str, Any] | Iterable[Any]


def in_pairs(**axes: Axis) -> Callable[[Any], Any]:
    """Parametrize a test by its arguments' values, a mapping from the name of each or the values.

    The cases are chosen greedily from the product and are the same in every run: any two values of
    different axes occur together in at least one of them.
    """
    values = {
        name: list(axis.items()) if isinstance(axis, Mapping) else [(str(x), x) for x in axis]
        for name, axis in axes.items()
    }
    rows = list(product(*(range(len(axis)) for axis in values.values())))
    pairs = {row: {*combinations(enumerate(row), 2)} for row in rows}
    missing = set().union(*pairs.values())
    cases = []
    while missing:
        best = max(rows, key=lambda row: len(pairs[row] & missing))
        missing -= pairs[best]
        chosen = [axis[place] for axis, place in zip(values.values(), best, strict=True)]
        cases.append(pytest.param(*(x for _, x in chosen), id="-".join(name for name, _ in chosen)))
    return pytest.mark.parametrize(tuple(values), cases)
