"""Tokens per second by batch stay in a file of one machine and its versions."""

import json
from dataclasses import replace

import pytest

from mlxhog.base import verdicts
from mlxhog.base.batch_speeds import BatchSpeed, load, save
from mlxhog.base.cache import user_cache_directory
from mlxhog.errors import EnvironmentLacks

ONE, TWO = BatchSpeed(1, 100.0, 0.01, 0.5), BatchSpeed(2, 150.0, 0.02, 0.7)
KEY, OTHER = ({"model": name, "workers": [["mlx:cpu", 1, "native"]]} for name in ("a", "b"))


def the_file():
    (path,) = user_cache_directory().glob("batches-*.json")
    return path


def test_a_kind_of_run_has_its_newest_speeds():
    assert load(KEY) == ()
    save(KEY, [ONE])
    save(OTHER, [TWO])
    save(KEY, [ONE, TWO])
    assert load(KEY) == (ONE, TWO)
    assert load(OTHER) == (TWO,)
    assert len(json.loads(the_file().read_text())["rows"]) == 2


def test_speeds_of_another_version_do_not_count(monkeypatch):
    here = verdicts.identity()
    save(KEY, [ONE])
    monkeypatch.setattr(verdicts, "identity", lambda: replace(here, torch="1.0"))
    assert load(KEY) == ()


@pytest.mark.parametrize("change", ["}", "100.0", "0.5", '"rows"', '"format"'])
def test_a_damaged_file_or_an_impossible_speed_counts_as_absent_and_is_replaced(change):
    save(KEY, [ONE])
    the_file().write_text(the_file().read_text().replace(change, "0"))
    assert load(KEY) == ()
    save(KEY, [TWO])
    assert load(KEY) == (TWO,)


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert load(KEY) == ()
    with pytest.raises(EnvironmentLacks, match=r"batches-.*json.*set XDG_CACHE_HOME"):
        save(KEY, [ONE])
