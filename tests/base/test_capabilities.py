"""The stored record of a machine permits only what was measured on it, with these versions."""

import errno
import json
import os
import re
from dataclasses import asdict, replace
from pathlib import Path
from unittest.mock import Mock

import pytest

from mlxhog.base.capabilities import (
    FORMAT,
    CellShape,
    CellTimes,
    Identity,
    identity,
    load,
    save,
    save_cells,
)
from mlxhog.errors import EnvironmentLacks
from tests.pairs import each_of

PAIR = {"model": "10m", "pairs": 4, "gain": 1.2, "low": 1.1, "high": 1.3}
MAC = Identity("Apple M4 Pro", "macos 26.1", "0.2.0", "0.32.4", "2.13.0")


def adds(a, b, **changes):
    """Litmus rows of a pair that lost nothing, dense and rows."""
    row = {"writers": [a, b], "mode": "cas", "adds": 1000, "lost": 0, "torn": 0}
    return [{**row, "kernel": kernel, **changes} for kernel in ("dense", "rows")]


def reads(reader, **changes):
    row = {"reader": reader, "kind": "live", "writer": "native", "samples": 500}
    return row | {"torn": 0, "backwards": 0, "visible_s": 0.001} | changes


def kernel(engine, **changes):
    return {"name": "dense_axpy", "engine": engine, "ok": True, **changes}


def record_of(who, **parts):
    empty = {"litmus": [], "reads": [], "kernels": [], "tokens_per_s": {}}
    return {"format": FORMAT, "identity": asdict(who), **empty, **parts}


def loaded(directory, who=MAC, text=None, **parts):
    """What `load` reads of a record where it looks for that of `MAC`."""
    text = json.dumps(record_of(who, **parts)) if text is None else text
    (directory / MAC.file_name).write_text(text)
    return load(directory, MAC)


JUDGES = {
    "write": lambda record: record.gpu_write(["mlx:gpu"]),
    "two write": lambda record: record.gpu_write(["mlx:gpu"] * 2),
    "mix writes": lambda record: record.gpu_write(["mlx:gpu", "torch:cpu", "mlx:cpu"]),
    "no GPU": lambda record: record.gpu_write(["torch:cpu"]),
    "read": lambda record: record.live_read("mlx:gpu"),
    "kernels": lambda record: record.kernels("mlx"),
    "model": lambda record: record.model_kernels("mlx:gpu"),
    "pair": lambda record: record.pair(),
    "repeats": lambda record: record.repeats("mlx:gpu", "metal"),
}


def test_an_untested_machine_permits_nothing_but_kernels_that_each_worker_checks(tmp_path):
    record = load(tmp_path, MAC)
    assert not record.usable
    assert record.tokens_per_s == {}
    for name, judge in JUDGES.items():
        assert judge(record).ok is (name == "model")
        assert "run `mlxhog doctor`" in judge(record).reason


def test_a_record_of_another_machine_or_version_and_a_damaged_one_do_not_count(tmp_path):
    assert MAC.file_name == "doctor-apple_m4_pro-macos_26.1-0.32.4.json"
    assert "/" not in identity().file_name
    for field, value in asdict(MAC).items():
        verdict = JUDGES["write"](loaded(tmp_path, replace(MAC, **{field: "other"}), litmus=ALONE))
        assert not verdict.ok
        assert f"{field} other, this is {value}" in verdict.reason
    for text in ("{", "[]", '{"format": 99}', '{"format": 2}'):
        record = loaded(tmp_path, text=text)
        assert not record.usable
        assert f"{record.path} is damaged" in JUDGES["read"](record).reason


ALONE = adds("metal:mlx", "metal:mlx")
RIGHT = {"kernels": [kernel("mlx")], "tokens_per_s_metal": {"mlx:gpu": 300.0}}
READS = [reads("mlx:gpu"), reads("mlx:gpu", writer="torch:cpu")]


def test_a_record_that_others_could_write_permits_nothing_and_a_new_one_is_ones_own(tmp_path):
    path = save(record_of(MAC), MAC, tmp_path)
    assert (path.stat().st_mode & 0o777, load(tmp_path, MAC).usable) == (0o600, True)
    path.chmod(0o666)
    assert "is not trusted: it can be written by others" in str(load(tmp_path, MAC).problem)


@each_of(
    ("judge", "parts", "ok", "words"),
    [
        ("write", {"litmus": ALONE}, True, "none of 2,000 adds of two writers"),
        *(("write", {"litmus": adds("metal:mlx", "metal:mlx", **wrong)}, False, words)
          for wrong, words in (
            ({"lost": 1}, "lost 1 of 1,000"), ({"torn": 1}, "1 values were torn"),
            ({"error": "it hung"}, "failed: it hung"))),
        ("two write", {"litmus": ALONE + adds("metal:mlx", "metal:mlx", lost=1)}, False,
         "metal:mlx and metal:mlx \\(dense\\) lost 1 of 1,000"),
        ("mix writes", {"litmus": ALONE + adds("native", "metal:mlx")}, True, "none of"),
        ("mix writes", {"litmus": ALONE}, False,
         "^doctor has no result for metal:mlx and native \\(dense\\) on this machine$"),
        ("no GPU", {}, False, "^no GPU worker in the mix$"),
        ("read", {"reads": READS}, True, "1,000 live reads"),
        *(("read", {"reads": [*READS, reads("mlx:gpu", **wrong)]}, False, "live reads of mlx:gpu")
          for wrong in ({"torn": 1}, {"backwards": 1}, {"visible_s": 1.5}, {"error": "it hung"})),
        ("kernels", {"kernels": [kernel("mlx")]}, True, "1 kernels agree"),
        ("kernels",
         {"kernels": [kernel("mlx"), kernel("mlx", name="slstm", ok=False)]}, False, "slstm"),
        ("model", RIGHT, True, "1 kernels agree"),
        ("model", {**RIGHT, "kernels": [kernel("mlx", ok=False)]}, False, "differ .*: dense_axpy"),
        ("model", {"kernels": [kernel("mlx")]}, False, "no right gradient of mlx:gpu by Metal"),
        ("pair", {"pair": PAIR}, True,
         "1.20 times .* of mlx:gpu alone \\(1.10 to 1.30, 4 pairs of runs of 10m\\)"),
        ("pair", {"pair": {**PAIR, "low": 1.0}}, False, "1.00 to 1.30.*no certain gain"),
        ("repeats", {"repeats": {"mlx:gpu": {"metal": True}}}, True, "the same bits"),
        ("repeats", {"repeats": {"mlx:gpu": {"metal": False}}}, False, "differed in their bits"),
        ("repeats", {"repeats": {"mlx:gpu": {"eager": True}}}, False, "not compared"),
    ],
)  # fmt: skip
def test_a_record_permits_what_it_shows_and_says_why(tmp_path, judge, parts, ok, words):
    verdict = JUDGES[judge](loaded(tmp_path, **parts))
    assert verdict.ok is ok
    assert re.search(words, verdict.reason)


def test_a_record_on_a_disk_without_modes_counts_unless_others_could_write_it(monkeypatch):
    here = identity()
    monkeypatch.setattr(Path, "chmod", Mock(side_effect=PermissionError(errno.EPERM, "no modes")))
    path = save(record_of(here), here)
    assert (load().usable, load().path) == (True, path)
    monkeypatch.setattr(
        "mlxhog.base.capabilities.replace_file", lambda path, _: os.chmod(path, 0o666)
    )
    with pytest.raises(EnvironmentLacks, match="can be written by others"):
        save(record_of(here), here)


def test_what_is_saved_is_what_a_run_loads_and_a_writer_that_dies_leaves_it(tmp_path, monkeypatch):
    here = identity()
    path = save(record_of(here, tokens_per_s={"a": 1.5}), here)
    record = load()
    assert (record.usable, record.path, record.tokens_per_s) == (True, path, {"a": 1.5})
    assert [file.name for file in path.parent.glob("doctor*")] == [path.name]
    full = OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", Mock(side_effect=full))
        with pytest.raises(EnvironmentLacks):
            save({}, here)
    assert load().usable
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(EnvironmentLacks, match="set XDG_CACHE_HOME"):
        save({}, here, tmp_path / "file" / "below")


def test_times_of_cells_are_added_to_those_of_this_machine_with_and_without_a_record(tmp_path):
    cell, other = CellShape("mlstm_cell", (4, 96, 192, 64)), CellShape("slstm_cell", (4, 192))
    save_cells([CellTimes("mlx:gpu", cell, 3.0, 2.0)], tmp_path)
    save_cells([CellTimes("torch:mps", cell, 5.0, 6.0), CellTimes("mlx:gpu", cell, 3.0, 1.0)],
               tmp_path)  # fmt: skip
    record = load(tmp_path)
    assert not record.usable
    assert set(record.cells) == {
        CellTimes("mlx:gpu", cell, 3.0, 1.0), CellTimes("torch:mps", cell, 5.0, 6.0)
    }  # fmt: skip
    save(record_of(identity()), identity(), tmp_path)
    assert load(tmp_path).usable
    assert load(tmp_path).times_of("torch:mps", cell).metal_s == 6.0
    assert load(tmp_path).times_of("mlx:gpu", other) is None
    path = tmp_path / identity().cells_name
    row = CellTimes("mlx:gpu", cell, 3.0, 1.0).row()
    for rows in (7, [7], [{**row, "sizes": 4}], [{**row, "eager_s": None}], [{"operator": "x"}]):
        damaged = {**json.loads(path.read_text()), "cells": rows}
        path.write_text(json.dumps(damaged))
        assert load(tmp_path).cells == (), "a damaged file: they are measured again"
    path.unlink()
    assert load(tmp_path, replace(identity(), mlx="other")).cells == ()
