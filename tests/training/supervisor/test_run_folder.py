"""The folder of a run in training: found where it was renamed, made again where it was removed."""

import os
import shutil
from contextlib import ExitStack

import pytest

from mlxhog.checkpoint import new_run
from mlxhog.checkpoint import run as runs
from mlxhog.errors import EnvironmentLacks
from mlxhog.training.plan.decide import make_plan
from mlxhog.training.supervisor import run_folder
from mlxhog.training.supervisor.run_folder import FolderFollower
from tests.training.small import small_config


@pytest.fixture
def stack():
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def run(tmp_path, stack):
    """A run that this process holds."""
    return new_run.create(tmp_path / "runs", "small", hold=stack)


@pytest.fixture
def folder(run, stack, tmp_path):
    plan = make_plan(small_config(tmp_path))
    return FolderFollower(run, lambda: plan, stack)


def test_a_folder_in_its_place_is_no_news_also_on_a_disk_that_numbers_folders_anew(
    run, folder, monkeypatch
):
    names = sorted(os.listdir(run.directory))
    monkeypatch.setattr(os.path, "samestat", lambda one, other: False)
    assert folder.find() is None
    assert sorted(os.listdir(run.directory)) == names


def test_a_renamed_folder_is_followed_as_often_as_it_is_renamed(run, folder):
    for name in ("one", "two"):
        path = run.directory.with_name(name)
        list(run.directory.parent.iterdir())[0].rename(path)
        found, message = folder.find()
        assert found == runs.Run(path)
        assert message.endswith(f"was renamed; the run continues in {path}")
        assert found.is_locked()
        assert folder.find() is None


def test_a_removed_folder_is_made_again_where_it_was_first_and_is_locked(run, folder):
    run.directory.rename(trash := run.directory.with_name("trash"))
    folder.find()
    shutil.rmtree(trash)
    found, message = folder.find()
    assert found == run
    assert f"{trash} was removed; {run.directory} is made again" in message
    assert "seq_len: 32" in run.config_path.read_text()
    assert ((run.architecture / "config.json").is_file(), run.is_locked()) == (True, True)
    assert folder.find() is None


def test_a_copy_in_the_place_of_the_folder_is_taken_and_that_of_another_process_is_not(
    run, folder, tmp_path
):
    for is_held in (False, True):
        shutil.copytree(run.directory, tmp_path / "copy")
        shutil.rmtree(run.directory)
        (tmp_path / "copy").rename(run.directory)
        if not is_held:
            assert folder.find()[0] == run
            continue
        with run.lock(), pytest.raises(EnvironmentLacks, match="is in use by process"):
            folder.find()


def test_a_folder_that_could_not_be_made_again_is_made_when_it_can_be(run, folder, monkeypatch):
    def full(run, plan):
        raise EnvironmentLacks("the disk became full")

    shutil.rmtree(run.directory)
    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "write_model", full)
        with pytest.raises(EnvironmentLacks, match="full"):
            folder.find()
    assert not run.is_locked()
    assert folder.find()[0] == run
    assert (run.is_locked(), folder.find()) == (True, None)
