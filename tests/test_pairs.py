"""Tests that go through cases fail where one of them does, and name it."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

from tests.pairs import each_of, in_pairs


def test_every_case_is_tested_and_the_first_that_fails_is_named() -> None:
    cases = []

    @each_of(("a", "b"), [(1, 1), pytest.param(2, 3, id="apart"), (4, 4)])
    def test(a: int, b: int) -> None:
        cases.append(a)
        assert a == b

    with pytest.raises(AssertionError) as failure:
        test()
    assert cases == [1, 2]
    assert failure.value.__notes__ == ["case a, b: apart"]


def test_cases_share_fixtures_and_have_folders_of_their_own(tmp_path: Path) -> None:
    cases: list[Any] = []

    @each_of("a", "xy")
    @each_of("b", [1, 2], ids=str)
    def test(tmp_path: Path, shared: list[Any], a: str, b: int) -> None:
        assert not list(tmp_path.iterdir())
        (tmp_path / "file").touch()
        shared.append((a, b))

    assert list(inspect.signature(test).parameters) == ["tmp_path", "shared"]
    test(tmp_path=tmp_path, shared=cases)
    assert cases == [("x", 1), ("x", 2), ("y", 1), ("y", 2)]


def test_a_case_that_is_skipped_is_a_failure() -> None:
    @each_of("a", [1, 2])
    def test(a: int) -> None:
        pytest.skip("not here")

    with pytest.raises(AssertionError, match="was skipped: not here"):
        test()


def test_any_two_values_of_two_axes_meet() -> None:
    cases = []

    @in_pairs(a="xyz", b={"one": 1, "two": 2}, c=(True, False))
    def test(a: str, b: int, c: bool) -> None:
        cases.append((a, b, c))

    test()
    assert {(a, b) for a, b, _ in cases} == {(a, b) for a in "xyz" for b in (1, 2)}
    assert {(a, c) for a, _, c in cases} == {(a, c) for a in "xyz" for c in (True, False)}
    assert {(b, c) for _, b, c in cases} == {(b, c) for b in (1, 2) for c in (True, False)}
    assert len(cases) < 12
