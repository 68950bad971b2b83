import os
import re
from dataclasses import fields, replace

import pytest
import yaml

from mlxhog.config.plugins import Plugin
from mlxhog.errors import StudyError
from mlxhog.mad import run as runs
from mlxhog.mad.run import Point
from mlxhog.mad.study.store import Store, find, find_same, open_store
from mlxhog.mad.study.study import Study
from tests.mad.report.sample import RECORD
from tests.mad.study.small import config


def ended(n=0, **changes):
    of_run = config(n=n)
    values = replace(RECORD, key=of_run.key(), candidate="gated-conv", config=of_run.to_dict())
    return replace(values, label=f"n={n}", steps=10, **changes)


@pytest.fixture
def store(tmp_path):
    return open_store(Study(candidates=("gated-conv",)), tmp_path, "s")


def test_what_was_recorded_is_read_back_in_order(store):
    records = [ended(n) for n in (2, 0, 1)]
    for one in records:
        store.append(one)
    assert store.records() == records
    assert Store(store.directory).records() == records


def test_a_run_that_was_tried_again_counts_with_its_last_record(store):
    for one in (ended(0, status="failed"), ended(1), ended(0)):
        store.append(one)
    assert [(one.label, one.status) for one in store.records()] == [
        ("n=1", "done"),
        ("n=0", "done"),
    ]


def test_a_torn_last_line_is_ignored_by_readers_and_removed_by_the_next_writer(store):
    store.append(ended(0))
    path = store.directory / "runs.jsonl"
    with path.open("ab") as file:
        file.write(b'{"key": "abc", "candidate": "gated-c')
    assert [one.label for one in store.records()] == ["n=0"]
    Store(store.directory).append(ended(1))
    assert [one.label for one in store.records()] == ["n=0", "n=1"]
    assert path.read_bytes().count(b"\n") == 2


def test_a_curve_is_whole_with_the_record(store):
    points = [
        Point(step=n, seconds=0.1, loss=float("nan"), acc_token=0.1, acc_macro=0.2) for n in (1, 2)
    ]
    one = ended(0, curve=tuple(points))
    assert store.curve(one.key) == []
    store.append(one)
    assert [(point.step, point.loss) for point in store.curve(one.key)] == [(1, None), (2, None)]


def test_two_schedulers_at_once_are_refused_and_a_dead_ones_lock_is_free(store):
    with store.lock():
        assert store.is_locked()
        with pytest.raises(StudyError, match=r"in use by process \d+; wait for it"):
            with Store(store.directory).lock():
                pass
    assert (store.directory / "lock").exists()  # as a killed scheduler leaves it
    assert not store.is_locked()
    with Store(store.directory).lock():
        pass


def test_a_name_that_is_no_directory_name_is_refused(tmp_path):
    for name in ("a/b", "", "..", "x y", "a" * 101):
        with pytest.raises(StudyError, match="use letters"):
            open_store(Study(), tmp_path, name)


def test_a_study_is_found_by_name_or_path_and_a_typo_names_the_nearest(store, tmp_path):
    assert find("s", tmp_path).directory == store.directory
    assert find(str(store.directory), tmp_path / "elsewhere").directory == store.directory
    open_store(Study(), tmp_path, "first")
    with pytest.raises(StudyError, match="did you mean 'first'"):
        find("frist", tmp_path)
    with pytest.raises(StudyError, match="holds none, begin one with: mlxhog mad search"):
        find("first", tmp_path / "nothing")


# -- the definition --------------------------------------------------------------------------------


def test_a_study_reads_back_as_it_was_written(tmp_path):
    study = Study(
        space={"depth": 4, "mixers": ["gated-conv"], "budget": {"params": 700_000}},
        protocol={"lr": 1e-3, "steps": 10},
        seeds=(0, 1, 2),
        dim=32,
        prune=True,
    )
    assert open_store(study, tmp_path, "s").study() == study


def test_another_study_in_its_directory_is_refused_with_every_difference(store):
    root, own = str(store.directory.parent), store.study()
    assert find_same(own, root, "s").directory == store.directory
    other = replace(own, suite="lite", protocol={"steps": 5}, seeds=(1, 2), dim=256)
    with pytest.raises(StudyError, match=r"holds another study:(.|\n)*mad resume s") as refusal:
        find_same(other, root, "s")
    for difference in (
        "suite: it has smoke, the command lite",
        "protocol: it has nothing, the command {'steps': 5}",
        "seeds: it has [0], the command [1, 2]",
        "dim: it has nothing, the command 256",
    ):
        assert f"\n  {difference}\n" in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mlxhog", "was made by mlxhog 0, this is"),
        ("generator", "made by the tasks' generators 0, this is"),
        ("format", "made by a format 0, this is 1"),
    ],
)
def test_a_study_of_another_version_is_refused_with_the_way_out(store, name, words):
    path = store.directory / "study.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {name: 0}))
    with pytest.raises(StudyError, match=rf"{words}.*(continue with the version|give another)"):
        store.study()


def test_an_edited_description_is_refused(store):
    path = store.directory / "study.yaml"
    path.write_text(path.read_text() + "sampelr: grid\n")
    with pytest.raises(StudyError, match="'sampelr' is unknown; did you mean 'sampler'"):
        store.study()


def test_every_number_of_a_run_and_the_versions_change_the_key(monkeypatch):
    run = config()
    others = {
        "task": "memorization", "settings": {"vocab": 8}, "layers": run.layers * 2, "dim": 16,
        "protocol": replace(run.protocol, wd_all=True), "seed": 1, "position": "learned",
        "workers": "mlx:cpu", "threads": 2, "plugins": (Plugin("task.py", "0"),),
    }  # fmt: skip
    assert others.keys() == {field.name for field in fields(run)} - {"candidate", "label"}
    assert replace(run, candidate="another", label="other").key() == run.key()
    keys = {run.key(), *(replace(run, **{name: value}).key() for name, value in others.items())}
    monkeypatch.setattr(runs, "GENERATOR_VERSION", 0)
    keys.add(run.key())
    monkeypatch.setattr(runs, "version", lambda name: "0.0.0")
    keys.add(run.key())
    assert len(keys) == len(others) + 3


def test_a_line_is_on_the_disk_before_anybody_goes_on(store, monkeypatch):
    flushed = []
    fsync = os.fsync

    def watched(descriptor):
        flushed.append(os.fstat(descriptor).st_size)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    for n in range(3):
        store.append(ended(n))
        assert (store.directory / "runs.jsonl").stat().st_size in flushed


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("runs", lambda line: "{torn", "line 1 is damaged"),
        ("runs", lambda line: line.replace('"steps": 10', '"steps": "x"'), "steps is 'x'"),
        ("runs", lambda line: line.replace('"status"', '"stat"'), "status.* missing"),
        ("runs", lambda line: line.replace('"by_length": []', '"by_length": [[1]]'), "by_length"),
        ("candidates", lambda line: "{}", "candidate.* missing"),
        ("candidates", lambda line: '{"candidate": 3}', "candidate is 3"),
    ],
)
def test_a_damaged_line_is_named_with_its_file_and_the_way_out(store, name, change, reason):
    store.append(ended(0))
    store.add_proposal("gated-conv", 0.5)
    path = store.directory / f"{name}.jsonl"
    path.write_text(change(path.read_text().rstrip()) + "\n" + path.read_text())
    reader = store.records if name == "runs" else store.proposals
    with pytest.raises(StudyError, match=rf"{name}.jsonl, line 1 .*remove the line") as error:
        reader()
    assert re.search(reason, str(error.value))
