"""Below a folder no link is followed, and no file changes that has a name elsewhere."""

import errno
import os

import pytest

from mlxhog.base.inside import inside, refuse_links, subfolder
from mlxhog.errors import RunError
from tests.pairs import each_of


@pytest.fixture
def places(tmp_path):
    """A folder of the user with a file, and a folder beside it."""
    home, folder = tmp_path / "home", tmp_path / "run"
    (home / "logs").mkdir(parents=True)
    (home / "logs" / "mine.txt").write_text("mine")
    folder.mkdir()
    return home / "logs", folder


@each_of("mode", ["a", "a+", "w", "r+", "r"])
@each_of("name", ["mine.txt", "logs/mine.txt", "deep/logs/mine.txt"])
def test_no_mode_opens_a_file_through_a_link_of_the_file_or_of_a_folder(places, name, mode):
    (outside, folder), path = places, places[1] / name
    target = outside / "mine.txt" if path.parent == folder else outside
    link = path if path.parent == folder else path.parent
    link.parent.mkdir(exist_ok=True)
    if not link.is_symlink():
        link.symlink_to(target)
    with pytest.raises(OSError, match="link") as refused:
        open(path, mode, opener=inside(folder))
    assert (refused.value.errno, refused.value.filename) == (errno.ELOOP, str(path))
    assert (outside / "mine.txt").read_text() == "mine"


@each_of("mode", ["a", "w", "r+"])
def test_a_file_with_a_second_name_is_read_and_not_written(places, mode):
    (outside, folder), path = places, places[1] / "samples.txt"
    if not path.exists():
        os.link(outside / "mine.txt", path)
    with pytest.raises(OSError, match="hard link"):
        open(path, mode, opener=inside(folder))
    with open(path, opener=inside(folder)) as file:
        assert file.read() == "mine"


def test_a_folder_that_the_user_names_may_be_a_link(places, tmp_path):
    _, folder = places
    (tmp_path / "named").symlink_to(folder)
    named = tmp_path / "named"
    subfolder(named, "logs")
    with open(named / "logs" / "worker.log", "w", opener=inside(named)) as file:
        file.write("x")
    assert (folder / "logs" / "worker.log").read_text() == "x"
    refuse_links(named, RunError)


def test_a_subfolder_that_became_a_link_after_the_check_is_not_entered(places):
    outside, folder = places
    path = subfolder(folder, "logs") / "mine.txt"
    refuse_links(folder, RunError)
    path.parent.rmdir()
    path.parent.symlink_to(outside)
    with pytest.raises(OSError, match="symbolic link"):
        open(path, "w", opener=inside(folder))
    with pytest.raises(OSError, match="symbolic link"):
        subfolder(folder, "logs")
    assert (outside / "mine.txt").read_text() == "mine"


@each_of(
    "name, target", [("model", "checkpoints/step-1"), ("best", "checkpoints/removed"), ("me", "me")]
)
def test_links_to_folders_inside_and_to_nothing_stay(places, name, target):
    folder = places[1]
    (folder / "checkpoints" / "step-1").mkdir(parents=True, exist_ok=True)
    (folder / name).symlink_to(target)
    refuse_links(folder, RunError)


def test_a_hard_link_is_refused_of_a_file_that_is_written_in_place(places):
    outside, folder = places
    (outside / "model.safetensors").write_text("x")
    os.link(outside / "model.safetensors", folder / "model.safetensors")  # it is only replaced
    refuse_links(folder, RunError)
    (folder / "logs").mkdir()
    os.link(outside / "mine.txt", folder / "logs" / "worker-1.log")
    with pytest.raises(RunError, match=r"its logs/worker-1.log has a second name \(a hard link\)"):
        refuse_links(folder, RunError)


def test_a_file_that_is_written_in_place_is_no_link_and_others_may_go_meanwhile(
    places, monkeypatch
):
    folder = places[1]
    (folder / "notes").write_text("x")
    (folder / "other").symlink_to("notes")
    walk = os.walk(folder)
    monkeypatch.setattr(
        os, "walk", lambda _: [(one, [*two, "gone"], three) for one, two, three in walk]
    )
    refuse_links(folder, RunError)
    monkeypatch.undo()
    (folder / "samples.txt").symlink_to("notes")
    with pytest.raises(RunError, match=r"its samples\.txt is a link to .*notes"):
        refuse_links(folder, RunError)
