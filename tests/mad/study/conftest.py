"""No process outlives a study; what its final answers, and where it is."""

import multiprocessing
from pathlib import Path

import pytest

from mlxhog.mad.study import final


@pytest.fixture(autouse=True)
def _nothing_is_left():
    before = set(multiprocessing.active_children())  # of other files, in the same process
    yield
    assert not set(multiprocessing.active_children()) - before


@pytest.fixture
def answers(monkeypatch):
    """The final answers at once, that B is better if its key is in the returned mapping."""
    asked = {"verdict": "a"}

    def compare(store, study, two, tell, limit):
        names = dict(zip("ab", (row.candidate for row in two), strict=True))
        return names | {"answer": f"{asked['verdict'].upper()} is better", **asked}

    monkeypatch.setattr(final, "compare", compare)
    return asked


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("Lock free adds never wait. " * 400)
    Path("short.txt").write_text("no more")
    Path("large.yaml").write_text(
        "space: {depth: 14, mixers: [mlstm, slstm, gla], channels: [swiglu, mlp], "
        "max_count: {slstm: 1}}\n"
    )
    return tmp_path
