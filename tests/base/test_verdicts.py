"""The stored record of a machine permits only what was measured on it, with these versions."""

import json
import os
import re
from dataclasses import asdict, replace

import pytest

from mlxhog.base.verdicts import FORMAT, Identity, identity, load, save
from mlxhog.errors import EnvironmentLacks
from tests.pairs import each_of

PAIR = {"model": "10m", "pairs": 4, "gain": 1.2, "low": 1.1, "high": 1.3}
MAC = Identity("Apple M4 Pro", "macos 26.1", "0.2.0", "0.32.4", "2.13.0")


def adds(a, b, where="processes", **changes):
    """Litmus rows of a pair that lost nothing, dense and rows."""
    row = {
        "writers": [a, b],
        "where": where,
        "mode": "cas",
        "adds": 1000,
        "lost": 0,
        "torn": 0,
        "adds_per_s": 1e6,
    }
    return [{**row, "kernel": kernel, **changes} for kernel in ("dense", "rows")]


def reads(reader, **changes):
    row = {"reader": reader, "kind": "live", "writer": "native", "samples": 500}
    return row | {"torn": 0, "backwards": 0, "visible_s": 0.001} | changes


def kernel(engine, **changes):
    row = {"name": "dense_axpy", "instance": "", "engine": engine, "ok": True}
    return row | changes


def stored(directory, who=MAC, **parts):
    """A record where `load` looks for that of `MAC`."""
    record = {"format": FORMAT, "identity": asdict(who), "litmus": [], "reads": [], "kernels": []}
    path = directory / MAC.file_name
    path.write_text(json.dumps(record | {"tokens_per_s": {}} | parts))
    return path


def verdicts(directory, **parts):
    stored(directory, **parts)
    return load(directory, MAC)


def test_an_untested_machine_permits_nothing_and_says_what_to_run(tmp_path):
    record = load(tmp_path, MAC)
    assert not record.usable
    for verdict in (
        record.gpu_write(["mlx:gpu"]),
        record.live_read("torch:cpu"),
        record.kernels("mlx"),
        record.pair(),
        record.repeats("mlx:gpu", "reference"),
    ):
        assert not verdict.ok
        assert "mlxhog doctor" in verdict.reason
    assert record.tokens_per_s == {}


def test_without_a_record_the_check_of_each_worker_decides_on_kernels_of_the_model(tmp_path):
    verdict = load(tmp_path, MAC).model_kernels("mlx:gpu")
    assert verdict.ok
    assert "each worker checks" in verdict.reason
    assert "run `mlxhog doctor`" in verdict.reason


def test_a_record_is_named_by_chip_system_and_mlx():
    assert MAC.file_name == "doctor-apple_m4_pro-macos_26.1-0.32.4.json"
    assert "/" not in identity().file_name


@each_of("field", ["chip", "system", "mlxhog", "mlx", "torch"])
def test_a_record_of_another_machine_or_version_does_not_count(tmp_path, field):
    stored(tmp_path, replace(MAC, **{field: "other"}), litmus=adds("metal:mlx", "metal:mlx"))
    record = load(tmp_path, MAC)
    assert not record.gpu_write(["mlx:gpu"]).ok
    assert f"{field} other, this is {getattr(MAC, field)}" in record.gpu_write(["mlx:gpu"]).reason


@each_of(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"format": 99}',
        '{"format": 2}',
    ],
)
def test_a_damaged_record_is_named_and_permits_nothing(tmp_path, text):
    path = stored(tmp_path)
    path.write_text(text)
    record = load(tmp_path, MAC)
    assert not record.usable
    assert f"{path} is damaged" in record.live_read("mlx:gpu").reason


@each_of(
    ("parts", "judge"),
    [
        ({"litmus": [{}]}, lambda record: record.gpu_write(["mlx:gpu"])),
        ({"litmus": adds("metal:mlx", "metal:mlx", "threads", lost=None)},
         lambda record: record.gpu_write(["mlx:gpu"])),
        ({"reads": 5}, lambda record: record.live_read("mlx:gpu")),
        ({"reads": [reads("mlx:gpu", visible_s="soon")]},
         lambda record: record.live_read("mlx:gpu")),
        ({"kernels": [{}]}, lambda record: record.kernels("mlx")),
        ({"kernels": [kernel("mlx")], "tokens_per_s": {"mlx:gpu": 2.0},
          "tokens_per_s_metal": {"mlx:gpu": "fast"}},
         lambda record: record.model_kernels("mlx:gpu")),
        ({"pair": {"low": "high"}}, lambda record: record.pair()),
        ({"repeats": {"mlx:gpu": 1}}, lambda record: record.repeats("mlx:gpu", "metal")),
    ],
)  # fmt: skip
def test_a_damaged_part_of_a_record_permits_nothing(tmp_path, parts, judge):
    verdict = judge(verdicts(tmp_path, **parts))
    assert not verdict.ok
    assert "is damaged" in verdict.reason


def test_a_gpu_worker_writes_where_it_lost_nothing_beside_itself(tmp_path):
    record = verdicts(tmp_path, litmus=adds("metal:mlx", "metal:mlx", "threads"))
    verdict = record.gpu_write(["mlx:gpu"])
    assert verdict.ok
    assert "none of 2,000 concurrent adds" in verdict.reason


def test_two_gpu_workers_need_the_result_of_two_processes(tmp_path):
    alone = adds("metal:mlx", "metal:mlx", "threads")
    assert not verdicts(tmp_path, litmus=alone).gpu_write(["mlx:gpu"] * 2).ok
    both = alone + adds("metal:mlx", "metal:mlx", "processes", lost=1)
    assert verdicts(tmp_path, litmus=both).gpu_write(["mlx:gpu"]).ok
    verdict = verdicts(tmp_path, litmus=both).gpu_write(["mlx:gpu"] * 2)
    assert "metal:mlx and metal:mlx (dense) lost 1 of 1,000" in verdict.reason


def test_a_mix_needs_the_result_of_every_pair_with_a_gpu_writer(tmp_path):
    alone = adds("metal:mlx", "metal:mlx", "threads")
    team = ["mlx:gpu", "torch:cpu", "mlx:cpu"]  # CPU workers add by native kernels
    assert verdicts(tmp_path, litmus=alone + adds("native", "metal:mlx")).gpu_write(team).ok
    verdict = verdicts(tmp_path, litmus=alone).gpu_write(team)
    assert verdict.reason == "doctor has no result for metal:mlx and native (dense) on this machine"


@each_of("changes", [{"lost": 1}, {"torn": 1}, {"error": "it hung"}])
def test_one_lost_or_torn_value_or_a_failure_forbids_gpu_writes(tmp_path, changes):
    rows = adds("metal:mlx", "metal:mlx", "threads", **changes)
    assert not verdicts(tmp_path, litmus=rows).gpu_write(["mlx:gpu"]).ok


def test_a_mix_without_a_gpu_worker_has_nobody_to_write_from_a_gpu(tmp_path):
    assert verdicts(tmp_path).gpu_write(["torch:cpu"]).reason == "no GPU worker in the mix"


def test_live_reads_are_permitted_where_all_were_whole_and_fresh(tmp_path):
    rows = [reads("mlx:gpu"), reads("mlx:gpu", writer="torch:cpu")]
    assert "1,000 live reads" in verdicts(tmp_path, reads=rows).live_read("mlx:gpu").reason
    assert not verdicts(tmp_path, reads=[reads("mlx:gpu", kind="snapshot")]).live_read("mlx:gpu").ok
    for wrong in ({"torn": 1}, {"backwards": 1}, {"visible_s": 1.5}, {"error": "it hung"}):
        assert (
            not verdicts(tmp_path, reads=[*rows, reads("mlx:gpu", **wrong)]).live_read("mlx:gpu").ok
        )


def test_kernels_count_where_all_of_them_agreed_on_the_engine(tmp_path):
    assert verdicts(tmp_path, kernels=[kernel("mlx")]).kernels("mlx").ok
    assert not verdicts(tmp_path, kernels=[kernel("mlx")]).kernels("mps").ok
    wrong = kernel("mlx", name="slstm_forward", instance="64", ok=False)
    verdict = verdicts(tmp_path, kernels=[kernel("mlx"), wrong]).kernels("mlx")
    assert "slstm_forward 64" in verdict.reason


@each_of(
    ("parts", "ok", "message"),
    [
        ({}, True, "300 tokens/s with the Metal kernels, 200 with the operations of mlx"),
        ({"tokens_per_s_metal": {"mlx:gpu": 200.0}}, False, "200 tokens/s with the Metal kernels"),
        ({"kernels": [kernel("mlx", ok=False)]}, False, "differ from reference: dense_axpy"),
        ({"kernels": []}, False, "ran no kernel on mlx"),
        ({"tokens_per_s_metal": {}}, False, "has not measured mlx:gpu with the Metal kernels"),
        ({"tokens_per_s": {}}, False, "has not measured mlx:gpu"),
    ],
)
def test_the_model_goes_through_metal_kernels_that_are_right_and_faster(
    tmp_path, parts, ok, message
):
    good = {
        "kernels": [kernel("mlx")],
        "tokens_per_s": {"mlx:gpu": 200.0},
        "tokens_per_s_metal": {"mlx:gpu": 300.0},
    }
    verdict = verdicts(tmp_path, **{**good, **parts}).model_kernels("mlx:gpu")
    assert verdict.ok is ok
    assert message in verdict.reason
    assert not verdicts(tmp_path, **good).model_kernels("mlx:cpu").ok


@each_of(
    ("row", "ok", "message"),
    [
        (PAIR, True, r"1\.20 times .* of mlx:gpu alone \(1\.10 to 1\.30, 4 pairs of runs of 10m\)"),
        ({**PAIR, "low": 1.0}, False, r"1\.20 times .* \(1\.00 to 1\.30.*no certain gain"),
        ({**PAIR, "gain": 0.8, "low": 0.7, "high": 0.9}, False, r"0\.80 times"),
    ],
)
def test_both_engines_of_a_gpu_train_where_the_whole_interval_is_a_gain(tmp_path, row, ok, message):
    verdict = verdicts(tmp_path, pair=row).pair()
    assert verdict.ok is ok
    assert re.search(message, verdict.reason)


def test_a_form_repeats_where_two_processes_computed_the_same_bits(tmp_path):
    record = verdicts(tmp_path, repeats={"mlx:gpu": {"reference": True, "metal": False}})
    assert record.repeats("mlx:gpu", "reference").ok
    assert not record.repeats("mlx:gpu", "metal").ok
    assert "not compared" in record.repeats("torch:mps", "reference").reason


# -- a record is whole or absent, and is found again by who may use it -----------------------------


RECORD = {"litmus": [], "reads": [], "kernels": [], "tokens_per_s": {"a": 1.5}}


def identified(who):
    return {"format": FORMAT, "identity": asdict(who), **RECORD}


def test_what_is_saved_is_what_a_run_loads():
    here = identity()
    path = save(identified(here), here)
    loaded = load()
    assert loaded.usable
    assert loaded.path == path
    assert loaded.tokens_per_s == {"a": 1.5}
    assert [file.name for file in path.parent.glob("doctor*")] == [path.name]


def test_a_record_of_other_versions_is_replaced():
    here = identity()
    save(identified(replace(here, mlxhog="0.0.1")), here)
    assert not load().usable
    save(identified(here), here)
    assert load().usable


def test_a_folder_that_cannot_be_written_says_how_to_choose_another(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(EnvironmentLacks, match="set XDG_CACHE_HOME"):
        save({}, identity(), tmp_path / "file" / "below")


def test_a_writer_that_dies_leaves_the_old_record(tmp_path, monkeypatch):
    here = identity()
    save(identified(here), here, tmp_path)

    def full(source, target):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(EnvironmentLacks):
        save({}, here, tmp_path)
    assert load(tmp_path).usable
