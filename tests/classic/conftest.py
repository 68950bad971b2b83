"""Generated data that several files of tests look at, and none changes."""

import pytest

from mlxhog.classic.generators import netflix_like, rcv1_like


@pytest.fixture(scope="package")
def netflix():
    """The ratings of the default size."""
    return netflix_like()


@pytest.fixture(scope="package")
def text():
    """The rows like RCV1 of the default number."""
    return rcv1_like()
