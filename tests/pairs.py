"""Cases of a test: all in one test, those in which every two values of two axes meet, or drawn."""

import functools
import inspect
from collections.abc import Mapping
from itertools import combinations, product

import hypothesis
import pytest

FEW = 10
"""Examples of a property, unless pytest has `--whole`, or a profile of hypothesis."""
ENDS = (Exception, pytest.fail.Exception, pytest.skip.Exception)


def each_of(names, cases, ids=None):
    """Like `pytest.mark.parametrize`, but one test goes through all cases.

    For cases that are over in milliseconds: a test of its own takes longer than such a case. They
    share the fixtures, but for a `tmp_path` of their own. A case that fails or is skipped is
    reported as a subtest, and the others run, too.

    Args:
        names: of the test's arguments, as for `parametrize`.
        cases: a value for each of them; `pytest.param` without marks has an id.
        ids: names of the cases, or what makes one of a value.
    """
    arguments = [name.strip() for name in names.split(",")] if isinstance(names, str) else [*names]
    labels = iter(ids) if ids is not None and not callable(ids) else None
    rows = []
    for case in cases:
        is_named = isinstance(case, type(pytest.param()))
        assert not (is_named and case.marks), "a case with marks is a test of its own"
        values = case.values if is_named else case if len(arguments) > 1 else (case,)
        if labels is not None:
            label = next(labels)
        elif callable(ids):
            label = "-".join(str(ids(value)) for value in values)
        else:
            label = case.id if is_named and case.id else repr(values)
        rows.append((label, dict(zip(arguments, values, strict=True))))

    def decorate(test):
        single, inner = getattr(test, "cases", (test, [("", {})]))
        cases = [
            (", ".join(filter(None, (label, other))), {**values, **more})
            for label, values in rows
            for other, more in inner
        ]

        @functools.wraps(single, updated=())
        def through(subtests, **fixtures):
            folder = fixtures.get("tmp_path")
            for number, (label, values) in enumerate(cases):
                if folder is not None:
                    fixtures["tmp_path"] = folder / str(number)
                    fixtures["tmp_path"].mkdir()
                try:
                    single(**fixtures, **values)
                except ENDS as end:  # a subtest takes 5 ms, more than most cases: others have none
                    with subtests.test(label):
                        raise end

        filled = {name for _, values in cases for name in values}
        parameters = inspect.signature(single).parameters.values()
        fixtures = [one for one in parameters if one.name not in filled]
        subtests = inspect.Parameter("subtests", inspect.Parameter.KEYWORD_ONLY)
        through.__signature__ = inspect.Signature([*fixtures, subtests])
        through.pytestmark = getattr(single, "pytestmark", [])
        through.cases = single, cases  # of one that is put around it
        return through

    return decorate


def in_pairs(**axes):
    """Go through the pairs of an `each_of`, from a mapping of the values' names or the values.

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
    return each_of(tuple(values), cases)


def max_examples(n, **settings):
    """Settings of hypothesis: n examples in a whole run, `FEW` in others."""
    few = hypothesis.settings.default.max_examples <= FEW
    return hypothesis.settings(max_examples=min(n, FEW) if few else n, **settings)
