"""A record is whole or absent, and is found again by who may use it."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from mlxhog.doctor import verdict
from mlxhog.errors import EnvironmentLacks
from mlxhog.machine import verdicts

RECORD: dict[str, Any] = {"litmus": [], "reads": [], "kernels": [], "tokens_per_s": {"a": 1.5}}


def record(who: verdicts.Identity) -> dict[str, Any]:
    return {"format": verdicts.FORMAT, "identity": asdict(who), **RECORD}


def test_what_is_saved_is_what_a_run_loads() -> None:
    here = verdicts.identity()
    path = verdict.save(record(here), here)
    found = verdicts.load()
    assert found.found
    assert found.path == path
    assert found.tokens_per_s == {"a": 1.5}
    assert [file.name for file in path.parent.glob("doctor*")] == [path.name]


def test_a_record_of_other_versions_is_replaced() -> None:
    here = verdicts.identity()
    verdict.save(record(replace(here, mlxhog="0.0.1")), here)
    assert not verdicts.load().found
    verdict.save(record(here), here)
    assert verdicts.load().found


def test_numbers_that_are_not_finite_are_kept_as_null(tmp_path: Path) -> None:
    here = verdicts.identity()
    row = {"max_error": float("inf")}
    path = verdict.save({**record(here), "more": [row]}, here, tmp_path)
    assert '"max_error": null' in path.read_text()


def test_a_folder_that_cannot_be_written_says_how_to_choose_another(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(EnvironmentLacks, match="set XDG_CACHE_HOME"):
        verdict.save({}, verdicts.identity(), tmp_path / "file" / "below")


def test_a_writer_that_dies_leaves_the_old_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = verdicts.identity()
    verdict.save(record(here), here, tmp_path)

    def full(source: object, target: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(EnvironmentLacks):
        verdict.save({}, here, tmp_path)
    assert verdicts.load(tmp_path).found
