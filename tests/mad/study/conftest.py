"""No process outlives a study."""

import multiprocessing

import pytest


@pytest.fixture(autouse=True)
def _nothing_is_left():
    before = set(multiprocessing.active_children())  # of other files, in the same process
    yield
    assert not set(multiprocessing.active_children()) - before
