"""A study directory: lines survive kills, and another study, version or damage is refused."""

import os
import re
from dataclasses import fields, replace

import pytest
import yaml

from mlxhog.config.plugins import Plugin
from mlxhog.errors import StudyError
from mlxhog.mad import run as runs
from mlxhog.mad.run import EvalPoint
from mlxhog.mad.study.definition import STAMP, StudyDefinition
from mlxhog.mad.study.store import Store, find, open_store, store_of
from tests.mad.study.small import config, result
from tests.odd_disk import EVERY, held_elsewhere, odd_disk
from tests.pairs import each_of

DEFINITION = StudyDefinition(
    space={"depth": 4, "mixers": ["gated-conv"], "budget": {"params": 700_000}},
    recipe={"lr": 1e-3, "steps": 10},
    seeds=(0, 1, 2),
    dim=32,
    prune=True,
)


def ended(n=0, **how):
    return result(config(n), **how)


@pytest.fixture
def store(tmp_path):
    return open_store(DEFINITION, tmp_path, "s")


def test_records_and_curves_read_back_in_order_and_a_repeated_run_counts_once(store):
    points = tuple(
        EvalPoint(step=n, seconds=0.1, loss=float("nan"), acc_token=0.1, acc_macro=0.2)
        for n in (1, 2)
    )
    some = [ended(2), ended(0, status="failed"), ended(1), ended(0, curve=points)]
    for one in some:
        store.append(one)
    assert Store(store.directory).records() == [some[0], some[2], replace(some[3], curve=())]
    curve = store.curve(some[3].key)
    assert [(point.step, point.loss) for point in curve] == [(1, None), (2, None)]
    assert store.curve(some[2].key) == []


def test_a_line_is_on_the_disk_at_once_and_a_torn_one_is_ignored_and_removed(store, monkeypatch):
    flushed, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: flushed.append(os.fstat(fd).st_size) or fsync(fd))
    store.append(ended(0))
    path = store.directory / "runs.jsonl"
    assert path.stat().st_size in flushed
    with path.open("ab") as file:
        file.write(b'{"key": "abc", "candidate": "gated-c')
    assert [one.seed for one in store.records()] == [0]
    Store(store.directory).append(ended(1))
    assert [one.seed for one in store.records()] == [0, 1]
    assert path.read_bytes().count(b"\n") == 2


def test_two_schedulers_at_once_are_refused_and_a_dead_ones_lock_is_free(store):
    with store.lock():
        assert store.is_locked()
        refused = pytest.raises(StudyError, match=r"in use by process \d+; wait for it")
        with refused, Store(store.directory).lock():
            pass
    assert (store.directory / "lock").exists()  # as a killed scheduler leaves it
    assert not store.is_locked()


def test_a_study_that_another_host_works_on_is_refused_and_shown_as_running(store):
    record = held_elsewhere(store.directory)
    assert store.is_locked()
    refused = pytest.raises(StudyError, match="in use by process 7 on another; .* another has died")
    with refused, store.lock():
        pass
    os.utime(record, (1, 1))  # no sign of life for long
    with store.lock():
        assert store.is_locked()


@each_of("kind, number", EVERY)
def test_a_study_is_kept_on_any_disk(tmp_path, kind, number):
    with odd_disk(tmp_path, kind, number):
        one = open_store(StudyDefinition(), tmp_path, "s")
        with one.lock():
            one.append(ended(0))
            one.add_proposal("gated-conv")
        assert [record.seed for record in one.records()] == [0]


def test_a_study_is_found_by_name_or_path_and_a_typo_names_the_nearest(store, tmp_path):
    assert find("s", tmp_path).directory == store.directory
    assert find(str(store.directory), tmp_path / "elsewhere").directory == store.directory
    open_store(StudyDefinition(), tmp_path, "first")
    with pytest.raises(StudyError, match="did you mean 'first'"):
        find("frist", tmp_path)
    with pytest.raises(StudyError, match="holds none, begin one with: mlxhog mad search"):
        find("first", tmp_path / "nothing")
    with pytest.raises(StudyError, match="mlxhog mad search --study 'the first'"):
        find("the first", tmp_path / "nothing")
    for name in ("a/b", "", "..", "x y", "a" * 101):
        with pytest.raises(StudyError, match="use letters"):
            open_store(StudyDefinition(), tmp_path, name)


def test_a_study_reads_back_and_another_one_is_refused_with_every_difference(store):
    root = store.directory.parent
    assert store.study() == DEFINITION
    assert store_of(DEFINITION, root, "s").directory == store.directory
    other = replace(DEFINITION, suite="lite", recipe={"steps": 5}, seeds=(1, 2), dim=None)
    with pytest.raises(
        StudyError, match=r"holds another study:(.|\n)*mad resume \S*/s\b"
    ) as refusal:
        store_of(other, root, "s")
    for difference in (
        "suite: it has smoke, the command lite",
        "recipe: it has {'lr': 0.001, 'steps': 10}, the command {'steps': 5}",
        "seeds: it has [0, 1, 2], the command [1, 2]",
        "dim: it has 32, the command nothing",
    ):
        assert f"\n  {difference}\n" in str(refusal.value)


def test_of_two_studies_of_one_name_that_begin_at_once_the_second_one_is_refused(
    tmp_path, monkeypatch
):
    dump, first = yaml.safe_dump, replace(DEFINITION, suite="lite")

    def begun_meanwhile(*values, **how):
        monkeypatch.undo()
        open_store(first, tmp_path, "s")
        return dump(*values, **how)

    monkeypatch.setattr(yaml, "safe_dump", begun_meanwhile)
    with pytest.raises(StudyError, match="suite: it has lite, the command smoke"):
        open_store(DEFINITION, tmp_path, "s")
    assert find("s", tmp_path).study() == first


@each_of(
    ("change", "words"),
    [
        *(({one: 0}, rf"made by .*{one} 0.*, this is .*continue with the ver") for one in STAMP),
        ({"seeds": "many"}, "seeds is 'many'; .*not to be edited"),
    ],
)
def test_a_study_of_another_version_or_an_edited_one_is_refused(change, words, tmp_path):
    path = open_store(DEFINITION, tmp_path, "s").definition
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | change))
    with pytest.raises(StudyError, match=words):
        Store(path.parent).study()


@each_of(
    ("name", "change", "reason"),
    [
        ("runs", lambda line: "{torn", "line 1 is damaged"),
        ("runs", lambda line: line.replace('"status"', '"stat"'), "status.* missing"),
        ("candidates", lambda line: '{"candidate": 3}', "candidate is 3"),
    ],
)
def test_a_damaged_line_is_named_with_its_file_and_the_way_out(name, change, reason, tmp_path):
    store = open_store(DEFINITION, tmp_path, "s")
    store.append(ended(0))
    store.add_proposal("gated-conv", 0.5)
    path = store.directory / f"{name}.jsonl"
    path.write_text(change(path.read_text().rstrip()) + "\n" + path.read_text())
    reader = store.records if name == "runs" else store.proposals
    with pytest.raises(StudyError, match=rf"{name}.jsonl, line 1 .*remove the line") as error:
        reader()
    assert re.search(reason, str(error.value))


def test_every_number_of_a_run_and_the_versions_change_the_key(monkeypatch):
    run = config()
    others = {
        "task": "memorization", "settings": {"vocab": 8}, "layers": run.layers * 2, "dim": 16,
        "recipe": replace(run.recipe, wd_all=True), "seed": 1, "position": "learned",
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
