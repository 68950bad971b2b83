"""Tokens per second by batch stay in a file of one machine and its versions."""

import json
from dataclasses import replace

import pytest

from mlxhog.base import batch_speeds, verdicts
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


def test_the_file_forgets_the_oldest_kinds_of_run(monkeypatch):
    monkeypatch.setattr(batch_speeds, "MOST_ROWS", 2)
    for k in range(3):
        save({"model": str(k)}, [ONE])
    assert [load({"model": str(k)}) for k in range(3)] == [(), (ONE,), (ONE,)]


def test_speeds_of_another_version_do_not_count(monkeypatch):
    here = verdicts.identity()
    save(KEY, [ONE])
    monkeypatch.setattr(verdicts, "identity", lambda: replace(here, torch="1.0"))
    assert load(KEY) == ()


@pytest.mark.parametrize(
    "changes",
    [{"tokens_per_s": -1}, {"tokens_per_s": "fast"}, {"error": None}, {"gradient_s": 0}],
)
def test_a_file_with_an_impossible_speed_counts_as_absent_and_is_replaced(changes):
    save(KEY, [ONE])
    record = json.loads(the_file().read_text())
    record["rows"][0]["speeds"][0] |= changes
    the_file().write_text(json.dumps(record))
    assert load(KEY) == ()
    save(KEY, [TWO])
    assert load(KEY) == (TWO,)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', '{"rows": 5}'])
def test_a_damaged_file_counts_as_absent(text):
    save(KEY, [ONE])
    the_file().write_text(text)
    assert load(KEY) == ()


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert load(KEY) == ()
    with pytest.raises(EnvironmentLacks, match=r"batches-.*json.*set XDG_CACHE_HOME"):
        save(KEY, [ONE])
