"""No process outlives a study."""

import multiprocessing

import pytest


@pytest.fixture(autouse=True)
def _nothing_is_left():
    yield
    assert multiprocessing.active_children() == []
