"""Paths of users: the home that `~` means, or a refusal."""

from pathlib import Path

import pytest

from mlxhog.base.paths import expanded, path_from_here, quoted
from mlxhog.errors import ConfigError


def test_a_tilde_is_the_home_and_other_paths_stay(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    assert expanded("~/notes") == Path("/home/ada/notes")
    assert expanded(Path("~")) == Path("/home/ada")
    for path in ("notes/~old", "/~old", "", "a b"):
        assert expanded(path) == Path(path)
    with pytest.raises(ConfigError, match=r"not know a user 'nosuchuser'; write the whole path"):
        expanded("~nosuchuser/x")


def test_a_path_is_shown_from_the_current_folder_where_it_lies_below_it(tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    assert path_from_here(here / "runs" / "a") == Path("runs/a")
    assert path_from_here(tmp_path / "runs") == tmp_path / "runs"
    here.rmdir()
    assert path_from_here(here / "runs") == here / "runs"


def test_a_quoted_word_is_one_word_of_bash_and_of_zsh():
    words = {"a/b.txt": "a/b.txt", "cpu*2": "'cpu*2'", "hi!": "'hi!'", "==Title==": "'==Title=='"}
    assert {word: quoted(word) for word in words} == words
